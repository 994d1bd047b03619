"""Tests of failures during a submission: no run starts twice, and no unrecorded job is left."""

import os
import shlex
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
import torch
from launcher import outside
from standin import StandIn

from sage.cli.main import main
from sage.jobs import arrays, entry, submissions
from sage.jobs.sweep import read

CHECKOUT = Path(__file__).parents[2]
SWEEP = 'workload = "digits-ff"\nreducer = ["exact", "topk"]\nseed = [0, 1]\ndevice = "cpu"\n'


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn(tmp_path / "slurm")
    monkeypatch.setenv("PATH", stand_in.path)
    monkeypatch.setattr(arrays, "PAUSES", (0.0, 0.0))
    return stand_in


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write(tmp_path)


def write(folder: Path, name: str = "sweep", text: str = SWEEP) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(f'runs = "{folder / "runs"}"\n{text}')
    return path


def after_sbatch(slurm: StandIn, command: str) -> None:
    """Make sbatch run a command after it has accepted a job."""
    real = slurm.bin / "sbatch"
    real.rename(slurm.bin / "taken")
    real.write_text(f'#!/bin/sh\n{shlex.quote(str(slurm.bin / "taken"))} "$@"\n{command}\n')
    real.chmod(0o755)
    (slurm.bin / "taken").write_text((slurm.bin / "taken").read_text())


def call(path: Path, *options: str) -> int:
    return main(["submit", str(path), *options])


def pending(slurm: StandIn) -> list[str]:
    return [task for task, state in slurm.states.items() if state == "PENDING"]


def assert_each_run_has_one_job(slurm: StandIn, path: Path) -> None:
    entries = submissions.read(read(path).runs)
    assert set(entries) == {cell.folder.name for cell in read(path).configs}
    assert sorted(each.job for each in entries.values()) == sorted(pending(slurm))


# Between sbatch and the entry in the submission log.


