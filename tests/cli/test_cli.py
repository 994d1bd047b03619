"""Tests of the command line: the output of each command, where option values go, and the errors."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sage import registry
from sage.cli.bench import BENCHES
from sage.cli.main import COMMANDS, main
from sage.config import Config, workloads

Sage = Callable[..., subprocess.CompletedProcess[str]]


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """The configuration that `sage run ... --print-config` prints."""
    assert main(["run", *argv, "--print-config"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["folder"] == str(Config.from_dict(output["config"]).folder)
    config: dict[str, Any] = output["config"]
    return config


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The error of a refused command line: one line on stderr."""
    status = main(argv)
    output = capsys.readouterr()
    assert status == 2
    text = output.err + output.out
    assert "Traceback" not in text
    assert output.out == ""
    assert len(text.splitlines()) == 1
    return text


def asks(monkeypatch: pytest.MonkeyPatch, function: str) -> list[Any]:
    """Replace a function, and return the list of the arguments of its calls."""
    asked: list[Any] = []

    def collect(*given: Any, **_: Any) -> int:
        asked.append(given)
        return 0

    monkeypatch.setattr(function, collect)
    return asked


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"]):
        assert main(argv) == 0
        output = capsys.readouterr().out
        assert all(f"\n  {name} " in output for name in COMMANDS)


def test_list_shows_every_part_and_workload_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for kind in registry.EXPORTS:
        for name in registry.names(kind):
            assert [line for line in lines if line.split() == [name, *registry.summary(kind, name).split()]]
    for name in workloads():
        assert [line for line in lines if line.startswith(f"  {name} ") and len(line.split()) > 3]


def test_run_without_a_workload_uses_the_default_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys) == printed(capsys, "digits")


def test_flags_reach_the_run_and_each_part(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = printed(
        capsys, "resnet20-cifar10", "--reducer", "topk", "--density", "0.25", "--world-size", "4",
        "--model.depth=56", "--data.limit-train", "100", "--milestones", "1", "2.5", "--profile",
        "--no-decay-norms", "--clip_local", "1", "--steps", "None", "--runs", str(tmp_path),
    )  # fmt: skip
    assert config["workload"] == "resnet20-cifar10"
    assert config["reducer"] == "topk"
    assert config["reducer_options"]["density"] == 0.25
    assert config["model_options"]["depth"] == 56
    assert config["data_options"]["limit_train"] == 100
    assert config["milestones"] == [1.0, 2.5]
    assert (config["world_size"], config["steps"], config["clip_local"]) == (4, None, 1.0)
    assert (config["profile"], config["decay_norms"]) == (True, False)
    assert config["runs"] == str(tmp_path)


def test_the_command_line_overrides_the_file_and_the_file_the_workload(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "x.toml"
    file.write_text('reducer = "gtopk"\nbatch_size = 7\nseed = 3\nreducers.gtopk.density = 0.5\n')
    config = printed(capsys, "digits", "--config", str(file), "--seed", "4")
    assert (config["reducer"], config["batch_size"], config["seed"]) == ("gtopk", 7, 4)
    assert config["reducer_options"]["density"] == 0.5
    assert printed(capsys, "digits", "--config", str(file), "--reducer", "exact")["reducer_options"] == {}


def test_a_workload_may_be_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('task = "classify"\nmodel = "feedforward"\ndata = "digits"\n')
    assert printed(capsys, str(tmp_path / "own.toml"))["workload"] == "own"


@pytest.mark.parametrize(
    "argv",
    [
        *([name, "--help"] for name in COMMANDS),
        *([name, "-h"] for name in COMMANDS),
        ["data", "list", "--help"],
        ["data", "prepare", "--help"],
        ["data", "prepare", "digits", "--help"],
        ["conform", "topk", "--help"],
        *(["bench", name, "--help"] for name in BENCHES),
    ],
)
def test_every_command_prints_its_help(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert main(argv) == 0
    output = capsys.readouterr()
    assert output.out.startswith("Usage: sage")
    assert output.err == ""


def test_the_flags_of_a_run_are_listed_in_the_groups_of_its_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "--reducer", "topk", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    groups = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert groups == [
        "Arguments:", "Command:", "Parts:", "Scale:", "Optimisation:", "Local updates:", "Reduction:",
        "Record:", "Files and limits: these cannot change the result:", "Optimisers that communicate:",
        "Options of the reducer topk:", "Options of the model resnet:", "Options of the data set digits:",
    ]  # fmt: skip
    assert next(i for i, line in enumerate(lines) if "--memory-beta" in line) > lines.index("Reduction:")


def test_run_help_shows_the_runs_flags_and_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "digits", "--reducer", "topk", "--help"]) == 0
    message = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for flag in ("--density", "--model.depth", "--data.limit-train", "--lr-scale", "--profile, --no-profile"):
        assert flag in message
    assert "The learning rate, before --lr-scale and the schedule. (default: 0.1)" in message
    for hidden in ("--workload", "--model-options", "--reducer-options", "--slurm"):
        assert hidden not in message


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("rnu", "no command is called 'rnu'; did you mean 'run'?"),
        ("run digitss", "no workload is called 'digitss'; did you mean 'digits'"),
        ("run digits --reducer tpok", "no reducer is called 'tpok'; did you mean 'topk'"),
        ("run digits --model qq", "no model is called 'qq'; allowed are bert, "),
        ("run digits --lr -1", "lr is -1.0; allowed is a number in (0, inf)"),
        ("run digits --density 7", "density"),
        ("run digits --lr abc", "--lr is 'abc'; allowed is a number in (0, inf)"),
        ("run digits --optimizer sdg", "'sgd', 'adam'"),
        (
            "run digits --densty 0.1",
            "is called '--densty'; did you mean --density",
        ),
        ("run digits --world-sise 4", "did you mean --world-size?"),
        ("run digits --model.dpth 56", "did you mean --model.depth or"),
        ("run digits --config nowhere.toml", "there is no file nowhere.toml"),
        ("run digits --schedule step", "as in --milestones 80 120"),
        ("run digits --reducer", "--reducer: expected one argument"),
        ("run digits --density 1e999", "--density is inf; allowed is a number"),
        ("run digits --reducer topk --density 7", "density=7.0"),
        ("run digits --print-config --reducer topk --density 7", "density=7.0"),
        ("run digits --milestones 1 x", "--milestones is 'x'; allowed is a number in (0, inf)"),
        ("run digits --profile=1", "--profile takes no value; write only --profile or --no-profile"),
        ("run digits --seed " + "9" * 5000, "--seed is '9999"),
        ("run digits --timeout 1e300", "allowed is a number in [0.01, 1e+06]"),
        ("run digits --world-size 1000000", "world_size is 1000000, which needs"),
        ("run digits --world-size 1000000 --print-config", "world_size is 1000000, which needs"),
        ("run digits --world-size 90000000 --workers-in-process", "or --oversubscribe"),
        ("run digits --model.depth 21 --print-config", "depth"),
        (
            "run digits --runs /dev/null",
            "runs is /dev/null, but /dev/null is not a folder; give another --runs",
        ),
        ("run digits --runs /dev/null/deeper", "/dev/null is not a folder"),
        ("run digits --continue-from nowhere", "continue_from is nowhere, which is not a run folder"),
        ("run digits -x", "no flag of `sage run digits` is called '-x'"),
        ("run digits extra", "'extra' is not an argument of any flag"),
        ("run digits --reducer .topk", "no reducer is called '.topk'"),
        ("run digits --config .", ". is a folder"),
        ("report --what", "no flag of `sage report` is called '--what'; `sage report --help` lists all"),
        ("report --output=~nobody-of-this-name/x", "no home folder is known for '~nobody-of-this-name'"),
        ("list extra", "'extra' is not an argument of any flag"),
        ("data list extra", "'extra' is not an argument of any flag"),
        ("bench", "`sage bench` needs the name of a command: one of record, density, compress"),
        ("bench density nowhere", "nowhere"),
        ("conform exact --world-sizes x", "--world-sizes is 'x'; allowed is a whole number"),
        ("data", "`sage data` needs the name of a command: one of list, prepare"),
        ("data prepare", "one of ag_news,"),
        ("data prepare cifar1", "no data set is called 'cifar1'; did you mean 'cifar10'"),
        ("conform", "one of accordion,"),
        ("conform tpok", "did you mean 'topk'"),
    ],
)
def test_wrong_input_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], argv: str, says: str) -> None:
    assert says in refused(capsys, *argv.split())


