"""A run, from the command line to its result: done once, stopped and resumed to the bit, ended by what goes wrong."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sage import checkpoint, cli
from sage.data import Batch
from sage.datasets import imports
from sage.record import Record, read_metrics
from sage.train import Training

# Every run is a process of its own, forked off a server that has imported what takes seconds to import.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["pytest", "sage.run", "sage.flags", "sklearn.datasets", "torch._dynamo", "torch.utils.tensorboard"]
)
PATIENCE = 200.0
"""Seconds to wait for what should take one or two, on a machine that is busy."""

FF = ["digits-ff", "--steps", "14", "--checkpoint-every", "4", "--data.limit-train", "320"]
"""Five steps an epoch, error feedback, momentum after the reduction; checkpoints in the middle of epochs."""

WORKLOADS = {
    # Running statistics, momentum before the reduction, and a running average of the model.
    "digits": [
        *("digits", "--steps", "12", "--checkpoint-every", "4", "--batch-size", "8"),
        *("--data.limit-train", "80", "--data.limit-test", "40", "--momentum-at", "before", "--average-from", "1"),
    ],
    # Dropout, and a hidden state carried from step to step; two batches a step.
    "lstm-topics": [
        *("lstm-topics", "--steps", "6", "--checkpoint-every", "2", "--accumulate", "2"),
        *("--data.limit-train", "20000", "--data.limit-test", "1000"),
    ],
    # Adam, and negatives drawn anew in each epoch.
    "ncf-imports": ["ncf-imports", "--steps", "12", "--checkpoint-every", "5", "--batch-size", "512"],
}


@dataclass
class Run:
    """A run under way: its main process, what it says, and its folder."""

    process: Any
    log: Path
    runs: Path

    def wait(self) -> int:
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"still running: {self.said}"
        return int(self.process.exitcode)

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def folder(self) -> Path:
        (folder,) = self.runs.iterdir()
        return folder


@dataclass
class Brake:
    """Holds every rank before one step, until it hears a signal or is let go."""

    folder: Path
    world_size: int = 2

    def put(self, step: int) -> Callable[[], None]:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return partial(_hold, self.folder, step)

    def held(self) -> list[int]:
        """The ranks' process ids, once all of them are held."""
        paths = [self.folder / f"rank-{rank}" for rank in range(self.world_size)]
        until(lambda: all(path.exists() for path in paths))
        return [int(path.read_text()) for path in paths]

    def let_go(self) -> None:
        (self.folder / "go").touch()


