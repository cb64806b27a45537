from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

import polyexec
from polyexec import folders, packing, shipped
from polyexec.options import TaskOptions
from polyexec.packages import Package, Packages, Source, module_name
from polyexec.packing import Content, digest_of, pack
from polyexec.shipping import Shipments

LIMIT = 20.0


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def names_of(folder: Path) -> list[str]:
    return sorted(item.name for item in Content(str(folder), "").look().items if item.stamp)


def archive_of(folder: Path) -> bytes:
    return pack(str(folder), Content(str(folder), "").look())


# What goes along

PATTERNS = [
    "*.a", "b", "b/", "/b", "a/b", "/a/", "**/b", "a/**", "a/**/b", "!b", "!*.a", "!a/b", "# b", "\\#b", "\\!b",
    "[ab]", "[!a]", "?", "b ", "b\\ ", "", "/", "*", "!*/", "a*", "*/b", ".*", "!.gitignore", "x/", "*.[ab]", "**",
    "[[:alpha:]]", "[^[:punct:]]*", "[a-b]", "\\a", "a\\", "[", "]", "[]ab]", "[a\\-b]", "**a", "a**b", "x/**/",
    "!/**/b/", "!a/", "/*", "/*/*", "!/x/**", "//", "a//b", "./a", "b/  ", "\ta", "!!b", "***", "**/**", "a/***/b",
]  # fmt: skip
NAMES = ["a", "b", "x", "a.a", "b.b", "#b", "!b", ".b"]


def random_tree(folder: Path, random: random.Random, depth: int = 3) -> None:
    folder.mkdir(exist_ok=True)
    for name in random.sample(NAMES, random.randint(1, 5)):
        if depth and random.random() < 0.5:
            random_tree(folder / name, random, depth - 1)
        else:
            (folder / name).write_text(name)
    if random.random() < 0.5:
        (folder / ".gitignore").write_text("\n".join(random.sample(PATTERNS, random.randint(1, 4))))


@pytest.mark.parametrize("seed", range(40))
def test_what_is_ignored_is_what_git_ignores(tmp_path: Path, seed: int) -> None:
    root = tmp_path / "root"
    random_tree(root, random.Random(seed))
    environment = {**os.environ, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", "XDG_CONFIG_HOME": str(tmp_path)}
    for command in (["init", "--quiet"], ["ls-files", "-z", "--others", "--exclude-standard"]):
        done = subprocess.run(["git", *command], cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert names_of(root) == sorted(filter(None, done.stdout.split("\0")))


def test_what_is_remembered_of_rules_changes_with_them(tmp_path: Path) -> None:
    fill(tmp_path, {"a.log": "", "b.txt": "", "inner/c.log": ""})
    content = Content(str(tmp_path), "")
    seen = []
    for rules in ("*.log\n", "*.txt\n", None, "c.*\n"):
        if rules is None:
            (tmp_path / ".gitignore").unlink()
        else:
            (tmp_path / ".gitignore").write_text(rules)
            os.utime(tmp_path / ".gitignore", ns=(len(seen), len(seen)))
        seen.append([item.name for item in content.look().items if item.stamp and item.name != ".gitignore"])
    assert seen == [["b.txt"], ["a.log", "inner/c.log"], ["a.log", "b.txt", "inner/c.log"], ["a.log", "b.txt"]]


def test_links_are_followed(tmp_path: Path) -> None:
    fill(tmp_path, {"outside/data": "far", "root/a": "near"})
    root = tmp_path / "root"
    (root / "link").symlink_to(tmp_path / "outside" / "data")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "nowhere").symlink_to("no-such-file")
    os.mkfifo(root / "pipe")
    with zipfile.ZipFile(BytesIO(archive_of(root))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "a": b"near", "folder/": b"", "folder/data": b"far", "link": b"far",
        }  # fmt: skip


def test_a_link_into_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "loop").symlink_to(tmp_path)
    with pytest.raises(polyexec.SpecificationError, match="loop"):
        archive_of(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(polyexec.SpecificationError, match="gone"):
        archive_of(tmp_path / "gone")


def test_a_file_that_goes_meanwhile_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path, {"a": "1", "b": "2"})
    listing = Content(str(tmp_path), "").look()
    (tmp_path / "a").unlink()
    with zipfile.ZipFile(BytesIO(pack(str(tmp_path), listing))) as archive:
        assert archive.namelist() == ["b"]


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SIZE_LIMIT", 1 << 20)
    (tmp_path / "large").write_bytes(random.Random(0).randbytes(5 << 20))
    with pytest.raises(polyexec.SpecificationError, match="1 MiB"):
        archive_of(tmp_path)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    archives = []
    for name in ("one", "two"):
        fill(tmp_path / name, {"a.py": "a", "b/c.py": "c"})
        os.utime(tmp_path / name / "a.py", ns=(len(archives), 10**9))
        archives.append(archive_of(tmp_path / name))
    assert archives[0] == archives[1]
    (tmp_path / "two" / "a.py").chmod(0o755)
    assert archive_of(tmp_path / "two") != archives[0]


