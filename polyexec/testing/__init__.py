"""The conformance suite: what a backend must do, as tests.

Run it for any installed backend, in one line (needs the extra: ``pip install "polyexec[testing]"``)::

    pytest --pyargs polyexec.testing --backend "NAME?workers=2" --backend-report report.json

or from the tests of the distribution that provides the backend::

    # test_conformance.py
    from polyexec.testing import run

    def test_conformance(tmp_path):
        report = run("NAME?workers=2", report=tmp_path / "report.json")
        assert report.failures() == {}

A backend that cannot keep a clause declares so in ``Backend.deviations``. The clause's own tests are then turned
round: where the suite has a test of what happens instead, that one runs; for any other clause at least one of its
tests must fail, and one that is kept after all is reported as a failure until it is undeclared. ``Capabilities``
choose between variants of a test; the suite knows no backend by name.

The suite opens one executor at a time in its own process, most tests share one. Tests that need workers of their own
number or configuration are skipped for a specification with ``address=``; its workers must see the same files
(``--basetemp`` names a shared folder). What tests cannot see through the executor they observe beside it: files that
tasks write, process ids, ``/proc``. ``python -m polyexec.testing.table`` renders reports as the table of clauses by
backends.
"""

from polyexec.testing.report import Report, load
from polyexec.testing.runner import run

__all__ = ["Report", "load", "run"]
