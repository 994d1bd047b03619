"""Tests of the settings of local updates and of their presets."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from sage.cli.main import main
from sage.cli.run import parse_run
from sage.config import Config, load
from sage.config.local_presets import KEYS, PRESETS, Preset, with_preset
from sage.jobs.sweep import read

DILOCO = {"local_steps": 500, "outer_optimizer": "nesterov", "outer_lr": 0.7, "outer_momentum": 0.9}


def of(config: Config) -> dict[str, Any]:
    """The settings of local updates that differ from those of a run without them."""
    return {name: value for name, default in KEYS.items() if (value := getattr(config, name)) != default}


def test_every_preset_has_settings() -> None:
    assert tuple(PRESETS) == get_args(Preset)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_a_run_whose_configuration_shows_its_settings(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "gpt-topics", "--local", name, "--print-config"]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    settings = with_preset({"local": name})
    assert {key: config.get(key, KEYS.get(key)) for key in settings} == settings


def test_the_presets_have_the_published_settings() -> None:
    assert {**of(parse_run(["digits-ff", "--local", "diloco"]))} == {"local": "diloco", **DILOCO}
    muloco = parse_run(["gpt-topics", "--local", "muloco"])
    assert (muloco.local_steps, muloco.outer_lr, muloco.outer_momentum) == (30, 0.8, 0.9)
    assert (muloco.optimizer, muloco.memory_beta) == ("muon", 0.9)
    sparse = parse_run(["digits-ff", "--local", "sparseloco"])
    assert (sparse.reducer, sparse.memory_beta, sparse.local_steps) == ("sparseloco", 0.95, 30)
    assert (sparse.outer_optimizer, sparse.outer_lr, sparse.outer_momentum) == ("sgd", 1.0, 0.0)
    streaming = parse_run(["digits-ff", "--local", "streaming-diloco"])
    assert (streaming.reducer, streaming.local_steps, streaming.outer_lr) == ("fp4", 30, 0.4)
    assert (streaming.fragment_sync_delay, streaming.fragment_update_alpha) == (5, 0.5)
    des = parse_run(["gpt-topics", "--local", "des-loc"])
    assert (des.local_steps, des.first_moment_steps, des.second_moment_steps) == (32, 96, 192)
    slowmo = parse_run(["digits-ff", "--local", "slowmo"])
    assert (slowmo.local_steps, slowmo.outer_lr, slowmo.outer_momentum) == (48, 1.0, 0.5)
    assert slowmo.outer_by_lr
    post = parse_run(["digits-ff", "--local", "post-localsgd"])
    assert (post.local_steps, post.local_from, post.outer_optimizer) == (4, 100, None)


def test_flags_and_keys_override_the_preset_of_the_same_place_and_of_those_below(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('local = "diloco"\nouter_lr = 0.5\nlocal_steps = 30\n')
    file = {**DILOCO, "local": "diloco", "outer_lr": 0.5, "local_steps": 30}
    assert of(load("digits-ff", file=path)) == file
    flags = ["digits-ff", "--config", str(path)]
    assert of(parse_run([*flags, "--local-steps", "10"])) == {**file, "local_steps": 10}
    assert of(parse_run([*flags, "--local", "localsgd"])) == {"local": "localsgd", "local_steps": 8}
    assert of(parse_run([*flags, "--local", "localsgd", "--local-steps", "2"])) == {
        "local": "localsgd",
        "local_steps": 2,
    }
    assert of(parse_run([*flags, "--local", "none"])) == {}


def test_the_reducer_of_a_preset_has_its_options_and_gives_way_to_one_of_the_same_place(
    tmp_path: Path,
) -> None:
    given = parse_run(["digits-ff", "--local", "sparseloco", "--mean", "senders"])
    assert (given.reducer, given.reducer_options["mean"]) == ("sparseloco", "senders")
    other = parse_run(["digits-ff", "--local", "sparseloco", "--reducer", "topk", "--memory-beta", "1"])
    assert (other.reducer, other.local_steps, other.memory_beta) == ("topk", 30, 1.0)
    path = tmp_path / "mine.toml"
    path.write_text('local = "sparseloco"\n[reducers.sparseloco]\ndensity = 0.03\n')
    of_file = load("digits-ff", file=path)
    assert (of_file.reducer, of_file.reducer_options["density"]) == ("sparseloco", 0.03)
    assert load("digits-ff", file=path, overrides={"reducer": "exact"}).reducer == "exact"


def test_the_outer_optimiser_has_its_defaults_only_if_there_is_one() -> None:
    assert of(parse_run(["digits-ff", "--local-steps", "4"])) == {"local_steps": 4}
    sgd = of(parse_run(["digits-ff", "--local-steps", "4", "--outer-optimizer", "sgd"]))
    assert sgd == {"local_steps": 4, "outer_optimizer": "sgd", "outer_lr": 1.0, "outer_momentum": 0.0}


def test_a_sweep_expands_presets_and_steps(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(
        'workload = "digits-ff"\nreducer = ["exact", "topk"]\nseed = [0, 1]\nlocal = ["diloco", "localsgd"]\n'
        "[[grid]]\nlocal_steps = [10, 20]\n"
    )
    configs = read(path).configs
    assert len(configs) == 16
    assert {(config.local, config.local_steps, config.outer_lr) for config in configs} == {
        ("diloco", 10, 0.7),
        ("diloco", 20, 0.7),
        ("localsgd", 10, None),
        ("localsgd", 20, None),
    }


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--mount ddp", "mount is 'ddp', which reduces gradients in every backward, but local_steps is 4"),
        ("--mount fsdp", "mount is 'fsdp', which reduces gradients in every backward, but local_steps is 4"),
        (
            "--optimizer onebit-adam --freeze-step 2 --reducer exact",
            "which communicates in every step, but local_steps is 4",
        ),
        (
            "--local-steps none --local-from 3",
            "local_from is 3, but without local_steps every step communicates",
        ),
        ("--local-steps 0", "--local-steps is 0; allowed is a whole number in [1, inf)"),
        ("--quorum 3", "quorum is 3, with world_size 2 and local_steps 4; it needs local updates"),
        ("--quorum 2 --workers-in-process", "quorum is 2, but only ranks that sage run starts itself"),
        ("--quorum 1 --hierarchy node", "needs as many ranks on each node, also after a loss"),
        ("--outer-lr 0.5", "outer_lr is 0.5, but there is no outer optimiser: add --outer-optimizer sgd"),
        ("--outer-by-lr", "outer_by_lr is True, but there is no outer optimiser"),
        (
            "--local-steps none --fragments 2",
            "fragments is 2, but without local_steps every step communicates",
        ),
        (
            "--first-moment-steps 8",
            "first_moment_steps is 8, but optimizer is 'sgd', which does not",
        ),
        ("--fragments 2 --hierarchy node", "fragments are exchanged directly between all ranks"),
        ("--fragments 5", "fragments is 5, but there are 4 steps in which to exchange one each"),
        (
            "--fragment-sync-delay 4",
            "fragment_sync_delay is 4, but a fragment is exchanged again after 4 steps",
        ),
        ("--fragments 2 --outer-optimizer sgd --outer-by-lr", "which is SlowMo's and has no fragments"),
        (
            "--outer-optimizer adam",
            "--outer-optimizer is 'adam'; allowed is one of 'sgd', 'nesterov', or none",
        ),
        ("--local dilocco", "--local is 'dilocco'; allowed is one of 'localsgd', 'post-localsgd'"),
        (
            "--memory momentum --momentum 0 --outer-optimizer sgd --outer-momentum 0.9",
            "the momentum of pseudo-gradients would be applied twice",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_one_line(
    argv: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "digits-ff", "--local-steps", "4", *argv.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize("command", ["calibrate", "advise"])
def test_what_measures_single_reductions_refuses_local_updates(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("local_steps = 4\n")
    assert main([command, "digits-ff", "--config", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the workload has local_steps 4; {command} measures and predicts runs that reduce" in line
