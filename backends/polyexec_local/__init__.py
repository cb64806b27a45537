"""The local engine: tasks in the submitting thread, in threads, or in processes of this machine."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyexec_local.process import ProcessBackend, ProcessConfig
    from polyexec_local.serial import SerialBackend, SerialConfig
    from polyexec_local.threads import ThreadsBackend, ThreadsConfig
else:
    # A backend is imported when it is first used, and a worker process, which imports this package, needs none.
    _MODULES = {
        "ProcessBackend": "process",
        "ProcessConfig": "process",
        "SerialBackend": "serial",
        "SerialConfig": "serial",
        "ThreadsBackend": "threads",
        "ThreadsConfig": "threads",
    }

    def __getattr__(name):
        from importlib import import_module

        if name not in _MODULES:
            raise AttributeError(f"module 'polyexec_local' has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"polyexec_local.{_MODULES[name]}"), name)
        return found

    def __dir__():
        return sorted({*globals(), *_MODULES})


__all__ = ["ProcessBackend", "ProcessConfig", "SerialBackend", "SerialConfig", "ThreadsBackend", "ThreadsConfig"]
