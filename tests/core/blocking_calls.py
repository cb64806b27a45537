"""Finding the calls that may block, and the locks that are waited for, in source text.

A call counts as blocking by its name. It is bounded, and of no further interest, if its time is a number, a constant in
capitals, or computed by ``min`` or ``max``, or if it says that it shall not wait. What is an argument of a bounded
``asyncio.wait_for`` is bounded with it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

WAITS = {
    *("acquire", "communicate", "gather", "join", "poll", "result", "select", "wait", "wait3", "shutdown"),
    *("waitid", "waitpid", "flock", "lockf", "accept", "recv", "recv_fds", "recv_into", "recvmsg", "recvmsg_into"),
    *("sendall", "eventfd_read", "run_coroutine_threadsafe", "run_until_complete", "sigwait"),
}
"""Blocking whatever their arguments are."""

OWNED = {"get": "ray", "read": "os", "sleep": "time", "take": "blocking"}
"""Blocking if they are these modules'; ``get`` and ``take`` without arguments are those of queues."""

TIMED = {"acquire", "communicate", "get", "join", "poll", "result", "select", "sleep", "take", "wait", "wait_for"}
"""Those whose last argument is a time."""

NOT_WAITING = {"blocking", "block"}
FLAGS = ("WNOHANG", "LOCK_NB", "MSG_DONTWAIT", "O_NONBLOCK")
LOCKS = {"Lock", "RLock", "Condition", "Semaphore"}


def calls_in(root: Path, folder: Path) -> Counter[str]:
    """Count the calls without a bound, by file, function and what is called, and the locks, by file and name."""
    found: Counter[str] = Counter()
    for path in sorted(folder.rglob("*.py")):
        if "testing" in path.relative_to(root).parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = path.relative_to(root).as_posix().removeprefix("backends/")
        found.update(f"{name} {where}: {called}" for where, called in _Calls().of(tree))
        found.update(f"{name}: lock {lock}" for lock in _locks(tree))
    return found


class _Calls:
    def of(self, tree: ast.AST) -> Iterator[tuple[str, str]]:
        """Give where calls without a bound are, and what they call."""
        yield from self._visit(tree, ())

    def _visit(self, node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            inner = scope
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = (*scope, child.name)
            if isinstance(child, ast.Call):
                called = ast.unparse(child.func)
                if called == "asyncio.wait_for" and _is_bounded(child):
                    continue
                if _blocks(child) and not _is_bounded(child):
                    yield ".".join(scope) or "<module>", called
            yield from self._visit(child, inner)


def _blocks(call: ast.Call) -> bool:
    function = call.func
    if not isinstance(function, ast.Attribute) or isinstance(function.value, ast.Constant):
        return False
    owner, name = ast.unparse(function.value), function.attr
    if name in OWNED:
        return OWNED[name] == owner or (name in ("get", "take") and not call.args)
    if name == "poll":
        # Without a time it is that of a process, or makes a poll object.
        return bool(call.args)
    return name in WAITS and owner != "os.path"


def _is_bounded(call: ast.Call) -> bool:
    name = ast.unparse(call.func).rpartition(".")[2]
    times = [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]
    times += call.args[-1:] if name in TIMED else []
    if any(keyword.arg in NOT_WAITING and getattr(keyword.value, "value", True) is False for keyword in call.keywords):
        return True
    if any(flag in ast.unparse(call) for flag in FLAGS):
        return True
    return any(_is_limit(time) for time in times)


def _is_limit(time: ast.expr) -> bool:
    if isinstance(time, ast.Constant):
        return isinstance(time.value, int | float) and not isinstance(time.value, bool)
    if isinstance(time, ast.Name):
        return time.id.strip("_").isupper()
    if isinstance(time, ast.BinOp):
        return _is_limit(time.left) or _is_limit(time.right)
    return isinstance(time, ast.Call) and ast.unparse(time.func) in ("min", "max")


def _locks(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            kind = ast.unparse(node.value.func).rpartition(".")[2]
            if kind in LOCKS:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from (ast.unparse(target).removeprefix("self.") for target in targets)
