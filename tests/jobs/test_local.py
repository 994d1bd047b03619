"""Tests of a sweep without SLURM: each run once, in its own process or in that of `sage submit`."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from launcher import PATIENCE, outside, until

from sage.jobs import submissions
from sage.jobs.local_process import alive
from sage.jobs.sweep import read
from sage.records.record import Record, read_metrics

CHECKOUT = Path(__file__).parents[2]
LEFTOVERS = {
    "hostip": "192.0.2.1",
    "port": "9",
    "rank": "1",
    "world_size": "4",
    "MASTER_ADDR": "192.0.2.1",
    "RANK": "3",
    "WORLD_SIZE": "7",
    "LOCAL_RANK": "3",
    "MASTER_PORT": "9",
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_ARRAY_JOB_ID": "3",
    "SLURM_ARRAY_TASK_ID": "3",
    "SUBMITIT_EXECUTOR": "slurm",
    "SUBMITIT_FOLDER": "/nowhere",
    "SAGE_OUTCOME": "/nowhere/outcome",
}
"""Variables that a login shell or a job may have set; no run may get them."""

SMALL = 'workload = "digits-ff"\nreducer = "exact"\nepochs = 100\nsteps = 3\ndevice = "cpu"\n'

pytestmark = pytest.mark.slow


class LocalSubmission:
    """`sage submit --cluster ...` in its own process."""

    def __init__(self, folder: Path, text: str, python: str) -> None:
        self.folder, self.python = folder, python
        (folder / "sweep.toml").write_text(text)
        self.names = [cell.folder.name for cell in read(folder / "sweep.toml").configs]

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [self.python, "-m", "sage", "submit", "sweep.toml", *options]
        variables = {"PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": "5", "PYTHON_EXEC": self.python}
        environment = {**outside(), **variables, **LEFTOVERS}
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as in `sage submit &`
        )

    def run(self, *options: str) -> tuple[int, str]:
        process = self.start(*options)
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except BaseException:
            process.terminate()  # it ends its runs
            process.communicate()
            raise
        return process.returncode, output

    def records(self, kind: str) -> dict[str, list[Record]]:
        """Return the records of one kind of each run."""
        return {
            path.parent.name: [record for record in read_metrics(path.parent) if record["kind"] == kind]
            for path in (self.folder / "runs").glob("*/metrics.jsonl")
        }


@pytest.mark.parametrize("options", [("--cluster", "local", "--parallel", "2"), ("--cluster", "debug")])
def test_local_runs_run_once_and_an_invalid_run_does_not_stop_the_others(
    tmp_path: Path, python_command: str, options: tuple[str, ...]
) -> None:
    here = LocalSubmission(tmp_path, SMALL + "lr = [0.1, 1e30, 0.2]\n", python_command)
    status, output = here.run(*options)
    assert status == 1
    assert output.startswith("3 runs: 0 finished, 0 active, 3 to run\n")
    good, hopeless, other = here.names
    assert f"{good}: finished, accuracy " in output
    assert f"{hopeless}: rank " in output
    assert "the mean gradient is not finite" in output
    assert {name: len(steps) for name, steps in here.records("step").items()}[other] == 3
    entries = submissions.read(tmp_path / "runs")
    assert set(entries) == set(here.names)
    assert {entry.cluster for entry in entries.values()} == {options[1]}
    (tmp_path / "runs" / hopeless).rename(tmp_path / "aside")
    shutil.rmtree(tmp_path / "runs" / other)
    (tmp_path / "sweep.toml").write_text(SMALL + "lr = [0.1, 0.2]\n")
    status, output = here.run(*options)
    assert (status, output.partition("\n")[0]) == (0, "2 runs: 1 finished, 0 active, 1 to run")
    assert set(here.records("step")) == {good, other}


def test_ctrl_c_checkpoints_the_active_runs_and_starts_no_more(tmp_path: Path, python_command: str) -> None:
    endless = SMALL.replace("steps = 3", "steps = 1000000").replace("epochs = 100", "epochs = 100000")
    here = LocalSubmission(tmp_path, endless + "seed = [0, 1]\nparallel = 1\n", python_command)
    process = here.start("--cluster", "local")
    until(lambda: process.poll() is not None or any(len(each) > 5 for each in here.records("step").values()))
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 75
    assert process.stdout is not None
    process.stdout.close()
    (events,) = here.records("event").values()
    assert [record["event"] for record in events] == ["stopped"]
    entries = submissions.read(tmp_path / "runs")
    assert list(entries) == here.names[:1]
    assert not any(map(alive, entries.values()))
