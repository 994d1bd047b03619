"""Tests that xdist workers run whole files: cluster tests first, then the longest and slow files."""

import subprocess
import sys
from pathlib import Path

from launcher import PATIENCE, outside

TESTS = Path(__file__).parent

ONE = """
import os, pathlib
import pytest

@pytest.mark.parametrize("number", [0, 1])
{mark}
def test_that_says_where_it_runs(number, request):
    with pathlib.Path({said!r}).open("a") as file:
        print(os.environ.get("PYTEST_XDIST_WORKER"), request.node.nodeid, file=file)
"""

CLUSTER = ["tests/slurm/test_survival.py", "tests/slurm/test_a.py", "tests/slurm/test_z.py"]
LONGEST = ["tests/reducers/test_conformance.py"]
SLOW = ["tests/a/test_y.py"]
QUICK = ["tests/room/test_c.py", "tests/test_b.py"]
FILES = [*CLUSTER, *LONGEST, *SLOW, *QUICK]


def ran(folder: Path, *options: str) -> list[tuple[str, str]]:
    """Return the worker and the file of each test, in the order of execution."""
    said = folder / "said"
    for file in FILES:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        mark = "@pytest.mark.slow" if file in SLOW else ""
        (folder / file).write_text(ONE.format(mark=mark, said=str(said)))
    (folder / "conftest.py").write_text(
        "from side_by_side import in_order, pytest_xdist_make_scheduler\n"
        "def pytest_collection_modifyitems(items): items[:] = in_order(items)\n"
    )
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow\naddopts = --import-mode=importlib\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**outside(), "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(" ", 1) for line in said.read_text().splitlines()]
    assert len({test for _, test in lines}) == len(lines) == 2 * len(FILES)
    return [(worker, test.partition("::")[0]) for worker, test in lines]


def test_a_file_runs_in_one_worker_and_the_cluster_tests_in_two(tmp_path: Path) -> None:
    order = ran(tmp_path, "-n", "3", "--dist", "loadfile")
    workers = {file: {worker for worker, each in order if each == file} for _, file in order}
    assert all(len(each) == 1 for each in workers.values())
    survival, a, z = (workers[file] for file in CLUSTER)
    assert a == z
    assert survival != a
    first = {worker: next(file for each, file in order if each == worker) for worker, _ in order}
    assert set(first.values()) == {CLUSTER[0], CLUSTER[1], LONGEST[0]}


def test_in_one_process_the_order_is_unchanged(tmp_path: Path) -> None:
    files = list(dict.fromkeys(file for _, file in ran(tmp_path)))
    assert files == FILES
