"""A setting pays if it reaches the target before the overlapped reference; the table has all settings."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import change, pretend, written

from sage.report.groups import Group, grouped
from sage.report.report import main
from sage.report.runs import read_runs
from sage.report.tables import tables
from sage.report.time_to_target.targets import Target, Targets
from sage.report.time_to_target.verdicts import first_line, judge

KEY = ("digits", 4, "accuracy")


def targets(value: float = 0.85) -> Targets:
    return {KEY: Target(value, "the worst final of overlapped bf16 over pilot seeds 100, 101, 102")}


def dense(
    runs: Path, seeds: int, *, reducer: str = "bf16", mount: str | None = "ddp", **options: Any
) -> None:
    for seed in range(seeds):
        folder = pretend(runs, reducer, seed=seed, seconds=0.02 + 0.0005 * seed, **options)
        if mount is not None:
            change(folder, "config.json", mount=mount)


def group(runs: Path, value: float = 0.85) -> Group:
    (found,) = grouped(read_runs([runs])[0], targets(value))
    return found


def table(found: Group) -> dict[str, dict[str, str]]:
    shown = tables(found)[0]
    assert shown.title == "Time to target"
    return {line[0]: dict(zip(shown.heading, line, strict=True)) for line in shown.lines}


def words(found: Group) -> dict[str, str]:
    return {label: cells["verdict"] for label, cells in table(found).items()}


def test_six_seeds_that_are_all_sooner_pay_and_later_ones_do_not(tmp_path: Path) -> None:
    dense(tmp_path, 6)
    for seed in range(6):
        pretend(tmp_path, "topk", seed=seed, density=0.01, seconds=0.002)
        pretend(tmp_path, "sage", seed=seed, density=0.01, seconds=0.05)
        pretend(tmp_path, "dgc", seed=seed, density=0.01, seconds=0.006 if seed % 2 else 0.03)
    found = group(tmp_path)
    assert words(found) == {
        "bf16 mount=ddp": "reference", "dgc": "undecided", "sage": "does not pay", "topk": "pays"
    }  # fmt: skip
    line = table(found)["topk"]
    # The reference reaches the target at the second evaluation, top-k at the third.
    assert (line["steps"], table(found)["bf16 mount=ddp"]["steps"]) == ("30", "20")
    assert (line["steps ratio"], line["its interval"]) == ("1.5×", "1.5× to 1.5×")
    assert (line["reached"], line["pairs"]) == ("6 of 6", "6")
    assert first_line([found]) == "1 of 3 set-ups pay; 1 does not, 1 undecided."


def test_a_miss_is_infinite_and_stays_in_the_table(tmp_path: Path) -> None:
    dense(tmp_path, 6)
    for seed in range(6):
        pretend(tmp_path, "topk", seed=seed, density=0.01, seconds=0.002, diverges=seed == 2)
        pretend(tmp_path, "sage", seed=seed, density=0.01, seconds=0.001, diverges=True)
    found = group(tmp_path)
    line = table(found)["topk"]
    assert line["reached"] == "5 of 6"
    assert line["seconds"].endswith("to ∞)")
    assert line["95 % interval"].endswith("to ∞")
    assert words(found) == {"bf16 mount=ddp": "reference", "sage": "does not pay", "topk": "undecided"}
    assert table(found)["sage"]["time ratio"] == "∞"


def test_three_seeds_are_a_smoke_test_even_if_they_agree(tmp_path: Path) -> None:
    dense(tmp_path, 3)
    for seed in range(3):
        pretend(tmp_path, "topk", seed=seed, density=0.01, seconds=0.001)
    for seed in range(2):
        pretend(tmp_path, "sage", seed=seed, density=0.01, seconds=0.001)
    found = group(tmp_path)
    assert words(found) == {"bf16 mount=ddp": "reference", "sage": "undecided", "topk": "smoke"}
    assert first_line([found]) == "0 of 2 set-ups pay; 1 undecided, 1 smoke test (3 to 5 seeds)."


def test_only_seeds_that_both_have_are_paired(tmp_path: Path) -> None:
    dense(tmp_path, 3)
    for seed in range(2, 9):
        pretend(tmp_path, "topk", seed=seed, density=0.01, seconds=0.001)
    line = table(group(tmp_path))["topk"]
    assert (line["reached"], line["pairs"], line["verdict"]) == ("7 of 7", "1", "undecided")
    assert line["95 % interval"] == "none: one pair"


def test_the_reference_overlaps_if_any_dense_run_does_and_the_head_notes_if_none_does(
    tmp_path: Path,
) -> None:
    def reference(name: str) -> tuple[str | None, str]:
        found = group(tmp_path / name)
        judged = judge(found)
        assert judged is not None
        label = None if judged.reference is None else judged.reference.label
        return label, tables(found)[0].note

    pretend(tmp_path / "none", "topk", density=0.01)
    assert reference("none")[0] is None
    assert "no dense run" in reference("none")[1]
    dense(tmp_path / "whole", 2, mount=None)
    dense(tmp_path / "whole", 2, reducer="exact", mount=None)
    label, head = reference("whole")
    assert label == "bf16"
    assert head.startswith("Reference: bf16 (n = 2), which is un-overlapped")
    dense(tmp_path / "both", 2, mount=None, lr=0.1)
    dense(tmp_path / "both", 2, reducer="exact")
    label, head = reference("both")
    assert label == "exact mount=ddp"
    assert head.startswith("Reference: exact mount=ddp (n = 2), which overlaps")
    assert "Target: accuracy ≥ 0.85 (the worst final of overlapped bf16" in head


def test_of_two_overlapped_references_the_faster_one_counts(tmp_path: Path) -> None:
    dense(tmp_path, 2)
    for seed in range(2):
        change(pretend(tmp_path, "exact", seed=seed, seconds=0.001), "config.json", mount="ddp")
    judged = judge(group(tmp_path))
    assert judged is not None
    assert judged.reference is not None
    assert judged.reference.label == "exact"


def test_dense_methods_have_a_verdict_and_are_not_counted(tmp_path: Path) -> None:
    dense(tmp_path, 6)
    for seed in range(6):
        pretend(tmp_path, "exact", seed=seed, seconds=0.1)
        pretend(tmp_path, "topk", seed=seed, density=0.01, seconds=0.1)
    found = group(tmp_path)
    assert words(found)["exact"] == "does not pay"
    assert first_line([found]) == "0 of 1 set-ups pay; 1 does not."


def test_without_a_target_there_is_no_verdict_and_a_runs_own_target_counts(tmp_path: Path) -> None:
    folders = [pretend(tmp_path, "bf16"), pretend(tmp_path, "topk", density=0.01)]
    (plain,) = grouped(read_runs([tmp_path])[0])
    assert judge(plain) is None
    assert first_line([plain]) == ""
    assert "Time to target" not in {each.title for each in tables(plain)}
    for folder in folders:
        change(folder, "config.json", target=0.9)
    (own,) = grouped(read_runs([tmp_path])[0])
    assert own.target is not None
    assert own.target.value == 0.9
    assert judge(own) is not None


def test_the_report_begins_with_the_verdict_and_has_the_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    dense(runs, 6)
    for seed in range(6):
        pretend(runs, "topk", seed=seed, density=0.01, seconds=0.001)
        pretend(runs, "sage", seed=seed, density=0.01, seconds=0.001, diverges=seed > 3)
    assert main([runs], tmp_path / "out", targets=targets()) == 0
    verdict = "1 of 2 set-ups pay; 1 undecided."
    assert capsys.readouterr().out.splitlines()[0] == verdict
    text, page, lines = written(tmp_path / "out", "md", "html", "csv")
    assert text.splitlines()[2] == verdict
    assert f"<p><strong>{verdict}</strong></p>" in page
    assert page.index(verdict) < page.index("<nav")
    assert "Time to target, relative to the reference" in page
    assert "### Time to target" in text
    rows = list(csv.DictReader(lines.splitlines()))
    missed = [row for row in rows if row["seconds_to_target"] == "inf"]
    assert [row["reducer"] for row in missed] == ["sage", "sage"]
    assert {row["target"] for row in rows} == {"0.85"}
    capsys.readouterr()
    assert main([runs], tmp_path / "out", targets=targets(), as_json=True) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["verdict"] == verdict
    found = {each["setting"]: each for each in output["groups"][0]["time_to_target"]["settings"]}
    assert found["sage"]["time_ratio"]["interval"][1] is None
    assert found["sage"]["profile_score"] == pytest.approx(4 / 6)
    assert found["topk"]["profile_score"] == 1
    assert math.isclose(found["topk"]["steps_ratio"]["centre"], 1.5)


@pytest.mark.parametrize("value", [0.5, 0.999])
def test_a_target_that_all_or_none_reach_has_a_table_too(tmp_path: Path, value: float) -> None:
    dense(tmp_path / "runs", 3)
    for seed in range(3):
        pretend(tmp_path / "runs", "topk", seed=seed, density=0.01)
    found = group(tmp_path / "runs", value)
    line = table(found)["topk"]
    if value > 0.9:
        assert (line["reached"], line["seconds"], line["verdict"]) == ("0 of 3", "∞ (∞ to ∞)", "undecided")
        assert line["95 % interval"] == "none: no run reached it"
    assert main([tmp_path / "runs"], tmp_path / "out", targets=targets(value)) == 0
