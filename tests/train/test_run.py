"""Tests of a run from command line to result: trained once, resumed bitwise identically, and its failures."""

import fcntl
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from launcher import (
    PATIENCE,
    Brake,
    Launcher,
    assert_same_run,
    before_each_step,
    free_port,
    has_no_pending_signal,
    is_gone,
    is_handled,
    newest,
    outside,
    records,
    state,
    until,
)

from sage.records.record import read_metrics
from sage.train import checkpoint, garbage
from sage.train.loop import Training

# Five steps per epoch with sage, a residual, and checkpoints in the middle of epochs.
FF = "digits-ff --steps 14 --checkpoint-every 4 --data.limit-train 320"
# Running statistics, momentum before the reduction, a running average of the model.
CNN = (
    "digits --steps 12 --checkpoint-every 4 --batch-size 8 --momentum-at before --average-from 1 "
    "--data.limit-train 80 --data.limit-test 40"
)
# Dropout, and a hidden state carried from step to step; two batches per step.
LSTM = (
    "lstm-topics --steps 6 --checkpoint-every 2 --accumulate 2 "
    "--data.limit-train 20000 --data.limit-test 1000"
)
# Windows at random tokens, AdamW, a schedule per step, and gradients clipped after the reduction.
GPT = (
    "gpt-topics --reducer topk --epochs 9 --steps 6 --checkpoint-every 2 --accumulate 2 --model.layers 2 "
    "--model.dropout 0.1 --data.limit-train 6000 --data.limit-test 1000"
)
# One small matrix without a bias, which AdamW updates.
CONVEX = "logistic-breast-cancer --optimizer adamw --lr 0.01 --steps 12 --checkpoint-every 4"
# Clips of different lengths, five bins per epoch, spectrograms computed in advance, the CTC loss.
SPEECH = (
    "deepspeech-synthetic-tones --reducer topk --steps 7 --checkpoint-every 2 --batch-size 4 "
    "--model.hidden 16 --model.filters 2 --data.loaders 1 --data.limit-train 40 --data.limit-test 4"
)
# Dropout, AdamW with a schedule per step, and a model of transformers.
BERT = (
    "bert-docstrings --reducer topk --steps 6 --checkpoint-every 2 --accumulate 2 --batch-size 4 "
    "--data.length 12 --data.limit-train 64 --data.limit-test 16"
)
# Adam, and new negatives in each epoch.
NCF = "ncf-imports --steps 12 --checkpoint-every 5 --batch-size 512"


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("runs"))
    yield launcher
    launcher.close()


@pytest.fixture
def brake(tmp_path: Path) -> Brake:
    return Brake(tmp_path / "brake")


# Trained once.


def note_collection(folder: Path, training: Training) -> None:
    (folder / f"collection is {gc.isenabled()}").touch()


def test_garbage_collection_that_was_paused_at_the_start_is_on_in_training(
    launcher: Launcher, tmp_path: Path
) -> None:
    (tmp_path / "said").mkdir()
    note = partial(before_each_step, partial(note_collection, tmp_path / "said"))
    run = launcher.start("digits-ff --steps 2", tmp_path / "runs", tamper=note)
    assert run.wait() == 0, run.output
    assert [path.name for path in (tmp_path / "said").iterdir()] == ["collection is True"]


