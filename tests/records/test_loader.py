"""Tests that records, results and reports state how long a run waited for its data."""

import json
import math
from pathlib import Path

import pytest
import torch
from made_up_runs import change, pretend, read, the_group

from sage.cli.main import main
from sage.records import loader
from sage.records.record import read_metrics
from sage.report.tables import tables
from sage.train import run
from sage.train.metrics import RunningMetrics


def speed_note(runs: Path) -> str:
    (note,) = [table.note for table in tables(the_group(runs)) if table.title == "Speed"]
    return note


def test_a_run_records_the_time_in_which_it_waited_and_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "LARGE_SHARE", 0.0)
    assert main(f"run digits --steps 5 --world-size 1 --workers-in-process --runs {tmp_path}".split()) == 0
    assert "% of the time, which step times leave out\n" in capsys.readouterr().err
    (folder,) = tmp_path.iterdir()
    steps = [line for line in read_metrics(folder) if line["kind"] == "step"]
    assert all(0 < step["loader_seconds"] < math.inf for step in steps)
    waited, taken = (sum(step[name] for step in steps) for name in ("loader_seconds", "seconds"))
    result = json.loads((folder / "result.json").read_text())
    assert result["loader_share"] == pytest.approx(waited / (waited + taken))


def test_a_run_that_hardly_waits_does_not_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = f"run digits --steps 2 --world-size 1 --workers-in-process --runs {tmp_path}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "LARGE_SHARE", 1.1)
        assert main(argv.split()) == 0
    assert "waited" not in capsys.readouterr().err


def test_the_line_names_the_option_if_the_data_set_has_it() -> None:
    assert loader.waited(0.25, {}) == "waited for its data for 25 % of the time, which step times leave out"
    assert loader.waited(0.25, {"loaders": 2}).endswith(
        "it has --data.loaders 2: more may help, up to the free cores"
    )


def test_a_report_says_which_part_of_the_runs_waited(tmp_path: Path) -> None:
    pretend(tmp_path, "exact")
    folder = pretend(tmp_path, "topk", density=0.01)
    assert "waited" not in speed_note(tmp_path)  # as with records of earlier versions
    assert [values["loader_share"] for values in read(tmp_path).values()] == [None, None]
    change(folder, "result.json", loader_share=0.4)
    assert "1 of 2 runs waited for their data, for up to 40 % of the time" in speed_note(tmp_path)
    change(folder, "result.json", loader_share=0.01)
    assert "waited" not in speed_note(tmp_path)


def test_the_share_of_an_unfinished_run_follows_from_its_records(tmp_path: Path) -> None:
    folder = pretend(tmp_path, "exact", stop=20, seconds=0.02)
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[:10]:
        line["loader_seconds"] = 0.06
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (values,) = read(tmp_path).values()
    assert values["loader_share"] == pytest.approx(0.75)


def test_a_run_resumed_from_a_checkpoint_of_an_earlier_version_counts_its_own_steps() -> None:
    metrics = RunningMetrics()
    assert metrics.loader_share == 0
    totals = {"wire_sent": 8, "wire_received": 8, "density_had": 2.0}
    metrics.load_state_dict(
        {"step_seconds": torch.ones(2), "evaluations": [], "totals": totals, "loss": [0.0, 0]}
    )
    step = {"seconds": 3.0, "loader_seconds": 1.0, "bytes": {}, "wire_sent": 4, "wire_received": 4}
    metrics.add_step({**step, "density_had": 1.0, "density_asked": None})
    assert metrics.loader_share == 0.25