@pytest.mark.parametrize(
    ("path", "name"),
    [("/x/a.py", "a"), ("a.so", "a"), ("a-b.py", None), ("a.txt", None), ("a.b.py", None), (".py", None)],
)
def test_names_of_modules(path: str, name: str | None) -> None:
    assert module_name(path) == name


# Sending


class Store:
    """Counts what is stored and what is let go."""

    def __init__(self) -> None:
        self.archives: list[bytes] = []
        self.living: set[int] = set()
        self._numbers = itertools.count(1)

    def put(self, archive: bytes) -> Any:
        self.archives.append(archive)
        return _Stored(self, next(self._numbers))


class _Stored:
    def __init__(self, store: Store, number: int) -> None:
        self._store = store
        self.reference_id = number
        store.living.add(number)

    def __del__(self) -> None:
        self._store.living.discard(self.reference_id)


def options(folder: Path) -> TaskOptions:
    return TaskOptions(working_dir=folder)


def age(folder: Path) -> None:
    """Wait until another change of the files can be told from what was seen; for that the clock must go on."""
    newest = max(max(path.stat().st_ctime_ns, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    while time.time_ns() <= newest + 2 * packing._TICK:
        time.sleep(0.01)


def test_what_has_not_changed_is_packed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"a": "1", "b/c": "2"})
    age(tmp_path)
    packed = []
    monkeypatch.setattr(packing, "pack", lambda source, listing: packed.append(source) or pack(source, listing))
    store = Store()
    shipments = Shipments(store.put, in_place=False)
    first = shipments.ship(options(tmp_path)).packages
    assert all(shipments.ship(options(tmp_path)).packages == first for _ in range(10))
    assert (len(packed), len(store.archives)) == (1, 1)


def test_a_change_within_one_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    """Two writes of the same size may leave the same times; what is as fresh as that is not trusted."""
    store = Store()
    shipments = Shipments(store.put, in_place=False)
    for number in range(50):
        fill(tmp_path, {"a": f"{number:2}"})
        shipments.ship(options(tmp_path))
        shipments.ship(options(tmp_path))
    assert len(store.archives) == 50
    assert len(store.living) == 1, "what is out of date was not let go"


def test_only_so_much_is_remembered(tmp_path: Path) -> None:
    store = Store()
    shipments = Shipments(store.put, in_place=False)
    for number in range(40):
        fill(tmp_path / str(number), {"a": str(number)})
        shipments.ship(options(tmp_path / str(number)))
    assert len(store.living) == 16


def test_many_threads_may_send_at_the_same_time(tmp_path: Path) -> None:
    fill(tmp_path, {str(number): "x" for number in range(50)})
    store = Store()
    shipments = Shipments(store.put, in_place=False)
    found: list[Any] = []

    def send() -> None:
        for _ in range(20):
            shipment = shipments.ship(options(tmp_path))
            found.append((shipment.packages, {future.reference_id for future in shipment.futures} <= store.living))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(found) == 80
    assert all(lives for _, lives in found)
    assert len({packages.working_dir.digest for packages, _ in found}) == 1


def test_a_path_of_the_task_itself_means_its_copy() -> None:
    given = Packages(Package(Source("/of/another/machine"), "digest", 7), ())
    shipments = Shipments(Store().put, in_place=False, given=given)
    assert shipments.ship(TaskOptions(working_dir=Source("/of/another/machine"))).packages == given
    assert shipments.ship(TaskOptions()).packages == given


# The folder of a machine


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield tmp_path
    for executor_id in tuple(folders._held):
        folders.release(executor_id)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


HOLDER = """
import sys
from polyexec import folders
print(folders.hold(sys.argv[1], is_driver=False), flush=True)
sys.stdin.read()
"""


