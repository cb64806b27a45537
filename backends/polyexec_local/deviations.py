"""What tasks that run inside the driver's process cannot have."""

from __future__ import annotations

from polyexec.spi import Deviation

_NO_KILL = "CPython cannot end a thread that is inside C code, and the task runs in a thread of the driver's process"

IN_PROCESS = (
    Deviation("C3", _NO_KILL, "force interrupts Python code, as without force; C code runs to its end first"),
    Deviation("F6", _NO_KILL, "the time limit interrupts Python code; C code runs to its end first, then TaskTimeout"),
    Deviation(
        "F3",
        "the task shares the driver's process, so that whatever ends that process ends the driver",
        "the death of the task's process is the death of the driver",
    ),
    Deviation(
        "F13",
        "there is no worker process that could be killed alone",
        "the death of the task's process is the death of the driver",
    ),
    Deviation(
        "D2",
        "the task prints to the driver's own sys.stdout, to which the program and its debugger write as well",
        "lines reach the driver's streams at once and bear no mark; log_to_driver is accepted and changes nothing",
    ),
)

SHARED_PROCESS = (
    Deviation(
        "S2",
        "threads are for sharing memory: copies would cost what users come here to save",
        "arguments are shared: a change by the caller or the task is seen by the other",
    ),
    Deviation(
        "R5",
        "CUDA_VISIBLE_DEVICES is read from os.environ, which belongs to the process, and several tasks run in it",
        "tasks hold disjoint accelerators, but the variable shows those of the task that started last",
    ),
    Deviation(
        "R10",
        "pools of BLAS and OpenMP belong to the process, and tasks of different needs run in it at the same time",
        "pools stay as the process has them",
    ),
    Deviation(
        "D1",
        "os.environ, the current directory and the imported modules belong to the process, and several tasks run in "
        "it at the same time",
        "variables are set while the task runs, and other tasks see them meanwhile; modules are imported from where "
        "they are, and stay; the current directory is that of the process",
    ),
)
