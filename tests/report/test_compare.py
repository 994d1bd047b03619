"""`sage compare` pairs runs by configuration and seed; its exit status is 1 for a regression only."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
from commands import call
from made_up_runs import change, pretend

from sage.cli.main import main
from sage.report.compare.pairs import paired
from sage.report.compare.step_ratio import median_interval
from sage.report.runs import read_runs

Comparison = dict[str, Any]


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal result sets: exact and topk, three seeds each, with seeds of different speed."""
    for seed in range(3):
        pretend(tmp_path / "a", "exact", seed=seed, seconds=0.02 + 0.001 * seed)
        pretend(tmp_path / "a", "topk", seed=seed, seconds=0.02 + 0.001 * seed, density=0.01)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    return tmp_path / "a", tmp_path / "b"


def compared(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> Comparison:
    capsys.readouterr()
    assert main(["compare", *argv, "--json"]) == status
    found: Comparison = json.loads(capsys.readouterr().out)
    assert found["status"] == status
    return found


def of(found: Comparison, reducer: str) -> Comparison:
    (one,) = [each for each in found["configurations"] if reducer in each["label"]]
    assert isinstance(one, dict)
    return one


def slower(runs: Path, reducer: str, factor: float) -> None:
    """Multiply the recorded step times of a reducer's runs."""
    for path in runs.glob(f"*-{reducer}-*/metrics.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            if record["kind"] == "step":
                record["seconds"] *= factor * (1 + 0.01 * (record["step"] % 3))
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


def finals(runs: Path, reducer: str, value: dict[int, float | None]) -> None:
    for folder in runs.glob(f"*-{reducer}-*"):
        seed = json.loads((folder / "config.json").read_text())["seed"]
        change(folder, "result.json", final={"accuracy": value[seed]})


def test_a_set_is_the_same_as_its_copy(sets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = map(str, sets)
    assert call("compare", a, b) == 0
    shown = capsys.readouterr().out
    assert "0 of 2 configurations are worse in B. Step time, B over A: 1.000×" in shown
    found = compared(capsys, a, b)
    for each in found["configurations"]:
        outcomes = {name: each[name]["outcome"] for name in ("result", "bytes", "time", "accuracy")}
        assert outcomes == dict.fromkeys(outcomes, "same")
        assert each["seeds"] == [0, 1, 2]
    assert found["only_a"] == found["only_b"] == []
    assert found["left_out"] == {}


def test_one_byte_more_in_a_step_is_a_regression(
    sets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = sets
    folder = next(b.glob("*-topk-*"))
    payload = json.loads((folder / "result.json").read_text())["payload_per_step"]
    change(folder, "result.json", payload_per_step=payload | {"indices": payload["indices"] + 1})
    found = compared(capsys, str(a), str(b), status=1)
    assert of(found, "topk")["regressions"] == ["bytes"]
    assert of(found, "topk")["bytes"]["text"].startswith("payload indices: ")
    assert of(found, "exact")["regressions"] == []


def test_a_time_is_a_regression_if_the_interval_excludes_1_and_the_ratio_exceeds_the_factor(
    sets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = sets
    slower(b, "topk", 1.2)
    found = compared(capsys, str(a), str(b), status=1)
    one = of(found, "topk")
    assert one["regressions"] == ["time"]
    low, high = one["step_ratio_interval"]
    assert 1 < low <= one["step_ratio"] <= high
    assert one["step_ratio"] == pytest.approx(1.2 * 1.01, rel=1e-6)
    assert of(found, "exact")["time"]["outcome"] == "same"
    assert of(compared(capsys, str(a), str(b), "--factor", "1.3"), "topk")["time"]["outcome"] == "same"
    assert of(compared(capsys, str(b), str(a)), "topk")["time"]["outcome"] == "better"


def test_a_mean_slowdown_within_the_spread_of_seeds_is_not_a_regression(
    sets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = sets
    for folder in b.glob("*-topk-*"):
        seed = json.loads((folder / "config.json").read_text())["seed"]
        path = folder / "metrics.jsonl"
        factor = (0.8, 1.3, 1.6)[seed]
        path.write_text(path.read_text().replace('"seconds": 0.02', f'"seconds": {0.02 * factor:.4f}'))
    one = of(compared(capsys, str(a), str(b)), "topk")
    assert one["step_ratio"] > 1.05
    assert one["step_ratio_interval"][0] < 1
    assert one["time"]["outcome"] == "same"


def test_one_seed_is_judged_by_the_spread_over_its_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        pretend(tmp_path / name, "topk", density=0.01)
    slower(tmp_path / "b", "topk", 1.2)
    (one,) = compared(capsys, str(tmp_path / "a"), str(tmp_path / "b"), status=1)["configurations"]
    assert one["regressions"] == ["time"]
    assert "over the steps of one seed" in one["time"]["text"]
    assert one["accuracy"]["outcome"] == "same"


def test_the_interval_of_a_median_covers_it_in_at_least_95_of_100_draws() -> None:
    random = numpy.random.default_rng(3)
    for num in (6, 7, 40, 1500):
        draws = 1000 if num > 100 else 4000
        covered = 0
        for values in random.exponential(size=(draws, num)):
            interval = median_interval(values)
            assert interval is not None
            covered += interval[0] <= numpy.log(2) <= interval[1]
        assert covered / draws > 0.95 - 3 * (0.95 * 0.05 / draws) ** 0.5
        # It is not wider than it needs to be: the next narrower one would cover too seldom.
        assert covered / draws < (0.99 if num < 40 else 0.98)
    assert median_interval(numpy.arange(5.0)) is None


def test_the_metric_is_worse_if_its_loss_exceeds_the_spread_of_seeds(
    sets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = sets
    finals(a, "topk", {0: 0.90, 1: 0.91, 2: 0.92})
    finals(b, "topk", {0: 0.85, 1: 0.861, 2: 0.87})
    found = compared(capsys, str(a), str(b), status=1)
    one = of(found, "topk")
    assert one["regressions"] == ["accuracy"]
    assert one["metric_difference"] == pytest.approx(-0.04966666, rel=1e-4)
    assert of(compared(capsys, str(b), str(a)), "topk")["accuracy"]["outcome"] == "better"
    finals(b, "topk", {0: 0.899, 1: 0.909, 2: 0.919})
    assert of(compared(capsys, str(a), str(b)), "topk")["accuracy"]["outcome"] == "same"
    finals(b, "topk", {0: 0.70, 1: 0.95, 2: 0.88})
    assert of(compared(capsys, str(a), str(b)), "topk")["accuracy"]["outcome"] == "same"


def test_a_run_that_diverges_or_is_not_finished_in_b_is_a_regression(
    sets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = sets
    finals(b, "topk", {0: None, 1: 0.9, 2: 0.9})
    lost = next(b.glob("*-exact-*"))
    (lost / "result.json").unlink()
    (lost / "failure.json").write_text('{"error": "rank 1: out of memory"}')
    found = compared(capsys, str(a), str(b), status=1)
    assert of(found, "topk")["regressions"] == ["accuracy"]
    assert of(found, "exact")["regressions"] == ["result"]
    assert "out of memory" in of(found, "exact")["result"]["text"]
    assert len(of(found, "exact")["seeds"]) == 2


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("manifest.json", {"hosts": ["node7"]}, "hosts: "),
        ("manifest.json", {"versions": {"torch": "2.99"}}, "torch: "),
        ("manifest.json", {"links": {"alpha_seconds": 1e-3, "bits_per_second": 1e9}}, "measured in B only"),
    ],
)
def test_times_of_other_machines_versions_or_links_are_not_comparable_unless_forced(
    sets: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    name: str,
    values: dict[str, Any],
    reason: str,
) -> None:
    a, b = sets
    slower(b, "topk", 2)
    for folder in b.iterdir():
        change(folder, name, **values)
    found = compared(capsys, str(a), str(b))
    for each in found["configurations"]:
        assert each["time"]["outcome"] == "not comparable"
        assert reason in each["time"]["text"]
    assert "2 have times that are not comparable" in found["headline"]
    assert of(compared(capsys, str(a), str(b), "--force", status=1), "topk")["regressions"] == ["time"]


def test_links_differ_only_beyond_what_a_probe_varies(
    sets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = sets

    def outcome(bits: float, alpha: float, varies: float = 0.0) -> str:
        for runs, link in ((a, (1e9, 1e-4)), (b, (bits, alpha))):
            for folder in runs.iterdir():
                seed = json.loads((folder / "config.json").read_text())["seed"]
                factor = 1 + varies * (seed - 1)
                links = {"bits_per_second": factor * link[0], "alpha_seconds": link[1]}
                change(folder, "manifest.json", links=links)
        text = of(compared(capsys, str(a), str(b)), "topk")["time"]
        assert isinstance(text["outcome"], str)
        return text["outcome"]

    assert outcome(1.2e9, 1.9e-4) == "same"
    assert outcome(1.3e9, 1e-4) == "not comparable"
    assert outcome(1e9, 2.1e-4) == "not comparable"
    # 0.8 to 1.2 and 1.04 to 1.56 Gbit/s overlap; 0.9 to 1.1 and 1.17 to 1.43 do not.
    assert outcome(1.3e9, 1e-4, varies=0.2) == "same"
    assert outcome(1.3e9, 1e-4, varies=0.1) == "not comparable"


def test_unpaired_and_damaged_runs_are_listed(
    sets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = sets
    extra = pretend(b, "topk", density=0.1)
    damaged = next(b.glob("*-exact-*"))
    (damaged / "result.json").write_text("{")
    found = compared(capsys, str(a), str(b))
    assert found["only_b"] == [str(extra)]
    assert found["only_a"] == [str(a / damaged.name)]
    assert list(found["left_out"]) == [str(damaged)]
    assert call("compare", str(a), str(b)) == 0
    lines = capsys.readouterr().out.splitlines()
    (left_out,) = [line for line in lines if line.startswith("Left out: ")]
    assert damaged.name in left_out
    assert any(line.startswith(f"Only in B: {extra}") for line in lines)


def test_wrong_input_is_one_line_and_status_2(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = sets
    other = tmp_path / "other"
    pretend(other, "topk", density=0.5)
    twice = tmp_path / "twice"
    for name in ("x", "y"):
        shutil.copytree(a, twice / name)
    broken = tmp_path / "broken"
    shutil.copytree(other, broken)
    for folder in broken.iterdir():
        (folder / "result.json").write_text("{")
    for argv, words in (
        ((str(a), str(tmp_path / "absent")), "absent is not a folder"),
        ((str(a), str(other)), "has a counterpart"),
        ((str(twice), str(b)), "A has two runs of one configuration and seed"),
        ((str(a), str(broken)), "B has no run that can be read"),
        ((str(a), str(b), "--factor", "0.9"), "factor is 0.9"),
        ((str(a),), "missing argument"),
    ):
        assert main(["compare", *argv]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
        assert words in captured.err


def test_pairs_have_the_same_settings_but_for_the_seed_and_the_place(sets: tuple[Path, Path]) -> None:
    a, b = sets
    pretend(b, "topk", density=0.1, seed=1)
    (ours, _), (theirs, _) = read_runs([a]), read_runs([b])
    found = paired(ours, theirs)
    assert [sorted(each.pairs) for each in found.pairings] == [[0, 1, 2]] * 2
    for pairing in found.pairings:
        for seed, (one, other) in pairing.pairs.items():
            assert one.folder.name == other.folder.name
            assert one.config["seed"] == other.config["seed"] == seed
    assert [run.config["reducer_options"] for run in found.only_b] == [{"density": 0.1}]
