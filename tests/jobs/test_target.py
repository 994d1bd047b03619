"""`sage target` fixes targets and tuning from pilot runs on other seeds, and writes them into the sweep."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from commands import call

from sage.config import Config
from sage.jobs.pilot import method
from sage.jobs.sweep import noted, read
from sage.jobs.target_file import Choice, FixedTarget, write
from sage.records.manifest import manifest
from sage.records.record import recorder
from sage.storage import write_json

SWEEP = """# what we compare
workload = "digits-ff"   # small
reducer = ["bf16", "topk"]
seed = [0, 1, 2]
steps = 20

[reducers.topk]
density = 0.01           # 1 %

[pilot]
seed = [100, 101, 102]
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(f'runs = "{tmp_path / "runs"}"\n{SWEEP}')
    return path


def finish(config: Config, final: float | None, *, seconds: float = 0.1, better: str = "max") -> None:
    """Write the files of a finished run with two evaluations, the second of which has the final metric."""
    folder = config.folder
    record = recorder(folder, rank=0)
    write_json(folder / "config.json", config.to_dict())
    write_json(folder / "manifest.json", manifest(config.to_dict(), {}))
    for step in range(20):
        record.step(step=step, epoch=0, loss=1.0, seconds=seconds)
        if step in (9, 19):
            value = final if step == 19 else None
            record.epoch(epoch=1.0, step=step + 1, train_loss=1.0, metrics={"accuracy": value}, seconds=0.0)  # type: ignore[dict-item]
    result: dict[str, Any] = {"metric": "accuracy", "better": better, "steps": 20}
    record.finish(result | {"final": {"accuracy": final}, "seconds": 20 * seconds})


def finish_pilots(path: Path, finals: list[float | None], *, better: str = "max") -> None:
    configs = read(path, pilot=True).configs
    assert len(configs) == len(finals)
    for config, final in zip(configs, finals, strict=True):
        finish(config, final, better=better)


def test_the_pilot_runs_are_those_of_the_reference_on_the_seeds_of_the_pilot(sweep: Path) -> None:
    pilots, runs = read(sweep, pilot=True), read(sweep)
    assert [(each.reducer, each.seed) for each in pilots.configs] == [
        ("bf16", 100),
        ("bf16", 101),
        ("bf16", 102),
    ]
    assert {each.steps for each in pilots.configs} == {20}
    assert len(runs.configs) == 6
    assert (pilots.name, runs.name) == ("sweep-pilot", "sweep")
    assert not {each.folder for each in pilots.configs} & {each.folder for each in runs.configs}


@pytest.mark.parametrize(
    ("keys", "better", "expected"),
    [
        ("", "max", 0.99 * 0.92),
        ("fraction = 0.95", "max", 0.95 * 0.92),
        ("fraction = 1", "max", 0.92),
        ('rule = "worst"', "max", 0.9),
        ("", "min", 1.01 * 0.92),
        ('rule = "worst"', "min", 0.95),
    ],
)
def test_the_target_follows_from_the_finals_of_the_reference_in_the_direction_of_the_metric(
    sweep: Path, keys: str, better: str, expected: float
) -> None:
    sweep.write_text(f"{sweep.read_text()}{keys}\n")
    finish_pilots(sweep, [0.95, 0.9, 0.92], better=better)
    assert call("target", str(sweep)) == 0
    (target,) = tomllib.loads(sweep.read_text())["targets"]
    assert target["value"] == pytest.approx(expected)
    assert (target["workload"], target["world_size"], target["metric"]) == ("digits-ff", 2, "accuracy")
    assert "pilot seeds 100, 101, 102" in target["origin"]
    assert "un-overlapped bf16" in target["origin"]
    assert target["before"] is True


def test_comments_stay_and_writing_again_replaces_what_was_written(sweep: Path) -> None:
    before = sweep.read_text()
    hashes = [config.folder.name for config in read(sweep).configs]
    finish_pilots(sweep, [0.95, 0.9, 0.92])
    assert call("target", str(sweep)) == 0
    once = sweep.read_text()
    assert once.startswith(before)
    assert call("target", str(sweep)) == 0
    assert sweep.read_text() == once
    sweep.write_text(f"{once}\n[slurm]\ntime = 10\n")
    assert call("target", str(sweep)) == 0
    assert sweep.read_text() == f"{once}[slurm]\ntime = 10\n"
    assert [config.folder.name for config in read(sweep).configs] == hashes, "a target renames no run"


