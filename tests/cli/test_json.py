"""Tests of --json: the output of list, data list, status, report, published and doctor for programs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from made_up_runs import pretend

from sage import registry
from sage.cli.command import Option
from sage.cli.group import Group
from sage.cli.main import main, root
from sage.cli.part_group import PartGroup
from sage.report.published.files import sources

Printed = Callable[..., Any]

WITH_JSON = {
    ("list",),
    ("data", "list"),
    ("status",),
    ("report",),
    ("predict",),
    ("advise",),
    ("compare",),
    ("published",),
    ("doctor",),
}


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """Run a command with --json, check that it prints one object and nothing else, and return the object."""

    def run(*argv: str, status: int = 0) -> Any:
        assert main([*argv, "--json"]) == status
        message = capsys.readouterr()
        assert message.err == ""
        assert message.out.endswith("\n")
        found = json.loads(message.out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
        assert isinstance(found, dict)
        return found

    return run


def options(group: Group, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Option]:
    """The option --json of each command that has one, by the words of the command."""
    found: dict[tuple[str, ...], Option] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, Group):
            found |= {} if isinstance(command, PartGroup) else options(command, (*path, name))
        elif command is not None:
            own = [each for each in command.params if isinstance(each, Option)]
            found |= {(*path, name): each for each in own if each.name == "json"}
    return found


def test_the_json_option_is_the_same_in_every_command() -> None:
    found = options(root)
    assert set(found) == WITH_JSON
    for option in found.values():
        assert option.is_flag
        assert option.default is False
        assert (option.help or "").startswith("Print one JSON object")


def test_list_has_the_summary_of_every_part_and_workload(printed: Printed) -> None:
    output = printed("list")
    assert set(output) == {*registry.EXPORTS, "workloads"}
    for kind in registry.EXPORTS:
        assert output[kind] == {name: registry.summary(kind, name) for name in registry.names(kind)}
    assert list(output["workloads"]) == list(registry.workloads())
    assert printed("data", "list") == output["datasets"]


def test_status_has_the_state_of_every_run(printed: Printed, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = pretend(runs, "topk", density=0.01)
    sweep = tmp_path / "two.toml"
    sweep.write_text('workload = "digits-ff"\nreducer = ["exact", "topk"]\n')
    output = printed("status", str(sweep), "--runs", str(runs))
    assert [run["state"] for run in output["runs"]] == ["missing", "missing"]
    assert output["folder"] == str(runs)
    output = printed("status", str(runs))
    assert set(output) == {"folder", "runs", "faults", "slurm_error"}
    (run,) = output["runs"]
    assert set(run) == {"run", "settings", "state", "job", "step", "metric", "requeued", "why"}
    assert (run["run"], run["state"]) == (done.name, "finished")


def test_status_cannot_both_watch_and_print_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["status", str(tmp_path), "--json", "--watch"]) == 2
    assert "leave out --watch" in capsys.readouterr().err


def test_report_has_the_values_of_its_csv_file_by_group(printed: Printed, tmp_path: Path) -> None:
    runs = [
        pretend(tmp_path, "exact"),
        pretend(tmp_path, "topk", density=0.01),
        pretend(tmp_path, "topk", density=0.1, diverges=True),
        pretend(tmp_path, "sage", workload="digits-ff", stop=12),
    ]
    broken = pretend(tmp_path, "topk", density=0.5)
    (broken / "result.json").write_text("{")
    output = printed("report", str(tmp_path), "--output", str(tmp_path / "out"))
    assert set(output) == {"verdict", "groups", "left_out", "files"}
    assert [Path(file).name for file in output["files"]] == ["report.md", "report.csv", "report.html"]
    assert all(Path(file).exists() for file in output["files"])
    assert list(output["left_out"]) == [str(broken)]
    rows = [row for group in output["groups"] for row in group["runs"]]
    assert len(rows) == len(runs)
    assert len(output["groups"]) == 2
    assert all(group["title"] and group["headline"] for group in output["groups"])
    heading, *lines = (tmp_path / "out" / "report.csv").read_text().splitlines()
    assert len(lines) == len(rows)
    assert list(dict.fromkeys(name for row in rows for name in row)) == heading.split(",")


def test_a_report_without_runs_is_an_error_of_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["report", str(tmp_path), "--json"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1


def test_published_has_the_figures_of_a_source_or_of_all(printed: Printed) -> None:
    for argv, statuses in (((), {"verified"}), (("--all",), {"verified", "second-hand", "recalled"})):
        output = printed("published", *argv)
        assert [source["name"] for source in output["sources"]] == list(sources())
        rows = [row for source in output["sources"] for table in source["tables"] for row in table["rows"]]
        assert {row["status"] for row in rows} == statuses
    output = printed("published", "byteps")
    (slow,) = (table for table in output["tables"] if table["name"] == "docs-slow")
    assert [row["ratio"] for row in slow["rows"]] == [
        None,
        *(pytest.approx(value / 518.32) for value in (195.24, 89.67, 83.93)),
    ]


def test_doctor_has_findings_and_facts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sage", "doctor", "--runs", str(tmp_path), "--json"],
        capture_output=True,
        text=True,
    )
    output = json.loads(done.stdout)
    assert set(output) == {"well", "findings", "facts"}
    assert done.returncode == (0 if output["well"] else 1)
    assert output["facts"]
