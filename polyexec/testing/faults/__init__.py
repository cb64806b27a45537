"""The fault matrix: faults that are really done to a backend, from outside, and what came of them.

Run it for any installed backend, in one line (needs the extra: ``pip install "polyexec[testing]"``)::

    pytest --pyargs polyexec.testing.faults --backend "NAME?workers=2" --fault-report faults.json

``-k "F01 or F20"`` runs some rows. ``python -m polyexec.testing.faults.page`` renders reports as a page of rows by
backends. A row is a kind of fault, its cases are ways to do it; a cell of the matrix is a row on a backend.

Each cell runs in fresh processes with a session of their own, which the harness watches from outside. In most cases a
peer runs beside the victim and a task is queued behind it: neither may be lost. What started is counted by marks that
tasks append to a file, whatever the executor says. Afterwards one more task must run, the executor must close, and no
process, thread, descriptor, shared memory or temporary file may be left. A case that takes longer than its hard limit
is ended, with the stacks of all processes in the report.

A cell ends in one of five ways:

- ``PASS``: what the contract promises.
- ``CAPABILITY``: the backend declares that it does not keep the clause, and what it declares instead has happened.
- ``D``: the fault ends the driver, because the task, or what it does, is in the driver's own process; it ended in the
  way expected, and left nothing.
- ``SKIP``: the fault makes no sense on this backend, for the reason given.
- ``FAIL``: anything else; a hang is one.
"""

from polyexec.testing.faults.report import FaultReport, load

__all__ = ["FaultReport", "load"]