@pytest.mark.parametrize("text", ['a"b\\c', "tab\tnewline\n", "\x7f\u2028é😀", "'''"])
def test_every_text_is_written_as_toml_that_reads_back(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text("")
    target = FixedTarget(
        workload=text, world_size=2, metric=text, value=1e-05, reference="r", origin=text, before=False
    )
    choice = Choice(method=text, point={"lr": 1e-07, "milestones": [1.0, 2.5], "amp": "bf16"}, scores=text)
    write(path, [target], [choice])
    found = tomllib.loads(path.read_text())
    assert found == {"targets": [vars(target)], "chosen": [vars(choice)]}


def test_the_report_of_the_sweep_has_the_targets_and_none_of_the_pilot_runs(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_pilots(sweep, [0.95, 0.9, 0.92])
    assert call("target", str(sweep)) == 0
    for config in read(sweep).configs:
        finish(config, 0.93, seconds=0.1 if config.reducer == "bf16" else 0.01)
    capsys.readouterr()
    assert call("report", str(sweep), "--json") == 0
    output = json.loads(capsys.readouterr().out)
    (group,) = output["groups"]
    assert {run["seed"] for run in group["runs"]} == {0, 1, 2}
    assert output["verdict"] == "0 of 1 set-ups pay; 1 smoke test (3 to 5 seeds)."
    found = group["time_to_target"]
    assert found["reference"] == "bf16"
    assert found["target"] == pytest.approx(0.99 * 0.92)
    (topk,) = [each for each in found["settings"] if each["setting"] == "topk"]
    assert topk["time_ratio"]["centre"] == pytest.approx(0.1)
    assert Path(output["files"][0]).parent == sweep.parent / "runs"


def test_a_target_after_the_comparison_needs_late_and_is_marked(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_pilots(sweep, [0.95, 0.9, 0.92])
    for config in read(sweep).configs:
        finish(config, 0.93)
    with pytest.raises(ValueError, match="6 runs of the comparison are finished.*--late"):
        call("target", str(sweep))
    assert "targets" not in tomllib.loads(sweep.read_text())
    assert call("target", str(sweep), "--late") == 0
    capsys.readouterr()
    assert call("report", str(sweep), "--json") == 0
    origin = json.loads(capsys.readouterr().out)["groups"][0]["time_to_target"]["origin"]
    assert origin.endswith("fixed after runs of the comparison were finished")


def test_what_is_missing_is_said_in_one_line(sweep: Path) -> None:
    with pytest.raises(ValueError, match="3 pilot runs are not finished.*sage submit .*--pilot"):
        call("target", str(sweep))
    finish_pilots(sweep, [0.95, None, 0.92])
    with pytest.raises(ValueError, match="accuracy that is not finite"):
        call("target", str(sweep))
    with pytest.raises(ValueError, match="none of the 6 runs of .* has begun"):
        call("report", str(sweep))
    with pytest.raises(ValueError, match="a sweep is reported alone"):
        call("report", str(sweep), str(sweep.parent))
    sweep.write_text('workload = "digits-ff"\nreducer = "topk"\n')
    with pytest.raises(ValueError, match=r"no table \[pilot\]"):
        call("target", str(sweep))
    with pytest.raises(ValueError, match=r"no table \[pilot\]"):
        call("submit", str(sweep), "--pilot", "--dry-run")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[pilot]\nseed = [1, 100]", "has 1, which the comparison uses too"),
        ("[pilot]\nfraction = 0.9", "needs seed"),
        ("[pilot]\nseed = []", "needs seed"),
        ("[pilot]\nseed = [100]\nfraction = 1.5", "allowed is a number in"),
        ('[pilot]\nseed = [100]\nrule = "mean"', "one of 'median', 'worst'"),
        ("[pilot]\nseed = [100]\nseeds = [3]", "no key of .pilot."),
        ("[pilot]\nseed = [100]\n[pilot.grid]\nseed = [1, 2]", "no tuned key"),
        ("[pilot]\nseed = [100]\n[pilot.grids.sage]\nlr = [1]", "no reducer of pilot.grids"),
    ],
)
def test_a_wrong_table_is_refused(sweep: Path, text: str, reason: str) -> None:
    sweep.write_text(sweep.read_text().partition("[pilot]")[0] + text + "\n")
    with pytest.raises(ValueError, match=reason) as error:
        read(sweep)
    assert "\n" not in str(error.value)


def test_a_target_of_another_sweep_is_refused(sweep: Path) -> None:
    finish_pilots(sweep, [0.95, 0.9, 0.92])
    call("target", str(sweep))
    sweep.write_text(sweep.read_text().replace("steps = 20", "steps = 30"))
    finish(read(sweep).configs[0], 0.9)
    with pytest.raises(ValueError, match="no longer a run of this sweep; run `sage target` again"):
        call("report", str(sweep))


def test_a_sweep_that_grows_keeps_the_target_that_was_fixed_before(sweep: Path) -> None:
    finish_pilots(sweep, [0.95, 0.9, 0.92])
    assert call("target", str(sweep)) == 0
    for config in read(sweep).configs:
        finish(config, 0.93)
    sweep.write_text(sweep.read_text().replace('["bf16", "topk"]', '["bf16", "topk", "sage"]'))
    assert call("target", str(sweep)) == 0
    (target,) = read(sweep).targets
    assert target.before
    sweep.write_text(sweep.read_text().replace("[pilot]", "[pilot]\nfraction = 0.5"))
    with pytest.raises(ValueError, match="not fixed beforehand"):
        call("target", str(sweep))
    assert call("target", str(sweep), "--late") == 0
    (target,) = read(sweep).targets
    assert not target.before


# Tuning.

GRID = "\n[pilot.grid]\nlr = [0.05, 0.1, 0.2]\n"


def test_every_method_is_tuned_over_the_same_number_of_points(sweep: Path) -> None:
    sweep.write_text(sweep.read_text() + GRID)
    pilots = read(sweep, pilot=True).configs
    assert len(pilots) == 2 * 3 * 3
    assert {(each.reducer, each.lr) for each in pilots} == {
        (reducer, lr) for reducer in ("bf16", "topk") for lr in (0.05, 0.1, 0.2)
    }
    for text in (f"{GRID}[pilot.grids.topk]\nlr = [0.1]\n", GRID.replace("[0.05,", "[1, 2, 3, 0.05,")):
        sweep.write_text(sweep.read_text().partition("\n[pilot.grid]")[0] + text)
        with pytest.raises(ValueError, match="the same number for every method, at most 5") as error:
            read(sweep)
        assert "\n" not in str(error.value)


def test_the_comparison_runs_with_the_point_that_was_best_on_the_pilot_seeds(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.write_text(f"{sweep.read_text()}{GRID}[pilot.grids.topk]\nlr = [0.1, 0.3, 0.9]\n")
    with pytest.raises(ValueError, match="no tuning point is chosen for digits-ff-bf16-.*sage submit"):
        read(sweep)
    assert set(noted(sweep)[0]) == {each.folder.name for each in read(sweep, pilot=True).configs}
    best = {"bf16": 0.2, "topk": 0.3}
    for config in read(sweep, pilot=True).configs:
        finish(config, 0.95 if config.lr == best[config.reducer] else 0.9)
    assert call("target", str(sweep)) == 0
    output = capsys.readouterr().out
    assert "lr 0.3 (of median accuracy lr 0.1: 0.9; lr 0.3: 0.95; lr 0.9: 0.9)" in output
    found = read(sweep)
    assert set(noted(sweep)[0]) == {each.folder.name for each in found.configs}
    assert {(each.reducer, each.lr) for each in found.configs} == set(best.items())
    assert [each.seed for each in found.configs] == [0, 1, 2, 0, 1, 2]
    (target,) = found.targets
    assert target.value == pytest.approx(0.99 * 0.95), "the target is that of the tuned reference"
    chosen = tomllib.loads(sweep.read_text())["chosen"]
    assert {each["method"] for each in chosen} == {method(each) for each in read(sweep, untuned=True).configs}
    for config in found.configs:
        finish(config, 0.95)
    capsys.readouterr()
    assert call("report", str(sweep), "--json") == 0
    judged = json.loads(capsys.readouterr().out)["groups"][0]["time_to_target"]
    assert judged["reference"] == "bf16"
    points = "bf16 lr 0.2; topk lr 0.3"
    assert judged["tuning"] == f"Tuned on the pilot seeds over 3 points for every method: {points}."


def test_of_equal_points_the_first_of_the_grid_is_chosen_and_a_diverged_one_never(sweep: Path) -> None:
    sweep.write_text(sweep.read_text() + GRID)
    for config in read(sweep, pilot=True).configs:
        finish(config, None if config.lr == 0.05 else 0.9)
    assert call("target", str(sweep)) == 0
    assert {config.lr for config in read(sweep).configs} == {0.1}


def test_a_damaged_table_is_named(sweep: Path) -> None:
    finish_pilots(sweep, [0.95, 0.9, 0.92])
    call("target", str(sweep))
    sweep.write_text(sweep.read_text().replace("world_size = 2", 'world_size = "two"'))
    with pytest.raises(ValueError, match=r"'world_size' is 'two'.*run `sage target` again"):
        read(sweep)


def test_an_overlapped_reference_is_preferred(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sage.jobs import pilot

    sweep.write_text(sweep.read_text().replace('["bf16", "topk"]', '["topk", "exact", "bf16"]'))
    configs = read(sweep).configs
    ((_, first),) = pilot.reference(configs).items()
    assert first.reducer == "bf16"
    monkeypatch.setattr(pilot, "is_overlapped", lambda config: config["reducer"] == "exact")
    ((_, first),) = pilot.reference(configs).items()
    assert first.reducer == "exact"
