"""A program with secrets, run on one backend and looked at from outside; it says when, and waits."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from typing import Any

import attrs

import polyexec

LARGE = 1 << 20


def echo(*values: Any, **named: Any) -> Any:
    return values[0] if values else named


def die(secret: str) -> None:
    os._exit(3)


def fail(secret: str) -> None:
    hidden = secret * 2
    raise ValueError(f"{len(hidden)} characters")


class Account:
    def __init__(self, password: str) -> None:
        self.password = password

    def length(self, more: str) -> int:
        return len(self.password + more)


def nap(secret: str) -> None:
    time.sleep(0.1)


def use(ex: polyexec.Executor, secret: str, folder: str, own_processes: bool) -> list[Any]:
    """Do a bit of everything, and give what there is to show."""
    private = ex.options(env={"PX_TOKEN": secret}, name="private")
    futures = [
        ex.submit(echo, secret),
        ex.submit(echo, token=secret),
        private.submit(os.getenv, "PX_TOKEN"),
        ex.submit(echo, secret.encode() * LARGE),
        ex.options(working_dir=folder).submit(os.getpid),
        ex.submit(echo, ex.put(secret.encode() * LARGE)),
        ex.actor(Account, secret).length(secret),
        *ex.stream(iter, [secret]),
    ]
    assert futures[2].result(60) == secret
    sizes = [len(value) if isinstance(value := future.result(60), (str, bytes)) else 0 for future in futures]
    bad = [ex.submit(fail, secret), ex.options(timeout=0.01).submit(nap, secret)]
    bad += [ex.options(retries=1).submit(die, secret)] if own_processes else []
    errors: list[Any] = [future.exception(60) for future in bad]
    for arguments in ((secret, threading.Lock()), ({secret: 1}, [secret, threading.Lock()])):
        try:
            ex.submit(echo, *arguments)
        except polyexec.SerializationError as error:
            errors.append(error)
    try:
        ex.options(cpus=1e6, env={"A": secret}).submit(echo, secret)
    except polyexec.InfeasibleResources as error:
        errors.append(error)
    return [ex, ex.info, private, private._options, sizes, *futures, *bad, *errors, *map(str, errors)]


def main(specification: str, folder: str) -> None:
    secret = sys.stdin.readline().strip()
    os.environ["PX_PASSWORD"] = secret
    os.umask(0)
    logging.basicConfig(level=logging.DEBUG)
    with polyexec.connect(specification, events=True) as ex:
        shown = use(ex, secret, folder, ex.submit(os.getpid).result() != os.getpid())
        shown += ex.events(timeout=0)
        shown.append(ex.stats())
        polyexec.trace.write(os.path.join(os.environ["TMPDIR"], "trace.json"), ex)
        os.chmod(os.path.join(os.environ["TMPDIR"], "trace.json"), 0o600)
        print(*map(repr, shown), *map(str, shown), sep="\n", file=sys.stderr)
        ex.submit(echo, 1).result(60)
        print("{}", flush=True)
        sys.stdin.readline()
        report = ex.security()
        print(report, repr(report), file=sys.stderr)
        print(json.dumps(attrs.asdict(report)), flush=True)
        sys.stdin.readline()
        # Whatever others have tried meanwhile.
        print(ex.submit(str, "alive").result(60), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
