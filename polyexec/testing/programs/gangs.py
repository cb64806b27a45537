"""Two members of a gang start together or not at all, because neither could do anything alone."""

from __future__ import annotations

import polyexec
from polyexec import ActorHandle, Executor, InfeasibleResources


class Member:
    """Holds a part of a vector, and sums it up together with its peer."""

    def __init__(self, part: list[int]) -> None:
        self.part = part

    def partial(self) -> int:
        """Give the sum of the own part."""
        return sum(self.part)

    def total(self, peer: ActorHandle) -> int:
        """Give the sum of both parts."""
        return self.partial() + int(peer.partial().result())


def main(ex: Executor) -> None:
    """Reserve two cpus, use them for a while, and ask for more than there is."""
    with ex.reserve([{"cpus": 1}, {"cpus": 1}], strategy="pack", timeout=60) as gang:
        members = [gang[i].options(cpus=1).actor(Member, list(range(10 * i, 10 * i + 10))) for i in range(2)]
        print("total:", members[0].total(members[1]).result())
        print("held:", len(gang), "bundles")
        for member in members:
            ex.kill(member)
    total = ex.resources().total.cpus
    try:
        ex.reserve([{"cpus": total + 1}])
    except InfeasibleResources as error:
        print("too much:", type(error).__name__)


if __name__ == "__main__":
    with polyexec.connect() as executor:
        main(executor)