def test_garbage_collection_that_the_caller_disabled_stays_disabled() -> None:
    gc.disable()
    try:
        garbage.pause_collection()
        garbage.resume_collection()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_run_in_the_process_of_a_script_keeps_the_scripts_signal_handlers(tmp_path: Path) -> None:
    script = f"""
import signal
from sage.train import run
from sage.config import load

before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
size = {{"workers_in_process": True, "steps": 1, "runs": {str(tmp_path)!r}}}
assert run.main(load("digits-ff", overrides=size)) == 0
assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


def test_a_finished_run_is_not_repeated(
    launcher: Launcher, sage: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = launcher.reference(FF)
    before = (done.folder / "result.json").stat().st_mtime_ns
    again = sage("run", *FF.split(), "--runs", str(done.runs))
    assert again.returncode == 0
    assert "already finished (accuracy" in again.stderr
    assert "use --fresh to run it again" in again.stderr
    assert (done.folder / "result.json").stat().st_mtime_ns == before


def test_fresh_repeats_a_run_with_bitwise_identical_results(launcher: Launcher, tmp_path: Path) -> None:
    done = launcher.reference(FF)
    shutil.copytree(done.runs, tmp_path / "runs")
    (tmp_path / "runs" / done.folder.name / "metrics.jsonl").write_text("what was here before\n")
    again = launcher.finish(f"{FF} --fresh", tmp_path / "runs")
    assert "already finished" not in again.output
    assert_same_run(done.folder, again.folder)


def test_another_seed_is_another_run(launcher: Launcher, tmp_path: Path) -> None:
    done, other = launcher.reference(FF), launcher.finish(f"{FF} --seed 1", tmp_path / "runs")
    assert other.folder.name != done.folder.name
    losses, other_losses = ([step["loss"] for step in records(run.folder, "step")] for run in (done, other))
    assert not set(losses) & set(other_losses)


@pytest.mark.parametrize("argv", [FF, LSTM], ids=["digits-ff", "lstm-topics"])
def test_ranks_in_one_process_give_the_same_results_as_processes(
    launcher: Launcher, tmp_path: Path, argv: str
) -> None:
    # A sum of two numbers is equal in either order, so with two ranks the results are bitwise equal.
    processes = launcher.reference(argv).folder
    threads = launcher.finish(f"{argv} --workers-in-process", tmp_path / "runs").folder
    for kind in ("step", "epoch"):
        assert records(threads, kind) == records(processes, kind)
    (shared, _), *_ = state(threads)
    (shared_by_processes, _), *_ = state(processes)
    assert shared == shared_by_processes


# Killed.


@pytest.mark.parametrize(
    ("argv", "at", "saved"),
    [
        *((CNN, 9, 8), (LSTM, 3, 2), (NCF, 7, 5), (FF, 3, 0), (GPT, 5, 4)),
        (f"{CNN} --optimizer signum --lr 0.001", 7, 4),
        (f"{LSTM} --optimizer muon --lr 0.01", 3, 2),
        (CONVEX, 7, 4),
        (SPEECH, 3, 2),
        pytest.param(BERT, 5, 4, marks=pytest.mark.thorough),
    ],
    ids=[
        *("digits", "lstm-topics", "ncf-imports", "before its first checkpoint", "gpt-topics with adamw"),
        *("digits with signum", "lstm-topics with muon", "logistic-breast-cancer with adamw"),
        "deepspeech-synthetic-tones",
        "bert-docstrings",
    ],
)
def test_a_killed_run_resumes_as_if_uninterrupted(
    launcher: Launcher, brake: Brake, tmp_path: Path, argv: str, at: int, saved: int
) -> None:
    kill(launcher, brake, argv, tmp_path / "runs", at)
    resumed = launcher.finish(argv, tmp_path / "runs")
    assert (f"resuming from its own checkpoint, at step {saved} of " in resumed.output) == (saved > 0)
    assert_same_run(launcher.reference(argv).folder, resumed.folder)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(
    launcher: Launcher, brake: Brake, tmp_path: Path
) -> None:
    folder = kill(launcher, brake, FF, tmp_path / "runs", 11)
    damaged = folder / "checkpoints" / "step-00000008" / "rank-0001.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    resumed = launcher.finish(FF, tmp_path / "runs")
    assert "step-00000008 is not used: rank-0001.pt should have" in resumed.output
    assert "resuming from its own checkpoint, at step 4 of 14" in resumed.output
    assert_same_run(launcher.reference(FF).folder, resumed.folder)


def kill(launcher: Launcher, brake: Brake, argv: str, runs: Path, at: int) -> Path:
    """Start a run and kill it by SIGKILL before a step; return its folder, which no process writes to."""
    run = launcher.start(argv, runs, tamper=brake.before_step(at))
    ranks = brake.paused_ranks()
    run.process.kill()
    until(lambda: all(is_gone(pid) for pid in ranks))
    return run.folder


# Stopped.


def test_signals_stop_all_ranks_at_the_same_step_and_the_run_resumes(
    launcher: Launcher, brake: Brake, tmp_path: Path
) -> None:
    stops = []
    # The step at which the signal comes, and its target: a rank, or the main process.
    for number, at, rank in (
        (signal.SIGUSR1, 2, None),
        (signal.SIGTERM, 5, 1),
        (signal.SIGUSR2, 8, None),
        (signal.SIGINT, 11, 0),
    ):
        run = launcher.start(FF, tmp_path / "runs", tamper=brake.before_step(at))
        ranks = brake.paused_ranks()
        os.kill(run.process.pid if rank is None else ranks[rank], number)
        if rank is not None:
            until(partial(has_no_pending_signal, ranks[rank]))
            brake.release()
        assert run.wait() == 75, run.output
        found = newest(run.folder)
        assert found.step > at
        assert f"stopped and saved at step {found.step}; rerun the same command to resume" in run.output
        taken = [checkpoint.load(found.path, each)[1]["tally"]["step_seconds"].numel() for each in range(2)]
        assert taken == [found.step, found.step]
        stops.append(found.step)
    resumed = launcher.finish(FF, tmp_path / "runs")
    assert_same_run(launcher.reference(FF).folder, resumed.folder)
    events = [(record["event"], record["step"]) for record in records(resumed.folder, "event")]
    assert events == [(event, step) for step in stops for event in ("stopped", "resumed")]


def test_a_signal_before_training_has_begun_is_not_a_crash(tmp_path: Path) -> None:
    outcome = tmp_path / "outcome"
    process = subprocess.Popen(
        [sys.executable, "-m", "sage", "run", *FF.split()],
        cwd=tmp_path,
        env={**outside(), "PYTHONPATH": str(Path(__file__).parents[2]), "SAGE_OUTCOME": str(outcome)},
    )
    until(lambda: is_handled(process.pid, signal.SIGUSR1))
    process.send_signal(signal.SIGUSR1)
    assert process.wait(PATIENCE) == 75
    assert outcome.read_text() == "75 stopped by SIGUSR1 before it began\n"
    assert not (tmp_path / "runs").exists()


# Failures.


def test_a_killed_rank_ends_the_others_and_is_named(launcher: Launcher, brake: Brake, tmp_path: Path) -> None:
    run = launcher.start(FF, tmp_path / "runs", tamper=brake.before_step(3))
    os.kill(brake.paused_ranks()[1], signal.SIGKILL)
    brake.release()
    assert run.wait() == 1
    assert "Cause: rank 1 does not respond" in run.output
    assert "rank 1 was terminated by SIGKILL" in run.output
    assert "Traceback" not in run.output
    word = json.loads((run.folder / "failure.json").read_text())
    assert (word["rank"], word["status"]) == (0, 1)
    assert "Cause: rank 1" in word["error"]
    assert not (run.folder / "result.json").exists()


def fail_on_rank_1(training: Training) -> None:
    if training.wire.rank == 1 and training.step == 2:
        raise RuntimeError("an error that nobody foresaw")


def test_an_unexpected_error_ends_the_other_ranks_and_keeps_its_traceback(
    launcher: Launcher, tmp_path: Path
) -> None:
    run = launcher.start(FF, tmp_path / "runs", tamper=partial(before_each_step, fail_on_rank_1))
    assert run.wait() == 1
    assert "RuntimeError: an error that nobody foresaw" in run.output
    word = json.loads((run.folder / "failure.json").read_text())
    message = "rank 1: RuntimeError: an error that nobody foresaw (tests/train/test_run.py, line "
    assert word["error"].replace(f"{Path(__file__).parents[2]}/", "").startswith(message)
    assert "Traceback" not in run.output
    assert "Traceback" in (run.folder / "traceback-1.txt").read_text()
    assert "rank 1 has exited: RuntimeError: an error that nobody foresaw" in run.output, (
        "the others know why"
    )


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("digit-ff", 2, "digits-ff"),
        ("digits-ff --reducer topkk", 2, "topk"),
        ("digits-ff --lr -1", 2, "lr"),
        ("digits-ff --densty 0.1", 2, "--density"),
        ("digits-ff --density 7", 2, "expected a share of the elements, above 0 and at most 1"),
        ("digits-ff --batch-size 1000", 2, "lower the batch size to at most 718"),
        ("digits-ff --batch-size 1000 --workers-in-process", 2, "lower the batch size to at most 718"),
        ("digits-ff --accumulate 30", 2, "lower --accumulate or --batch-size"),
        ("digits-ff --lr 1e9", 2, "the mean gradient is not finite; "),
    ],
)
def test_an_impossible_run_is_an_error_of_a_few_lines_without_traceback(
    launcher: Launcher, tmp_path: Path, argv: str, code: int, message: str
) -> None:
    run = launcher.start(argv, tmp_path / "runs")
    assert run.wait() == code, run.output
    assert message in run.output
    assert "Traceback" not in run.output
    assert len(run.output.splitlines()) <= 24


def test_a_folder_that_cannot_be_created_is_a_one_line_error(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    run = launcher.start(FF, tmp_path / "runs" / "deeper")
    assert run.wait() == 2
    assert "is not a folder; give another --runs" in run.output
    assert "Traceback" not in run.output


def test_a_folder_that_another_process_uses_is_not_changed(launcher: Launcher, tmp_path: Path) -> None:
    folder = tmp_path / launcher.reference(FF).folder.name
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = launcher.start(FF, tmp_path)
        assert run.wait() == 1
    assert f"{folder} is in use by another process" in run.output
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert launcher.finish(FF, tmp_path).folder == folder


def test_fresh_is_refused_during_training_and_the_run_loses_nothing(
    launcher: Launcher, brake: Brake, tmp_path: Path
) -> None:
    run = launcher.start(FF, tmp_path / "runs", tamper=brake.before_step(6))
    brake.paused_ranks()
    before = contents(run.folder)
    assert any("checkpoints" in path.parts for path in before)
    fresh = launcher.start(f"{FF} --fresh", tmp_path / "runs")
    assert fresh.wait() == 2, "with another status a job would try again, and remove the finished run"
    (line,) = [line for line in fresh.output.splitlines() if line.startswith("sage")]
    assert f"{run.folder} is in use by process" in line
    assert contents(run.folder) == before
    brake.release()
    assert run.wait() == 0
    assert_same_run(run.folder, launcher.reference(FF).folder)


def contents(folder: Path) -> dict[Path, bytes]:
    """The files of a run except TensorBoard's, which are written in the background."""
    files = (path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    return {path: path.read_bytes() for path in files}


# The files of a run.


def test_a_run_writes_its_configuration_manifest_and_result(launcher: Launcher) -> None:
    folder = launcher.reference(FF).folder
    config, manifest, result = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("config", "manifest", "result")
    )
    assert folder.name.startswith("digits-ff-sage-")
    assert config["reducer"] == "sage"
    assert config["reducer_options"]["density"] == 0.01
    assert config["data_options"] == {"limit_train": 320, "limit_test": None}
    assert manifest["config"] == config
    assert list(manifest["checksums"]) == ["sklearn.datasets.load_digits"]
    assert manifest["seed"] == 0
    assert len(manifest["hosts"]) == 2
    assert manifest["links"]["bits_per_second"] > 0 < manifest["links"]["alpha_seconds"]
    assert manifest["versions"]["torch"] == torch.__version__
    start, end = (manifest["load"][when] for when in ("start", "end"))
    assert start["time"] <= end["time"]
    assert min(start["average_1min"], end["average_1min"]) >= 0
    assert min(start["runnable"], end["runnable"]) >= 1

    steps, epochs = records(folder, "step"), records(folder, "epoch")
    assert [record["step"] for record in steps] == list(range(14))
    assert [record["step"] for record in epochs] == [5, 10, 14]
    assert (result["steps"], result["epochs"], result["world_size"]) == (14, 2.8, 2)
    assert result["parameters"] == (64 + 1) * 200 + (200 + 1) * 200 + (200 + 1) * 10
    assert (result["metric"], result["better"]) == ("accuracy", "max")
    assert result["final"] == epochs[-1]["metrics"]
    assert result["best"] == max(record["metrics"]["accuracy"] for record in epochs)
    for name in ("density_asked", "density_had"):
        assert result[name] == pytest.approx(sum(record[name] for record in steps) / 14)
    for name in ("wire_sent", "wire_received"):
        assert result[f"{name}_per_step"] == pytest.approx(sum(record[name] for record in steps) / 14)
    for name, size in result["payload_per_step"].items():
        assert size == pytest.approx(sum(record["bytes"].get(name, 0) for record in steps) / 14)
    assert result["step_seconds"]["p50"] <= result["step_seconds"]["p95"] <= result["step_seconds"]["p99"]
    assert 10**9 > result["peak_bytes"] > 10**7 > result["state_bytes"] > 4 * 64 * 200  # a residual
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))


