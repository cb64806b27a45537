"""The fault matrix, one test for each row."""

from __future__ import annotations

import pytest

from polyexec.testing.faults.catalogue import ROWS
from polyexec.testing.faults.harness import Harness
from polyexec.testing.faults.model import Row
from polyexec.testing.faults.report import FAIL, SKIP, FaultReport


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_fault(row: Row, harness: Harness, fault_report: FaultReport) -> None:
    """Do what the row says in all its ways, and check what comes of it."""
    found = harness.run(row)
    fault_report.rows.append(found)
    fault_report.engine = harness.engine
    if found.status == FAIL:
        pytest.fail("\n".join(found.problems()), pytrace=False)
    if found.status == SKIP:
        pytest.skip("; ".join(dict.fromkeys(case.message for case in found.cases)))
