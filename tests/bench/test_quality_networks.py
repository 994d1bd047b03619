"""The table of results on two networks has the measured rows, with the settings of the script."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import quality
import quality_networks
from quality_networks import NETWORKS, RESULTS, SEEDS, Row, read, settings

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "results.md"


def test_the_page_has_the_measured_table() -> None:
    assert quality_networks.table(read()) in PAGE.read_text("utf-8")


def test_every_row_was_measured_once_with_the_settings_of_the_script() -> None:
    rows = read()
    cases = [quality_networks.key(row) for row in rows]
    assert len(set(cases)) == len(cases) > 0
    assert set(cases) <= set(quality_networks.cases(quality.reducers(), SEEDS))
    for row in rows:
        assert json.loads(row["options"]) == settings(row["network"], row["reducer"])
        assert int(row["steps"]) == NETWORKS[row["network"]]["steps"]


def test_a_mean_over_seeds_has_the_interval_of_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(network: str, reducer: str, seed: int) -> Row:
        return Row(network, reducer, seed, "{}", 1, seed / 10, 1.0, 0.5, 4.0, 8.0, 1000, 10**8, 1.0)

    # In place of processes that train:
    monkeypatch.setattr(quality_networks, "in_process", lambda case: measured(*case))
    output = tmp_path / "rows.csv"
    assert quality_networks.measure(["topk"], [1, 2], output) == 0
    assert quality_networks.measure(["topk"], [1, 2, 3], output) == 0
    rows = read(output)
    assert [int(row["seed"]) for row in rows] == [1, 2, 3] * 2
    # Student's t with two degrees of freedom: 4.303 · 0.1 / √3.
    assert "| `topk` |  | 0.200 ± 0.248 | 0.5 | 4.00 | 1.00 | 1 kB | 100 MB |" in quality_networks.table(rows)
    assert output != RESULTS
