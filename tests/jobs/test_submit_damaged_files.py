"""Tests that `sage submit` reports a damaged file in one line and submits no run twice."""

import random
import shutil
import subprocess
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from damage import copied, damage
from fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launcher import PATIENCE, outside
from standin import StandIn

from sage.cli.main import main
from sage.jobs import arrays

CHECKOUT = Path(__file__).parents[2]
SETTINGS = 'workload = "digits-ff"\nsteps = 1\nworld_size = 1\ndevice = "cpu"\n'
SWEEP = f'{SETTINGS}reducer = ["exact", "topk"]\nseed = [0, 1]\n'
RUN = ["run", "digits-ff", "--steps", "1", "--world-size", "1", "--device", "cpu", "--reducer", "exact"]


def status_and_stderr(*argv: str) -> tuple[int, str]:
    """The exit status of a command, and what it wrote to stderr."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as err:
        status = main(argv)
    return status, err.getvalue()


@pytest.fixture(scope="module")
def submitted(sage_command: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep of four runs: one is finished, and three are submitted to a replaced SLURM."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.toml").write_text(SWEEP)
    finished = [sage_command, *RUN, "--runs", str(folder / "runs")]
    environment = {**outside(), "PYTHONPATH": str(CHECKOUT), "SAGE_DATA_DIR": str(folder)}
    subprocess.run(finished, env=environment, check=True, capture_output=True, timeout=PATIENCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", StandIn(folder / "slurm").path)
        assert status_and_stderr("submit", str(folder / "sweep.toml"), "--runs", str(folder / "runs")) == (
            0,
            "",
        )
    return folder


@settings(
    max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_of_a_sweep_is_a_one_line_error_and_no_run_is_submitted_twice(
    submitted: Path, seed: int
) -> None:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        slurm = StandIn(Path(scratch, "slurm"))
        for name in ("jobs", "calls"):
            shutil.copy(submitted / "slurm" / name, slurm.home / name)
        patch.setenv("PATH", slurm.path)
        patch.setattr(arrays, "PAUSES", (0.0, 0.0))
        runs = copied(submitted / "runs", Path(scratch, "runs"))
        # The files of `sage submit` are damaged as often as those of the finished run.
        own = draw.random() < 0.5
        files = sorted(path for path in runs.rglob("*") if path.is_file())
        path = draw.choice([each for each in files if (".jobs" in each.parts) == own])
        how = f"{path.relative_to(runs)}: {damage(path, draw)}"
        sweep = Path(shutil.copy(submitted / "sweep.toml", scratch))
        status, stderr = status_and_stderr("submit", str(sweep), "--runs", str(runs))
        assert status in (0, 2), f"{how}: {stderr}"
        for line in stderr.splitlines():
            assert line.startswith("sage"), f"{how}: {stderr}"
            assert "bug in SAGE" not in line, f"{how}: {stderr}"
        if status == 2:
            assert len(stderr.splitlines()) == 1, f"{how}: {stderr}"
            assert str(runs) in stderr, f"{how}: {stderr}"
        pending = [task for task, state in slurm.states.items() if state == "PENDING"]
        assert len(pending) <= 4, f"{how}: {stderr}"