def test_the_next_submission_cancels_the_jobs_of_one_that_was_killed_after_sbatch(
    slurm: StandIn, sweep: Path, sage_command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = (slurm.bin / "sbatch").read_text()
    after_sbatch(slurm, "kill -9 $PPID")
    environment = {**outside(), "PATH": slurm.path, "PYTHONPATH": str(CHECKOUT)}
    killed = subprocess.run([sage_command, "submit", str(sweep)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(pending(slurm)) == 4
    (slurm.bin / "sbatch").write_text(taken)
    assert call(sweep) == 0
    output = capsys.readouterr().out
    assert "cancelled job 1: a killed `sage submit` had not recorded it\n" in output
    assert "4 runs: 0 finished, 0 active, 4 to submit" in output
    assert_each_run_has_one_job(slurm, sweep)
    assert call(sweep) == 0
    assert "cancelled" not in capsys.readouterr().out


def test_a_job_that_cannot_be_recorded_is_cancelled(
    slurm: StandIn, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (slurm.bin / "sbatch").read_text()
    path = submissions.folder(sweep.parent / "runs") / "submitted.jsonl"
    after_sbatch(slurm, f"rm {path}; mkdir {path}")
    assert call(sweep) == 2
    assert f"sage submit: {path}: " in capsys.readouterr().err
    assert pending(slurm) == []
    path.rmdir()
    (slurm.bin / "sbatch").write_text(line)
    assert call(sweep) == 0
    assert_each_run_has_one_job(slurm, sweep)


def test_nothing_is_submitted_if_the_submission_log_cannot_be_written(
    slurm: StandIn, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = submissions.folder(sweep.parent / "runs") / "submitted.jsonl"
    path.mkdir(parents=True)
    assert call(sweep) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sage submit: {path}")
    assert slurm.calls("sbatch") == []


def test_a_file_as_the_runs_folder_is_a_one_line_error(
    slurm: StandIn, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep.parent / "runs").touch()
    assert call(sweep) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert slurm.calls("sbatch") == []


def test_a_job_whose_submission_was_killed_ends_at_once_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    missing = tmp_path / "7_submitted.pkl"
    script = f"source {CHECKOUT}/jobs/batch.sh; sage_find_run {missing} {tmp_path}/lock; echo found"
    start = time.monotonic()
    job = subprocess.run(
        ["bash", "-c", script],
        env={**outside(), "SLURM_JOB_ID": "7"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (job.returncode, job.stdout) == (2, "")
    assert "job 7 has no run, because its `sage submit` was killed: submit again" in job.stderr
    assert time.monotonic() - start < 30  # and not a minute, four times
    missing.touch()
    assert (
        subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False).stdout
        == "found\n"
    )


# Other submissions.


def test_two_sweeps_that_share_runs_submit_each_of_them_once(
    slurm: StandIn, tmp_path: Path, sage_command: str
) -> None:
    sweeps = [write(tmp_path, "one"), write(tmp_path, "two", SWEEP.replace("[0, 1]", "[1, 2]"))]
    after_sbatch(slurm, "sleep 1")
    environment = {**outside(), "PATH": slurm.path, "PYTHONPATH": str(CHECKOUT)}
    both = [subprocess.Popen([sage_command, "submit", str(each)], env=environment) for each in sweeps]
    assert [each.wait() for each in both] == [0, 0]
    assert len(pending(slurm)) == 6
    assert len({each.job for each in submissions.read(tmp_path / "runs").values()}) == 6


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves a log open
def test_a_run_that_another_submission_has_started_is_not_run_twice(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sage.jobs.local.RunJob", NotRun)
    NotRun.runs = read(sweep).runs
    assert call(sweep, "--cluster", "debug") == 0
    output = capsys.readouterr().out
    assert output.count("skipped, another submission has meanwhile started or finished it") == 3
    assert NotRun.ran == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves a log open
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_run_in_this_process_that_cannot_start_reports_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, text='workload = "digits-ff"\nreducer = "exact"\ndevice = "cuda"\n')
    assert call(path, "--cluster", "debug") == 1
    (cell,) = read(path).configs
    assert f"{cell.folder.name}: device=cuda, but torch finds no CUDA device here" in capsys.readouterr().out


class NotRun:
    """The first run; another process submits the others during it."""

    error = ""
    ran = 0
    runs = Path()

    def __init__(self, config: object, *, max_requeues: int) -> None:
        NotRun.ran += 1

    def __call__(self) -> dict[str, int]:
        cells = {cell.folder.name: cell for cell in read(self.runs.parent / "sweep.toml").configs}
        mine = next(iter(submissions.read(self.runs)))
        for name in cells:
            if name != mine:
                started = {"job": str(os.getpid()), "started": submissions.read(self.runs)[mine].started}
                submissions.write(
                    self.runs, [submissions.Entry(run=name, cluster="local", logs=str(self.runs), **started)]
                )
        return {"status": 0}


# Environment and files of a job.


def test_a_job_submitted_inside_another_gets_none_of_its_variables(
    slurm: StandIn, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = {
        "SLURM_JOB_ID": "3",
        "SLURM_ARRAY_JOB_ID": "3",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_PROCID": "1",
        "SLURM_STEP_ID": "0",
        "SUBMITIT_EXECUTOR": "slurm",
        "SAGE_OUTCOME": "/elsewhere",
        "SBATCH_EXPORT": "NONE",
        "SBATCH_GPUS": "9",
        "SBATCH_COMMENT": "mine",
        "SBATCH_ARRAY_INX": "0-99",
        "SQUEUE_PARTITION": "other",
        "hostip": "10.0.0.1",
        "port": "1",
        "rank": "0",
        "world_size": "7",
    }
    kept = {"SLURM_CONF": "/etc/x", "SBATCH_PARTITION": "low", "SBATCH_TIMELIMIT": "5"}
    for name, value in {**inside, **kept}.items():
        monkeypatch.setenv(name, value)
    assert call(sweep) == 0
    seen = slurm.jobs["1"]["environment"]
    assert not set(inside) & set(seen)
    assert kept.items() <= seen.items()
    assert os.environ["SLURM_JOB_ID"] == "3"
    sweep.write_text(sweep.read_text().replace("[0, 1]", "5") + '[slurm]\ntime = "10:00"\nexport = "NONE"\n')
    assert call(sweep) == 0
    assert "SBATCH_TIMELIMIT" not in slurm.jobs["2"]["environment"]
    script = slurm.jobs["2"]["script"].splitlines()
    assert "#SBATCH --export=NONE" in script
    (srun,) = [line for line in script if line.startswith("srun ")]
    assert " --export=ALL " in srun


def test_the_pickles_of_a_job_are_private_under_any_umask(slurm: StandIn, sweep: Path) -> None:
    before = os.umask(0o002)
    try:
        assert call(sweep) == 0
    finally:
        os.umask(before)
    folder = submissions.folder(sweep.parent / "runs")
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert slurm.jobs["1"]["umask"] == 0o002  # which SLURM passes to the ranks; others may read their runs


def test_a_job_does_not_load_a_pickle_that_others_could_have_written(
    slurm: StandIn, sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(sweep) == 0
    (folder,) = submissions.folder(sweep.parent / "runs").glob("sweep-*")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SAGE_OUTCOME", str(sweep.parent / "outcome"))
    loaded: list[Path] = []
    monkeypatch.setattr(entry, "process_job", loaded.append)
    path = folder / "1_2_submitted.pkl"
    path.chmod(0o666)
    assert entry.main([str(folder)]) == 2
    path.chmod(0o600)
    folder.chmod(0o777)
    assert entry.main([str(folder)]) == 2
    assert (sweep.parent / "outcome").read_text().startswith(f"2 {path}")
    folder.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
        assert entry.main([str(folder)]) == 2
        os.chown(path, 0, 0)
    assert loaded == []
    assert entry.main([str(folder)]) == 0
    assert loaded == [folder]
    path.unlink()
    assert entry.main([str(folder)]) == 2
    assert f"{path} is missing; submit the sweep again" in capsys.readouterr().err


# Refused sweeps.


@pytest.mark.parametrize("name", ["50%jobs", "%j", "a%Ab", "back\\slash", "two\nlines"])
def test_a_path_with_slurms_placeholders_is_refused(
    slurm: StandIn, sweep: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert call(sweep, "--runs", str(sweep.parent / name)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "choose another --runs" in line
    assert not (sweep.parent / name).exists()
    assert slurm.calls("sbatch") == []


def test_a_sweep_of_a_million_combinations_is_counted_and_not_expanded(
    slurm: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = f"seed = {list(range(100))}\nlr = {[step / 100 for step in range(1, 101)]}\n"
    density = f"[reducers.topk]\ndensity = {[step / 101 for step in range(1, 101)]}\n"
    path = write(tmp_path, text=f'workload = "digits-ff"\nreducer = ["exact", "topk"]\n{lists}{density}')
    start = time.monotonic()
    assert call(path) == 2
    assert time.monotonic() - start < 20
    (line,) = capsys.readouterr().err.splitlines()
    assert "has 1,010,000 combinations; allowed are 10,000: shorten its lists, or raise max_cells" in line


def test_the_maximum_size_of_a_sweep_can_be_raised_and_lowered(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(ValueError, match="has 4 combinations; allowed are 3"):
        read(path, max_cells=3)
    path = write(tmp_path, text=SWEEP + "max_cells = 3\n")
    with pytest.raises(ValueError, match="has 4 combinations"):
        read(path)
    assert len(read(path, max_cells=4).configs) == 4


@pytest.mark.parametrize(
    "text",
    ["x = " + "[" * 5000, "a" + ".a" * 20000 + " = 1", "\x00", "x = '\udcff"],
    ids=["deep", "dots", "nul", "bytes"],
)
def test_a_sweep_that_cannot_be_read_is_a_one_line_error(
    slurm: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(text, errors="surrogateescape")
    assert call(path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sage submit: {path} ")


@pytest.mark.parametrize("content", ["", "{}", "[]", "5", '{"metric": 1}', '{"format": 99}', "\xff"])
def test_a_damaged_result_is_named_and_the_other_runs_are_submitted(
    slurm: StandIn, sweep: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    one = read(sweep).configs[1].folder
    one.mkdir(parents=True)
    (one / "result.json").write_text(content, encoding="latin-1")
    assert call(sweep) == 0
    output = capsys.readouterr()
    assert "4 runs: 0 finished, 0 active, 3 to submit" in output.out
    (line,) = output.err.splitlines()
    assert line.startswith(f"sage submit: {one / 'result.json'}")
    assert one.name not in submissions.read(sweep.parent / "runs")
