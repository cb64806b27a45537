"""A census of the Python standard library's own source files.

Batches of files are parsed in parallel tasks, their counts are added up by a tree of tasks that depend on one another,
and one large table, stored once, is read by them all. The program names no backend: set POLYEXEC_BACKEND to change it.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import heapq
import itertools
import json
import sys
import sysconfig
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

import polyexec

try:
    import numpy as np
except ModuleNotFoundError:
    sys.exit('census: NumPy is not installed; pip install "polyexec[examples]"')

Source = tuple[str, bytes]  # path below the library's root, content
BITS = 256
TABLE_ROWS = 2**16
BATCH_BYTES = 400_000
TOP = 5
FEWEST_IDENTIFIERS = 50  # a file with fewer has no telling fingerprint
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
BRANCHES = {ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.BoolOp, ast.match_case}
NAME_FIELDS = {ast.Name: "id", ast.Attribute: "attr", ast.arg: "arg"} | dict.fromkeys(SCOPES, "name")


@attrs.define
class Census:
    """What is counted, in one batch of files or in all."""

    files: int = 0
    lines: int = 0
    unparsable: int = 0
    identifiers: Counter[str] = attrs.field(factory=Counter)
    imports: Counter[str] = attrs.field(factory=Counter)
    functions: list[tuple[int, str]] = attrs.field(factory=list)
    fingerprints: dict[str, str] = attrs.field(factory=dict)


def main() -> None:
    """Take the census and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a machine-readable last line")
    arguments = parser.parse_args()
    with polyexec.connect() as ex:
        began = time.perf_counter()
        total, twins = take_census(ex, library_sources())
        seconds = time.perf_counter() - began
        report(total, twins)
        if arguments.json:
            facts = {"backend": ex.info.backend, "chosen_by": ex.info.chosen_by, "start_seconds": ex.info.start_seconds}
            print(json.dumps({**facts, "seconds": seconds, "digest": digest(total, twins)}))


def take_census(ex: polyexec.Executor, sources: Iterable[Source]) -> tuple[Census, list[str]]:
    """Survey all files in parallel and add up the counts, two by two."""
    table = ex.put(projection_table())
    pending = [ex.submit(survey, batch, table) for batch in batches(sources)]
    while len(pending) > 1:
        pairs = itertools.zip_longest(pending[::2], pending[1::2])
        pending = [left if right is None else ex.submit(add, left, right) for left, right in pairs]
    twins = ex.submit(most_alike, pending[0])
    return pending[0].result(), twins.result()


