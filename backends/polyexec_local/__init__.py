"""The local engine: tasks in the submitting thread, in threads, or in processes of this machine."""

from polyexec_local.process import ProcessBackend, ProcessConfig
from polyexec_local.serial import SerialBackend, SerialConfig
from polyexec_local.threads import ThreadsBackend, ThreadsConfig

__all__ = ["ProcessBackend", "ProcessConfig", "SerialBackend", "SerialConfig", "ThreadsBackend", "ThreadsConfig"]
