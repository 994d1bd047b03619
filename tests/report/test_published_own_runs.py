"""Our runs next to published figures: which runs are compared with which row, and their ratios."""

import json
from pathlib import Path

import pytest
from made_up_runs import change, pretend, the_group

from sage.cli.main import main
from sage.report.published.files import find
from sage.report.published.own_runs import Line, compare
from sage.report.published.report_table import published_table


def lines(runs: Path, table: str, metric: str) -> list[Line]:
    found = compare(find("sage"), [runs])
    return [line for line in found.lines if (line.row.table, line.row.metric) == (table, metric)]


def test_the_ratio_of_our_steps_is_printed_next_to_the_published_one(tmp_path: Path) -> None:
    for seed in (0, 1):
        pretend(tmp_path, "exact", seconds=0.02, seed=seed)
        pretend(tmp_path, "topk", density=0.001, seconds=0.03, seed=seed)
    pretend(tmp_path, "topk", density=0.01, seconds=0.5)
    (line,) = lines(tmp_path, "step-cifar10", "step")
    assert line.row.ratio == pytest.approx(0.2374 / 0.1264)
    assert line.ours is not None
    assert line.ours.mean == pytest.approx(1.5)
    assert line.ours.how == "paired"
    assert (line.num, line.baseline) == (2, "exact")
    assert line.label == "topk density=0.001"
    assert line.place == "digits, 4 ranks"


def test_a_published_figure_without_own_runs_is_marked(tmp_path: Path) -> None:
    pretend(tmp_path, "exact")
    pretend(tmp_path, "topk", density=0.5)
    (line,) = lines(tmp_path, "step-cifar10", "step")
    assert (line.label, line.ours) == ("", None)


def test_runs_without_a_baseline_have_no_ratio(tmp_path: Path) -> None:
    pretend(tmp_path, "topk", density=0.001)
    (line,) = lines(tmp_path, "step-cifar10", "step")
    assert (line.label, line.baseline, line.ours) == ("topk", "", None)


def test_a_report_shows_the_verified_ratios_that_its_runs_have_too(tmp_path: Path) -> None:
    pretend(tmp_path, "exact", seconds=0.02)
    pretend(tmp_path, "topk", density=0.001, seconds=0.03)
    pretend(tmp_path, "topk", density=0.3, seconds=0.03)
    shown = published_table(the_group(tmp_path))
    lines = [dict(zip(shown.heading, line, strict=True)) for line in shown.lines]
    assert {line["reducer"] for line in lines} == {"topk density=0.001"}
    (step,) = [line for line in lines if (line["table"], line["metric"]) == ("sage step-cifar10", "step")]
    assert (step["published"], step["ours"], step["baseline"]) == ("1.878×", "1.5×", "exact")
    verified = {(row.table, row.metric) for row in find("sage").rows if row.status == "verified"}
    assert {(line["table"].removeprefix("sage "), line["metric"]) for line in lines} <= verified


def test_runs_of_another_workload_are_not_compared(tmp_path: Path) -> None:
    pretend(tmp_path, "exact", workload="digits-ff")
    pretend(tmp_path, "topk", workload="digits-ff", density=0.001)
    (line,) = lines(tmp_path, "step-cifar10", "step")
    assert line.label == ""


def test_the_baseline_is_the_one_that_differs_least(tmp_path: Path) -> None:
    for batch_size, seconds in ((32, 0.02), (64, 0.04)):
        folder = tmp_path / str(batch_size)
        runs = [
            pretend(folder, "exact", seconds=seconds),
            pretend(folder, "topk", seconds=seconds, density=0.001),
        ]
        for run in runs:
            change(run, "config.json", batch_size=batch_size)
    found = lines(tmp_path, "step-cifar10", "step")
    assert len(found) == 2
    assert [line.ours.mean for line in found if line.ours] == pytest.approx([1, 1])


def test_a_profiled_run_gives_its_groups_and_no_ratio(tmp_path: Path) -> None:
    pretend(tmp_path, "exact", profile=True)
    run = pretend(tmp_path, "topk", density=0.001, profile=True)
    for each in tmp_path.iterdir():
        change(each, "manifest.json", links={"alpha_seconds": 1e-4, "bits_per_second": 1e9})
    found = compare(find("sage"), [tmp_path])
    assert {line.label for line in found.lines} == {""}
    (groups,) = [groups for label, groups in found.scales if "topk" in label]
    assert groups.world_size == 4
    assert groups.communication == pytest.approx(2_000_000 / (125e6 * 0.008))  # 1,000,000 parameters in bf16
    assert groups.encoding == pytest.approx(0.003 / 0.008)
    received = json.loads((run / "result.json").read_text())["wire_received_per_step"]
    assert groups.volume == pytest.approx(received / 2_000_000)
    assert groups.latency == pytest.approx(2 * 1e-4 / 0.008)  # 4 MB in fp32: buckets of 1 and 25 MiB


def test_the_command_prints_our_figures_next_to_the_published_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(tmp_path, "exact", seconds=0.02)
    pretend(tmp_path, "topk", density=0.001, seconds=0.03)
    broken = pretend(tmp_path, "bf16")
    (broken / "result.json").write_text("{")
    assert main(["published", "sage", "--runs", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    (line,) = (each for each in output.splitlines() if each.split()[:3] == ["step-cifar10", "topk", "step"])
    assert line.split()[3:5] == ["1.878×", "1.5×"]
    assert f"Left out: {broken}" in output
    assert main(["published", "sage", "--runs", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["beside"]
    (step,) = [each for each in found["lines"] if each["row"]["table"] == "step-cifar10"]
    assert step["ours"]["mean"] == pytest.approx(1.5)
    assert list(found["left_out"]) == [str(broken)]