def test_data_list_and_prepare(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["data", "list"]) == 0
    assert set(registry.names("datasets")) <= set(capsys.readouterr().out.split())

    asked = []

    class FakeDataSet:
        @staticmethod
        def prepare(root: Path, *, size: str = "big") -> None:
            asked.append((root, size))

    monkeypatch.setattr(registry, "load", lambda kind, name: FakeDataSet)
    monkeypatch.setenv("SAGE_DATA_DIR", str(tmp_path))
    assert main(["data", "prepare", "digits"]) == 0
    assert main(["data", "prepare", "digits", "here", "--size", "small"]) == 0
    assert main(["data", "prepare", "digits", "--root", "there"]) == 0
    assert asked == [(tmp_path, "big"), (Path("here"), "small"), (Path("there"), "big")]


def test_conform_passes_on_options_and_world_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asks(monkeypatch, "sage.testing.conformance.main")
    assert main(["conform", "topk", "--density", "0.5", "--world-sizes", "1", "3"]) == 0
    ((reducer, options, world_sizes),) = asked
    assert (reducer, options["density"], options["values"], world_sizes) == ("topk", 0.5, "fp32", (1, 3))


def test_report_writes_into_the_runs_folder_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asks(monkeypatch, "sage.report.report.main")
    assert main(["report"]) == 0
    assert main(["report", "a", "b", "--output", "c"]) == 0
    assert asked == [([Path("runs")], Path("runs")), ([Path("a"), Path("b")], Path("c"))]


def test_a_run_by_command_line_writes_a_result_and_is_not_repeated(sage: Sage, tmp_path: Path) -> None:
    argv = ("run", "digits-ff", "--reducer", "topk", "--steps", "2", "--workers-in-process")
    first = sage(*argv)
    assert first.returncode == 0, first.stderr
    (result,) = tmp_path.glob("runs/digits-ff-topk-*/result.json")
    before = result.stat().st_mtime_ns
    assert sage(*argv).returncode == 0
    assert result.stat().st_mtime_ns == before