def start_holder(executor_id: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, executor_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def end(process: subprocess.Popen[str], how: int = signal.SIGKILL) -> None:
    process.send_signal(how)
    process.communicate()


def test_the_folder_goes_with_the_last_who_holds_it(place: Path) -> None:
    holders = [start_holder("x") for _ in range(3)]
    for holder in holders:
        assert len(list(place.iterdir())) == 1
        end(holder)
    until(lambda: not list(place.iterdir()))


def test_a_driver_waits_until_it_has_gone(place: Path) -> None:
    for _ in range(20):
        folder = folders.hold("x", is_driver=True)
        (Path(folder) / "data").write_text("x")
        folders.release("x")
        assert not list(place.iterdir())


def test_a_folder_that_is_taken_away_is_made_again(place: Path) -> None:
    """Whoever comes while a janitor is at work gets a folder that stays."""
    for _ in range(10):
        end(start_holder("x"))
        folder = folders.hold("x", is_driver=True)
        (Path(folder) / "data").write_text("x")
        time.sleep(0)
        assert (Path(folder) / "data").exists()
        folders.release("x")
    until(lambda: not list(place.iterdir()))


def test_there_is_one_janitor_and_another_if_it_is_killed(place: Path) -> None:
    folders.hold("x", is_driver=True)
    janitor = folders._held["x"].janitor
    assert janitor is not None
    held = start_holder("x")
    janitor.kill()
    janitor.wait()
    other = start_holder("x")
    folders.release("x")
    end(held)
    end(other)
    until(lambda: not list(place.iterdir()))


def test_a_driver_does_the_work_of_a_janitor_that_was_killed(place: Path) -> None:
    folders.hold("x", is_driver=True)
    janitor = folders._held["x"].janitor
    assert janitor is not None
    janitor.kill()
    folders.release("x")
    assert not list(place.iterdir())


def test_many_may_unpack_at_the_same_time(place: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    fill(source, {f"{number}/data": "x" * number for number in range(200)})
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o755)
    archive = archive_of(source)
    found: list[str] = []
    barrier = threading.Barrier(8)

    def unpack() -> None:
        barrier.wait(LIMIT)
        found.append(folders.unpacked("x", digest_of(archive), lambda: archive, is_driver=True))

    threads = [threading.Thread(target=unpack) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert archive_of(Path(found[0])) == archive
    assert [path.name for path in Path(found[0]).parent.iterdir() if path.name.startswith(".unp")] == []


def test_a_full_disk_is_named(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "source", {"a": "x"})
    archive = archive_of(tmp_path / "source")

    def fail(self: object, *args: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", fail)
    with pytest.raises(polyexec.ResourceExhausted) as caught:
        folders.unpacked("x", "digest", lambda: archive, is_driver=True)
    assert caught.value.kind == "disk"
    assert not list(Path(folders.hold("x", is_driver=True)).glob("*digest*"))


# In one process


def test_modules_of_others_stay_themselves(tmp_path: Path) -> None:
    """A folder with modules of the same names as ours harms nobody beside the task."""
    fill(
        tmp_path, {"json.py": "", "attr/__init__.py": "", "polyexec/__init__.py": "", "inner/deep/x.py": "value = 1\n"}
    )
    before = dict(sys.modules)

    def body() -> Any:
        import json

        import attr
        import inner.deep.x

        return json.__file__, attr.__file__, sys.modules["polyexec"].__file__, inner.deep.x.value

    with polyexec.connect("serial") as ex:
        found = ex.options(working_dir=tmp_path).submit(body).result(LIMIT)
    assert found == (before["json"].__file__, before["attr"].__file__, polyexec.__file__, 1)
    assert "inner" not in sys.modules
    assert all(sys.modules[name] is module for name, module in before.items())


def test_the_driver_has_its_own_while_a_task_waits(tmp_path: Path) -> None:
    fill(tmp_path / "shelf", {"lent.py": ""})
    archive = archive_of(tmp_path / "shelf")
    packages = Packages(Package(Source(tmp_path / "shelf"), digest_of(archive), 1), ())
    here = os.getcwd()
    with shipped.shipped(packages, "x", lambda package: archive, is_driver=True):
        import lent

        for _ in range(2):
            with shipped.waiting():
                assert os.getcwd() == here
                assert "lent" not in sys.modules
            assert Path("lent.py").exists()
            assert sys.modules["lent"] is lent
    assert os.getcwd() == here
    shipped.release("x")


def test_the_current_directory_may_have_gone(tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    (tmp_path / "here").mkdir()
    code = (
        "import os, sys, polyexec\n"
        "with polyexec.connect('serial') as ex:\n"
        "    view = ex.options(working_dir='../sent')\n"
        "    os.rmdir(os.getcwd())\n"
        "    print(view.submit(os.getcwd).result())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "here", capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "polyexec-packages" in done.stdout


def test_arguments_that_are_shared_stay_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"shelved.py": "class Thing:\n    pass\n", "data": "x"})
    monkeypatch.syspath_prepend(str(tmp_path))
    import shelved

    thing = shelved.Thing()
    with polyexec.connect("serial?isolate=0") as ex:
        view = ex.options(working_dir=tmp_path, py_modules=[shelved])
        assert view.submit(lambda found: (found is thing, Path("data").read_text()), thing).result(LIMIT) == (True, "x")
        assert isinstance(view.submit(shelved.Thing).result(LIMIT), shelved.Thing)
    del sys.modules["shelved"]