class Launcher:
    """Starts runs, and lets none outlive the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pairs = imports.standard_library_imports()
        self._started: list[Any] = []
        self._references: dict[str, Run] = {}

    def start(
        self, argv: list[str], runs: Path, *, tamper: Callable[[], None] | None = None, **environment: str
    ) -> Run:
        """Run `sage run ARGV`, in a process where nothing but `environment` tells of ranks."""
        outside = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
        environment |= {**outside, "COLUMNS": "100", "SAGE_DATA_DIR": str(self.folder / "data")}
        log = self.folder / f"log-{len(self._started)}"
        arguments = ["run", *argv, "--runs", str(runs)]
        process = CONTEXT.Process(target=_main, args=(arguments, log, environment, tamper, self.pairs))
        process.start()
        self._started.append(process)
        return Run(process, log, runs)

    def finish(self, argv: list[str], runs: Path, **more: Any) -> Run:
        """The same, and wait for it to finish well."""
        run = self.start(argv, runs, **more)
        assert run.wait() == 0, run.said
        return run

    def reference(self, name: str) -> Run:
        """An uninterrupted run of a workload, the same one for all tests."""
        if name not in self._references:
            argv = {"digits-ff": FF, **WORKLOADS}[name]
            self._references[name] = self.finish(argv, self.folder / "references" / name)
        return self._references[name]

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.join()


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("runs"))
    (launcher.folder / "data").mkdir()
    yield launcher
    launcher.close()


@pytest.fixture
def brake(tmp_path: Path) -> Brake:
    return Brake(tmp_path / "brake")


# What happens in a run's own processes.


def _main(
    argv: list[str],
    log: Path,
    environment: dict[str, str],
    tamper: Callable[[], None] | None,
    pairs: list[tuple[str, str]],
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(environment)
    # Reading the standard library takes each rank seconds; the tests have read it once for all.
    setattr(imports, "standard_library_imports", lambda: pairs)  # noqa: B010
    if tamper is not None:
        tamper()
    sys.exit(cli.main(argv))


def _hold(folder: Path, step: int) -> None:
    def wait(training: Training) -> None:
        if training.step == step:
            draft = folder / f"draft-{training.wire.rank}"
            draft.write_text(str(os.getpid()))
            draft.rename(folder / f"rank-{training.wire.rank}")
            while training.stop.signal is None and not (folder / "go").exists():
                time.sleep(0.002)

    _before_each_step(wait)


def _fail_on_rank_1(training: Training) -> None:
    if training.wire.rank == 1 and training.step == 2:
        raise RuntimeError("an error that nobody foresaw")


def _before_each_step(act: Callable[[Training], None]) -> None:
    take_step = Training.take_step

    def acted(self: Training, batches: list[Batch]) -> None:
        act(self)
        take_step(self, batches)

    setattr(Training, "take_step", acted)  # noqa: B010


# What the tests look at.


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; its parent need not have asked for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def bits(value: Any) -> Any:
    """The same value, with a hash in the place of each tensor."""
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().numpy().tobytes()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(data).hexdigest()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items() if key not in ("seconds", "step_seconds")}
    return [bits(item) for item in value] if isinstance(value, list | tuple) else value


def timeless(record: Record) -> Record:
    return {key: value for key, value in record.items() if "seconds" not in key}


def kind(folder: Path, kind: str) -> list[Record]:
    return [timeless(record) for record in read_metrics(folder) if record["kind"] == kind]


def newest(folder: Path) -> checkpoint.Found:
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    return found


def state(folder: Path) -> list[Any]:
    """All that the newest checkpoint holds, of every rank, but for times."""
    found = newest(folder)
    return [bits(checkpoint.load(found.path, rank)) for rank in range(found.world_size)]


def assert_same_run(one: Path, other: Path) -> None:
    """Two runs went through the same numbers and came to the same, to the bit."""
    for each in ("step", "epoch"):
        assert kind(one, each) == kind(other, each)
    assert state(one) == state(other)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for result in results:
        for measured in ("seconds", "step_seconds", "steps_per_second"):
            assert result.pop(measured)
    assert results[0] == results[1]


# Once.


def test_a_finished_run_is_not_done_again(
    launcher: Launcher, sage: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = launcher.reference("digits-ff")
    before = (done.folder / "result.json").stat().st_mtime_ns
    again = sage("run", *FF, "--runs", str(done.runs))
    assert again.returncode == 0
    assert "already finished (accuracy" in again.stderr
    assert "--fresh runs it again" in again.stderr
    assert (done.folder / "result.json").stat().st_mtime_ns == before


def test_fresh_does_it_again_and_comes_to_the_same_bits(launcher: Launcher, tmp_path: Path) -> None:
    done = launcher.reference("digits-ff")
    shutil.copytree(done.runs, tmp_path / "runs")
    (tmp_path / "runs" / done.folder.name / "metrics.jsonl").write_text("what was here before\n")
    again = launcher.finish([*FF, "--fresh"], tmp_path / "runs")
    assert "already finished" not in again.said
    assert_same_run(done.folder, again.folder)


def test_another_seed_is_another_run(launcher: Launcher, tmp_path: Path) -> None:
    done, other = launcher.reference("digits-ff"), launcher.finish([*FF, "--seed", "1"], tmp_path / "runs")
    assert other.folder.name != done.folder.name
    losses = [[record["loss"] for record in kind(run.folder, "step")] for run in (done, other)]
    assert not set(losses[0]) & set(losses[1])


def test_ranks_in_one_process_come_to_the_same_as_processes(launcher: Launcher, tmp_path: Path) -> None:
    # A sum of two is the same in either order, so here even the bits are.
    for name in ("digits-ff", "lstm-topics"):
        processes = launcher.reference(name)
        argv = {"digits-ff": FF, **WORKLOADS}[name]
        threads = launcher.finish([*argv, "--workers-in-process"], tmp_path / name)
        for each in ("step", "epoch"):
            assert kind(threads.folder, each) == kind(processes.folder, each)
        models = [run[0][0]["model"] for run in (state(threads.folder), state(processes.folder))]
        assert models[0] == models[1]


# Killed.


@pytest.mark.parametrize(("name", "step"), [("digits", 9), ("lstm-topics", 3), ("ncf-imports", 7)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    launcher: Launcher, brake: Brake, tmp_path: Path, name: str, step: int
) -> None:
    killed = launcher.start(WORKLOADS[name], tmp_path / "runs", tamper=brake.put(step))
    ranks = brake.held()
    killed.process.kill()
    until(lambda: all(is_gone(pid) for pid in ranks))
    assert 0 < newest(killed.folder).step < step
    resumed = launcher.finish(WORKLOADS[name], tmp_path / "runs")
    assert f"resumed from step {newest_before(step, name)} of " in resumed.said
    assert_same_run(launcher.reference(name).folder, resumed.folder)


def newest_before(step: int, name: str) -> int:
    argv = WORKLOADS[name]
    every = int(argv[argv.index("--checkpoint-every") + 1])
    return step // every * every


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_taken(
    launcher: Launcher, brake: Brake, tmp_path: Path
) -> None:
    killed = launcher.start(FF, tmp_path / "runs", tamper=brake.put(11))
    ranks = brake.held()
    killed.process.kill()
    until(lambda: all(is_gone(pid) for pid in ranks))
    damaged = killed.folder / "checkpoints" / "step-00000008" / "rank-0001.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    resumed = launcher.finish(FF, tmp_path / "runs")
    assert "step-00000008 is refused: rank-0001.pt should have" in resumed.said
    assert "resumed from step 4 of 14" in resumed.said
    assert_same_run(launcher.reference("digits-ff").folder, resumed.folder)


# Stopped.


def test_signals_stop_all_ranks_at_one_step_and_the_run_goes_on(
    launcher: Launcher, brake: Brake, tmp_path: Path
) -> None:
    stopped_at = []
    # (the step at which it comes, to whom: the main process or one rank)
    for number, at, rank in (
        (signal.SIGUSR1, 2, None),
        (signal.SIGTERM, 5, 1),
        (signal.SIGUSR2, 8, None),
        (signal.SIGINT, 11, 0),
    ):
        run = launcher.start(FF, tmp_path / "runs", tamper=brake.put(at))
        held = brake.held()
        os.kill(run.process.pid if rank is None else held[rank], number)
        if rank is not None:
            until(lambda pid=held[rank]: not _pending(pid))  # type: ignore[misc]
            brake.let_go()
        assert run.wait() == 75, run.said
        found = newest(run.folder)
        assert found.step > at
        assert f"stopped and saved at step {found.step}; the same command goes on" in run.said
        steps = [checkpoint.load(found.path, each)[1]["step_seconds"].numel() for each in range(2)]
        assert steps == [found.step, found.step]
        stopped_at.append(found.step)
    resumed = launcher.finish(FF, tmp_path / "runs")
    assert_same_run(launcher.reference("digits-ff").folder, resumed.folder)
    events = kind(resumed.folder, "event")
    assert [(event["event"], event["step"]) for event in events] == [
        each for step in stopped_at for each in (("stopped", step), ("resumed", step))
    ]


def _pending(pid: int) -> bool:
    """Whether a signal has been sent to the process that has not reached it yet."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return any(int(fields[name], 16) for name in ("SigPnd", "ShdPnd"))


