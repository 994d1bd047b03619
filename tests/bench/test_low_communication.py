"""Methods that communicate less: the tables of benchmarks/README.md are those of the CSV files."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import sharded_gpt  # noqa: E402
from low_communication_figure import RESULTS, read, step_seconds, table  # noqa: E402


def test_the_page_has_the_table_of_the_file() -> None:
    rows = read(RESULTS / "low_communication.csv")
    text = (BENCHMARKS / "README.md").read_text()
    for ranks in sorted({int(row["ranks"]) for row in rows}):
        lines = list(table(rows, ranks))
        assert len(lines) > 10
        assert "\n".join(lines) in text


def test_the_page_has_the_table_of_the_sharded_gpt() -> None:
    assert "\n".join(sharded_gpt.table(sharded_gpt.read())) in (BENCHMARKS / "README.md").read_text()


def test_a_step_takes_the_time_of_the_timed_steps_with_its_payload() -> None:
    known = {0: 0.1, 100_000: 2.0}
    assert step_seconds(0, known) == 0.1
    assert step_seconds(99_000, known) == 2.0
    with pytest.raises(ValueError, match="no timed step has a payload of 50000 B"):
        step_seconds(50_000, known)
