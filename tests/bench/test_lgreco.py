"""Tests that the page of the allocation has the measured figures, and what it says of them holds."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import lgreco

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "allocation.md"


def test_the_page_has_the_measured_table() -> None:
    assert lgreco.table(lgreco.read()) in PAGE.read_text("utf-8")


def test_every_allocation_was_measured_and_sends_less_at_no_larger_error_of_the_sum_it_is_made_of() -> None:
    rows = {(row.workload, row.reducer, row.allocation): row for row in lgreco.read()}
    assert len(rows) == len(lgreco.WORKLOADS) * len(lgreco.METHODS) * len(lgreco.ALLOCATIONS)
    for (workload, reducer, allocation), row in rows.items():
        uniform = rows[workload, reducer, "uniform"]
        if allocation in ("lgreco", "lgreco, square"):
            assert row.bytes_a_step < uniform.bytes_a_step
        # What is limited is the error of the sum: exactly for topk, in expectation for qsgd, and for powersgd
        # with factors that have converged.
        if allocation == "lgreco, square":
            assert row.sum_vnmse <= uniform.sum_vnmse * 1.005
        else:
            assert row.sum_norms <= uniform.sum_norms * 1.005