# Ended by what goes wrong.


def test_a_killed_rank_ends_the_others_and_is_named(launcher: Launcher, brake: Brake, tmp_path: Path) -> None:
    run = launcher.start(FF, tmp_path / "runs", tamper=brake.put(3))
    ranks = brake.held()
    os.kill(ranks[1], signal.SIGKILL)
    brake.let_go()
    assert run.wait() == 1
    assert "Culprit: rank 1 gives no sign of life" in run.said
    assert "rank 1 was ended by SIGKILL" in run.said
    assert "Traceback" not in run.said
    assert not (run.folder / "result.json").exists()


def test_an_error_that_nobody_foresaw_ends_the_others_and_keeps_its_traceback(
    launcher: Launcher, tmp_path: Path
) -> None:
    run = launcher.start(FF, tmp_path / "runs", tamper=partial(_before_each_step, _fail_on_rank_1))
    assert run.wait() == 1
    assert "RuntimeError: an error that nobody foresaw" in run.said
    assert run.said.count("Traceback") == 1


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["digit-ff"], 2, "digits-ff"),
        (["digits-ff", "--reducer", "topkk"], 2, "topk"),
        (["digits-ff", "--lr", "-1"], 2, "lr"),
        (["digits-ff", "--densty", "0.1"], 2, "--density"),
        (["digits-ff", "--density", "7"], 2, "expected a share of the elements, above 0 and at most 1"),
        (["digits-ff", "--batch-size", "1000"], 1, "lower the batch size to at most 718"),
        (["digits-ff", "--batch-size", "1000", "--workers-in-process"], 2, "lower the batch size to at most 718"),
        (["digits-ff", "--accumulate", "30"], 1, "lower --accumulate or --batch-size"),
        (["digits-ff", "--lr", "1e9"], 1, "the mean gradient is not finite, on any rank"),
    ],
)
def test_what_cannot_be_done_is_told_on_one_screen(
    launcher: Launcher, tmp_path: Path, argv: list[str], code: int, said: str
) -> None:
    run = launcher.start(argv, tmp_path / "runs")
    assert run.wait() == code, run.said
    assert said in run.said
    assert "Traceback" not in run.said
    assert len(run.said.splitlines()) <= 24


