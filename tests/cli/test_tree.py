"""Tests of the tree of commands: help at every node, shell completion, and exit statuses."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from sage import exit_status, registry
from sage.cli.bench import command as bench
from sage.cli.data import command as data
from sage.cli.group import Group
from sage.cli.main import main, root
from sage.cli.part_group import PartGroup
from sage.config import workloads
from sage.report.published.files import sources

CHECKOUT = Path(__file__).parents[2]


def nodes(group: Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command; of parts only the first two, because all use the same code."""
    yield path
    context = click.Context(group)
    names = group.list_commands(context)
    for name in names[:2] if isinstance(group, PartGroup) else names:
        command = group.get_command(context, name)
        if isinstance(command, Group):
            yield from nodes(command, (*path, name))
        else:
            yield (*path, name)


def completions(*words: str) -> list[str]:
    """The completions of the last of these words."""
    found = ShellComplete(root, {}, "sage", "_SAGE_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [item.value for item in found]


@pytest.mark.parametrize("path", list(nodes(root)), ids=lambda path: " ".join(path) or "sage")
def test_every_node_has_help_with_the_default_of_each_option(
    capsys: pytest.CaptureFixture[str], path: tuple[str, ...]
) -> None:
    assert main([*path, "--help"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"Usage: {' '.join(['sage', *path])}")
    assert output.err == ""
    options = re.findall(r"^  (--[\w.-]+)", output.out, re.MULTILINE)
    assert "--help" in output.out
    assert len(re.findall(r"\((?:default:|required\))", output.out)) == len(options)


def test_a_group_lists_each_command_with_the_first_sentence_of_its_help() -> None:
    for group in (root, bench, data):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            assert group.summary(context, name) == (command.help or "").partition(". ")[0].rstrip(".") + "."


def test_help_shows_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, choices in (
        (["submit", "--help"], "--cluster {slurm,local,debug}"),
        (["run", "digits", "--help"], "--optimizer {sgd,adam,adamw,muon,signum,"),
        (["conform", "topk", "--help"], "--values {fp32,fp16}"),
    ):
        assert main(argv) == 0
        assert choices in capsys.readouterr().out


def test_a_shell_completes_commands_workloads_parts_and_options() -> None:
    assert completions("s") == ["submit", "status", "sync"]
    assert completions("bench", "") == ["record", "density", "compress", "distribution"]
    assert set(completions("run", "")) == set(workloads())
    assert completions("run", "digits", "--reducer", "to") == ["topk"]
    assert "--model.depth" in completions("run", "digits", "--model")
    assert completions("run", "digits", "--optimizer", "")[:5] == ["sgd", "adam", "adamw", "muon", "signum"]
    assert set(completions("conform", "")) == set(registry.names("reducers"))
    assert "--density" in completions("conform", "topk", "--")
    assert set(completions("data", "prepare", "")) == set(registry.names("datasets"))
    assert completions("published", "sage") == ["sage"]
    assert set(completions("published", "")) == set(sources())


def test_the_page_of_exit_statuses_has_each_of_them() -> None:
    page = (CHECKOUT / "docs" / "reference" / "exit-statuses.md").read_text()
    rows = [int(status) for status in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    constants = {value for name, value in vars(exit_status).items() if name.isupper() and type(value) is int}
    assert set(rows) == {0, *(value for value in constants if value < 256)}
    assert len(rows) == len(set(rows))