def library_sources() -> Iterator[Source]:
    """Read the standard library's files, without those that pip has installed."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not {"site-packages", "dist-packages"} & set(path.parts):
            yield path.relative_to(root).as_posix(), path.read_bytes()


def batches(sources: Iterable[Source]) -> Iterator[list[Source]]:
    """Group files so that each group is about the same amount of work."""
    batch: list[Source] = []
    for source in sources:
        batch.append(source)
        if sum(len(content) for _, content in batch) >= BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def projection_table() -> np.ndarray:
    """Make the table of random signs: a row for each hashed identifier, a column for each bit of a fingerprint."""
    noise = np.frombuffer(hashlib.shake_256(b"census").digest(TABLE_ROWS * BITS // 8), dtype=np.uint8)
    return np.unpackbits(noise).reshape(TABLE_ROWS, BITS).astype(np.int8) * 2 - 1


def survey(batch: list[Source], table: np.ndarray) -> Census:
    """Count what is in a batch of files; some test data of the library is no Python, on purpose."""
    warnings.simplefilter("ignore", SyntaxWarning)
    total = Census()
    for path, content in batch:
        total.files += 1
        total.lines += content.count(b"\n")
        try:
            tree = ast.parse(content)
        except (SyntaxError, ValueError, RecursionError):
            total.unparsable += 1
        else:
            survey_tree(total, path, tree, table)
    total.functions = most_complex(total.functions)
    return total


def survey_tree(total: Census, path: str, tree: ast.Module, table: np.ndarray) -> None:
    """Count what is in one file."""
    identifiers: list[str] = []
    branches: Counter[str] = Counter()
    for node, scope in walk(tree, path):
        kind = type(node)
        if kind in NAME_FIELDS:
            identifiers.append(getattr(node, NAME_FIELDS[kind]))
        if kind in BRANCHES:
            branches[scope] += 1
        elif isinstance(node, ast.Import):
            total.imports.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            total.imports[node.module.partition(".")[0]] += 1
    total.identifiers.update(identifiers)
    total.functions += [(count, scope) for scope, count in branches.items() if scope != path]
    total.fingerprints |= fingerprint(path, set(identifiers), table)


def walk(tree: ast.AST, path: str) -> Iterator[tuple[ast.AST, str]]:
    """Give every node together with the class or function that it is in."""
    pending = [(tree, path)]
    while pending:
        node, scope = pending.pop()
        if isinstance(node, SCOPES):
            scope += f":{node.name}"
        yield node, scope
        for name in node._fields:
            field = getattr(node, name, None)
            for child in field if isinstance(field, list) else [field]:
                if isinstance(child, ast.AST) and child._fields:
                    pending.append((child, scope))


def fingerprint(path: str, identifiers: set[str], table: np.ndarray) -> dict[str, str]:
    """Hash a file so that files with similar identifiers get similar bits (SimHash, Charikar, STOC 2002)."""
    if len(identifiers) < FEWEST_IDENTIFIERS:
        return {}
    rows = [zlib.crc32(name.encode()) % TABLE_ROWS for name in identifiers]
    return {path: np.packbits(table[rows].sum(axis=0, dtype=np.int32) > 0).tobytes().hex()}


def most_complex(functions: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Keep the functions that branch most."""
    return heapq.nlargest(TOP, functions)


def add(left: Census, right: Census) -> Census:
    """Add two counts."""
    return Census(
        left.files + right.files,
        left.lines + right.lines,
        left.unparsable + right.unparsable,
        left.identifiers + right.identifiers,
        left.imports + right.imports,
        most_complex(left.functions + right.functions),
        left.fingerprints | right.fingerprints,
    )


def most_alike(total: Census) -> list[str]:
    """Find the pairs of files in different folders whose fingerprints differ least."""
    names = sorted(total.fingerprints)
    packed = np.frombuffer(bytes.fromhex("".join(total.fingerprints[name] for name in names)), dtype=np.uint8)
    signs = np.unpackbits(packed).reshape(len(names), BITS).astype(np.float32) * 2 - 1
    distances = (BITS - signs @ signs.T) / 2
    pairs = (
        (int(distances[i, j]), names[i], names[j])
        for i, j in np.argwhere(distances < BITS // 3).tolist()
        if i < j and names[i].rpartition("/")[0] != names[j].rpartition("/")[0]
    )
    return [f"{bits:6} bits  {left}  {right}" for bits, left, right in heapq.nsmallest(TOP, pairs)]


def digest(total: Census, twins: list[str]) -> str:
    """Hash all that was counted, whatever the order in which it was."""
    everything: dict[str, Any] = attrs.asdict(total) | {"twins": twins}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def report(total: Census, twins: list[str]) -> None:
    """Print the census."""
    print(f"{total.files} files, {total.lines} lines, {total.unparsable} files that are not valid Python")
    for title, counts in (("identifiers", total.identifiers), ("imports", total.imports)):
        top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TOP]
        print(f"top {title}: " + ", ".join(f"{name} ({count})" for name, count in top))
    print("functions that branch most:", *(f"{count:6} {name}" for count, name in total.functions), sep="\n")
    print("files most alike in different folders:", *twins, sep="\n")
    print("digest", digest(total, twins))


if __name__ == "__main__":
    main()