def test_a_folder_that_cannot_be_made_is_told_in_a_line(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    run = launcher.start(FF, tmp_path / "runs" / "deeper")
    assert run.wait() == 1
    assert "rank 0: [Errno 20] Not a directory" in run.said
    assert "Traceback" not in run.said


# Left behind.


def test_a_run_leaves_its_configuration_its_origin_and_its_result(launcher: Launcher) -> None:
    folder = launcher.reference("digits-ff").folder
    config, manifest, result = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("config", "manifest", "result")
    )
    assert folder.name.startswith("digits-ff-sage-")
    assert config["reducer_options"] == {
        "density": 0.01,
        "threshold": None,
        "controller": "sage",
        "values": "fp32",
        "sample_seed": 0,
    }
    assert manifest["config"] == config
    assert list(manifest["checksums"]) == ["sklearn.datasets.load_digits"]
    assert manifest["seed"] == 0
    assert manifest["versions"]["torch"] == torch.__version__

    steps, epochs = kind(folder, "step"), kind(folder, "epoch")
    assert [record["step"] for record in steps] == list(range(14))
    assert [record["step"] for record in epochs] == [5, 10, 14]
    assert result["steps"] == 14
    assert result["epochs"] == 2.8
    assert result["world_size"] == 2
    assert result["parameters"] == 64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10
    assert result["final"] == epochs[-1]["metrics"]
    assert (result["metric"], result["better"]) == ("accuracy", "max")
    assert result["best"] == max(record["metrics"]["accuracy"] for record in epochs)
    assert result["density_had"] == pytest.approx(sum(record["density_had"] for record in steps) / 14)
    assert result["wire_sent_per_step"] == pytest.approx(sum(record["wire_sent"] for record in steps) / 14)
    for name, size in result["payload_per_step"].items():
        assert size == pytest.approx(sum(record["bytes"].get(name, 0) for record in steps) / 14)
    assert result["step_seconds"]["p50"] <= result["step_seconds"]["p95"] <= result["step_seconds"]["p99"]
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))


def test_a_profile_splits_the_step_into_its_phases(launcher: Launcher, tmp_path: Path) -> None:
    folder = launcher.finish([*FF, "--profile"], tmp_path / "runs").folder
    records = [record for record in read_metrics(folder) if record["kind"] == "step"]
    for record in records:
        assert set(record["phases"]) == {"forward", "backward", "select", "communicate", "scatter", "update"}
        assert sum(record["phases"].values()) <= record["seconds"]
    assert all("phases" not in record for record in kind(launcher.reference("digits-ff").folder, "step"))


# Started by others.


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


LAUNCHERS = {
    "bare shells": ("hostip", "port", "rank", "world_size", "local_rank"),
    "torchrun": ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "SLURM": ("hostip", "port", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "Open MPI": (
        *("hostip", "port"),
        *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ranks_started_by_others_meet_and_come_to_the_same(
    launcher: Launcher, tmp_path: Path, name: str
) -> None:
    port = free_port()
    ranks = [
        launcher.start(
            FF,
            tmp_path / "runs",
            **dict(zip(LAUNCHERS[name], ("127.0.0.1", port, str(rank), "2", str(rank)), strict=True)),
        )
        for rank in range(2)
    ]
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.said for rank in ranks]
    assert_same_run(launcher.reference("digits-ff").folder, ranks[0].folder)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"hostip": "127.0.0.1", "port": "29500"}, "hostip=127.0.0.1 is set, but rank, world_size is not"),
        ({"hostip": "127.0.0.1", "port": "x", "rank": "0", "world_size": "2"}, "port='x': expected a whole number"),
        ({"hostip": "127.0.0.1", "port": "29500", "rank": "2", "world_size": "2"}, "rank=2"),
        ({"MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK is not set"),
    ],
)
def test_variables_that_are_wrong_or_missing_are_named(
    launcher: Launcher, tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    run = launcher.start(FF, tmp_path / "runs", **environment)
    assert run.wait() == 2, run.said
    assert said in run.said
    assert not (tmp_path / "runs").exists()