def test_a_profile_splits_the_step_into_its_phases(launcher: Launcher, tmp_path: Path) -> None:
    folder = launcher.finish(f"{FF} --profile", tmp_path / "runs").folder
    for record in read_metrics(folder):
        if record["kind"] == "step":
            phases = {"forward", "backward", "select", "communicate", "scatter", "update"}
            assert set(record["phases"]) == phases
            assert sum(record["phases"].values()) <= record["seconds"]
    assert all("phases" not in record for record in records(launcher.reference(FF).folder, "step"))


# Ranks started separately.

OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")


def has_ipv6() -> bool:
    """Whether loopback can be reached by IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as listener:
            listener.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "names",
    [
        ("hostip", "port", "rank", "world_size", "local_rank"),
        ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("hostip", "port", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
        ("hostip", "port", *OPEN_MPI),
    ],
    ids=["bare", "torchrun", "SLURM", "Open MPI"],
)
def test_ranks_started_separately_connect_and_give_the_same_results(
    launcher: Launcher, tmp_path: Path, names: tuple[str, ...]
) -> None:
    # One of them by IPv6, if this machine has it.
    host = "::1" if "RANK" in names and has_ipv6() else "127.0.0.1"
    port = free_port()
    ranks = []
    for rank in range(2):
        environment = dict(zip(names, (host, port, str(rank), "2", str(rank)), strict=True))
        ranks.append(launcher.start(FF, tmp_path / "runs", environment=environment))
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.output for rank in ranks]
    assert_same_run(launcher.reference(FF).folder, ranks[0].folder)


def test_missing_variables_are_named(launcher: Launcher, tmp_path: Path) -> None:
    run = launcher.start(FF, tmp_path / "runs", environment={"hostip": "127.0.0.1", "port": "29500"})
    assert run.wait() == 2, run.output
    assert "hostip=127.0.0.1 is set, but rank, world_size are not set" in run.output
    assert not (tmp_path / "runs").exists()
