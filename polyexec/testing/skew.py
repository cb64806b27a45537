"""Workers that say that they have another version than the driver."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from polyexec.testing.drivers import Driver

_SKEWED = """
    import json, os, sys
    import polyexec

    os.environ["POLYEXEC_TESTING_SKEW"] = "1"
    try:
        with polyexec.connect(sys.argv[1]) as ex:
            ex.submit(int, 1).result(30)
        print(json.dumps({"error": None}))
    except BaseException as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error), "version": polyexec.__version__}))
"""

_SITECUSTOMIZE = """
import os, sys

if os.environ.get("POLYEXEC_TESTING_SKEW"):
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name != "polyexec.{module}":
                return None
            sys.meta_path.remove(Finder)
            import importlib.util
            spec = importlib.util.find_spec(name)
            run = spec.loader.exec_module
            def exec_module(module):
                run(module)
                {doctor}
            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, Finder)
"""
VERSION = "0.0.1-of-the-worker"
_DOCTOR = f"module.stamp = lambda: {VERSION!r}"


def told(driver: Driver, folder: Path) -> dict[str, Any]:
    """Use an executor whose workers pretend to have another version.

    Args:
        driver: runs the program.
        folder: for what makes them do so.

    Returns:
        Name and text of the error that the program got, with the version that it has.
    """
    folder = folder / "skew"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(module="wire", doctor=_DOCTOR), encoding="utf-8")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    ended = driver.run(_SKEWED, environment={"PYTHONPATH": path})
    assert ended.said, ended.errors
    answer: dict[str, Any] = ended.said[0]
    return answer
