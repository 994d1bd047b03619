"""Tests of shell completion: the completions, and that bash, zsh and fish complete a typed command line."""

import os
import pty
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from click.shell_completion import CompletionItem, ShellComplete

from sage.cli.main import root
from sage.jobs import submissions
from sage.jobs.submissions import Entry

CHECKOUT = Path(__file__).parents[2]

SOURCES = {
    "bash": (["--norc", "--noprofile", "-i"], 'eval "$(_SAGE_COMPLETE=bash_source sage)"'),
    "zsh": (["-f", "-i"], 'autoload -Uz compinit; compinit -D; eval "$(_SAGE_COMPLETE=zsh_source sage)"'),
    "fish": (["--no-config", "-i"], "_SAGE_COMPLETE=fish_source sage | source"),
}
"""Each shell's arguments, and the lines of docs/reference/command-line.md with what they need in zsh."""

SAGE = """#!/bin/sh
if [ -n "$_SAGE_COMPLETE" ]; then exec {python} -m sage "$@"; fi
printf '%s\\n' "$*" >> {typed}
"""

SECONDS = 120.0


def completions_of(*words: str) -> list[CompletionItem]:
    """The completions of the last of these words."""
    return ShellComplete(root, {}, "sage", "_SAGE_COMPLETE").get_completions(list(words[:-1]), words[-1])


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `runs` in the working folder: two runs, a submitted one, and another folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("digits-topk-01234567", "digits-exact-89abcdef"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}")
    (tmp_path / "runs" / "digits-notes").mkdir()
    entry = Entry(run="ncf-sage-00112233", job="7", cluster="slurm", logs=str(tmp_path))
    submissions.write(tmp_path / "runs", [entry])
    return tmp_path / "runs"


def test_run_names_are_completed_from_the_given_folder(runs: Path) -> None:
    both = ["digits-exact-89abcdef", "digits-topk-01234567"]
    assert [item.value for item in completions_of("logs", "digits")] == both
    assert [item.value for item in completions_of("logs", "")] == [*both, "ncf-sage-00112233"]
    assert [item.value for item in completions_of("cancel", both[0], "nc")] == ["ncf-sage-00112233"]
    runs.rename("elsewhere")
    assert completions_of("logs", "digits") == []
    assert [item.value for item in completions_of("logs", "--runs", "elsewhere", "digits")] == both
    assert [
        item.value for item in completions_of("logs", "--runs=elsewhere", "--rank", "1", "digits")
    ] == both


def test_a_sweep_to_cancel_is_completed_as_a_file(runs: Path) -> None:
    assert [item.type for item in completions_of("cancel", "sweep")] == ["file"]
    assert completions_of("logs", "sweep") == []


@pytest.mark.parametrize("shell", SOURCES)
def test_a_shell_completes_what_is_typed(shell: str, runs: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    typed = runs.parent / "typed"
    place = runs.parent / "bin"
    place.mkdir()
    (place / "sage").write_text(SAGE.format(python=sys.executable, typed=typed))
    (place / "sage").chmod(0o755)
    arguments, source = SOURCES[shell]
    environment = {
        "PATH": f"{place}:/usr/bin:/bin",
        "PYTHONPATH": str(CHECKOUT),
        "HOME": str(runs.parent),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
    }
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(runs.parent)
        os.execvpe(shell, [shell, *arguments], environment)
    try:
        lines = [source, "sage run digits --reducer mst\t", "sage logs digits-t\t", "exit"]
        os.write(terminal, "".join(f"{line}\r" for line in lines).encode())
        screen = read_until_it_ends(terminal)
    finally:
        os.close(terminal)  # ends the shell if it still runs
        os.waitpid(process, 0)
    assert typed.exists(), screen
    assert [line.split() for line in typed.read_text().splitlines()] == [
        ["run", "digits", "--reducer", "mstopk"],
        ["logs", "digits-topk-01234567"],
    ], screen


def read_until_it_ends(terminal: int) -> str:
    """Read what a shell prints until it ends or `SECONDS` have passed."""
    screen = b""
    os.set_blocking(terminal, False)
    end = time.monotonic() + SECONDS
    with suppress(OSError):  # the shell has ended
        while time.monotonic() < end:
            try:
                screen += os.read(terminal, 65536)
            except BlockingIOError:
                time.sleep(0.05)
    return screen.decode(errors="replace")
