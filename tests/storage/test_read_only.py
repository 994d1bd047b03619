"""Tests that every command that writes is refused in one line on a read-only file system."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launcher import PATIENCE, outside

CHECKOUT = Path(__file__).parents[2]
RUN = ["run", "digits-ff", "--steps", "1", "--reducer", "exact", "--world-size", "2"]
INSIDE = ["unshare", "--mount", "sh", "-c"]
MOUNT = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && exec "$@"'
"""Root ignores permission bits, but not a read-only mount, which only this process and its children see."""

COMMANDS = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from sage.cli.main import main
for argv in json.load(sys.stdin):
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as err:
        status = main(argv)
    print(json.dumps([argv, status, err.getvalue()]), flush=True)
"""

Seen = dict[str, tuple[int, str]]

REFUSED = {
    "another run": [*RUN, "--seed", "7"],
    "another run, simulated": [*RUN, "--seed", "7", "--workers-in-process"],
    "a finished run again": [*RUN, "--workers-in-process", "--fresh"],
    "a new folder of runs": [*RUN, "--runs", "new/deeper"],
    "submit on this machine": ["submit", "sweep.toml", "--cluster", "local"],
    "submit in this process": ["submit", "sweep.toml", "--cluster", "debug"],
    "submit to SLURM": ["submit", "sweep.toml", "--cluster", "slurm"],
    "a report among the runs": ["report"],
    "a report elsewhere": ["report", "runs", "--output", "new/report"],
    "a trace": ["bench", "record", "digits-ff", "--out", "new.pt"],
    "densities": ["bench", "density", "trace.pt", "--output", "new"],
    "speeds": ["bench", "compress", "--output", "new/speeds"],
    "a data set": ["data", "prepare", "cifar10", "--root", "data"],
}
SERVED = {
    "a finished run": [*RUN, "--workers-in-process"],
    "the plan of a sweep": ["submit", "sweep.toml", "--dry-run"],
    "the state of a sweep": ["status", "sweep.toml"],
    "the state of runs": ["status"],
    "nothing to cancel": ["cancel", "sweep.toml"],
}


def environment(folder: Path) -> dict[str, str]:
    return {**outside(), "PYTHONPATH": str(CHECKOUT), "SAGE_DATA_DIR": str(folder / "data")}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Status and standard error of each command in a folder with a finished run, a sweep and a trace."""
    folder, elsewhere = tmp_path_factory.mktemp("read-only"), tmp_path_factory.mktemp("elsewhere")
    possible = [*INSIDE, MOUNT, str(folder), "true"]
    if (
        shutil.which("unshare") is None
        or subprocess.run(possible, capture_output=True, check=False).returncode
    ):
        pytest.skip("needs a mount namespace of its own: root, or a kernel that lets users create one")
    (folder / "data").mkdir()
    sweep = 'workload = "digits-ff"\nsteps = 1\nreducer = ["exact", "topk"]\ndevice = "cpu"\n'
    (folder / "sweep.toml").write_text(sweep)
    before = [[*RUN, "--workers-in-process"], ["bench", "record", "digits-ff", "--steps", "62"]]
    before[1] += ["--elements", "40", "--out", "trace.pt"]
    commands = (
        REFUSED | SERVED | {"a run elsewhere": [*RUN, "--workers-in-process", "--runs", str(elsewhere)]}
    )
    here = [sys.executable, "-c", COMMANDS]
    call(here, before, folder)
    lines = call([*INSIDE, MOUNT, str(folder), *here], list(commands.values()), folder)
    return {name: (status, result) for name, (_, status, result) in zip(commands, lines, strict=True)}


def call(command: list[str], each: list[list[str]], folder: Path) -> list[tuple[list[str], int, str]]:
    done = subprocess.run(
        command,
        input=json.dumps(each),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]


@pytest.mark.parametrize("name", REFUSED)
def test_an_unwritable_path_is_a_one_line_error_with_status_2(seen: Seen, name: str) -> None:
    status, result = seen[name]
    assert status == 2, result
    assert len(result.splitlines()) == 1, result
    assert result.startswith("sage")
    assert any(words in result for words in ("Read-only file system", "cannot be written", "is not writable"))
    assert "bug in SAGE" not in result


@pytest.mark.parametrize("name", SERVED)
def test_commands_that_only_read_work_in_a_read_only_folder(seen: Seen, name: str) -> None:
    assert seen[name][0] == 0, seen[name][1]


def test_a_run_from_a_read_only_working_folder_is_written_elsewhere(seen: Seen) -> None:
    assert seen["a run elsewhere"][0] == 0, seen["a run elsewhere"][1]
