"""An account is an actor: it keeps its balance between calls, and takes them one at a time."""

from __future__ import annotations

import polyexec
from polyexec import ActorHandle, Executor


class Account:
    """Money of somebody."""

    def __init__(self, owner: str, balance: int = 0) -> None:
        self.owner = owner
        self.balance = balance

    def deposit(self, amount: int) -> int:
        """Add money, and give what is there now."""
        self.balance += amount
        return self.balance

    def withdraw(self, amount: int) -> int:
        """Take money, and give what is left."""
        if amount > self.balance:
            raise ValueError(f"{self.owner} has only {self.balance}")
        self.balance -= amount
        return self.balance

    def pay(self, other: ActorHandle, amount: int) -> int:
        """Give money to another account; an actor calls an actor."""
        self.withdraw(amount)
        return int(other.deposit(amount).result())


def salary(account: ActorHandle, months: int) -> None:
    """Pay some months' wages; a task calls an actor."""
    for _ in range(months):
        account.deposit(100).result()


def main(ex: Executor) -> None:
    """Move money between two accounts."""
    ada = ex.actor(Account, "Ada", balance=50)
    bob = ex.actor(Account, "Bob")
    ex.submit(salary, ada, 3).result()
    print("Bob has", ada.pay(bob, 120).result())
    print("error:", ada.withdraw(1000).exception())
    print("Ada has", ada.deposit(0).result())
    ex.kill(bob)
    print("Bob's account:", type(bob.deposit(1).exception()).__name__)


if __name__ == "__main__":
    with polyexec.connect() as executor:
        main(executor)
