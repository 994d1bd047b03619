"""Starts runs as the command line does, pauses them before a step, and compares their results bitwise.

Every run is a separate process, forked from a server that has already imported the slow modules.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import leftovers
import torch
from sockets import free_ports

from sage.cli.main import main
from sage.data.dataset import Batch
from sage.datasets import imports
from sage.records.record import Record, read_metrics
from sage.train import checkpoint
from sage.train.loop import Training

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["sage.train.run", "sage.cli.run", "torch._dynamo", "torch.utils.tensorboard"])
PATIENCE = 600.0
"""Seconds to wait for operations that take a few on an idle machine: only a hang takes longer."""

NOTHING: Mapping[str, str] = {}


@dataclass
class Run:
    """A running run: its main process, its output, and the location of its folder."""

    process: Any
    log: Path
    runs: Path

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"still running: {self.output}"
        return int(self.process.exitcode)

    @property
    def output(self) -> str:
        """Return the output to stdout and stderr so far."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def folder(self) -> Path:
        """Return the only run folder."""
        (folder,) = self.runs.iterdir()
        return folder


class Launcher:
    """Starts runs and ends them with the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Scanning the standard library takes seconds per rank; the result is shared by all ranks.
        self._pairs = imports.standard_library_imports()
        self._started: list[Any] = []
        self._references: dict[str, Run] = {}

    def start(
        self,
        argv: str,
        runs: Path,
        *,
        tamper: Callable[[], None] | None = None,
        environment: Mapping[str, str] = NOTHING,
    ) -> Run:
        """Start `sage run ARGV` in a process whose only rank variables are those of `environment`."""
        (self.folder / "data").mkdir(exist_ok=True)
        around = {**outside(), "COLUMNS": "100", "SAGE_DATA_DIR": str(self.folder / "data"), **environment}
        log = self.folder / f"log-{len(self._started)}"
        arguments = ["run", *argv.split(), "--runs", str(runs)]
        process = CONTEXT.Process(target=_main, args=(arguments, log, around, tamper, self._pairs))
        process.start()
        self._started.append(process)
        return Run(process, log, runs)

    def finish(self, argv: str, runs: Path) -> Run:
        """Start a run and wait until it finishes successfully."""
        run = self.start(argv, runs)
        assert run.wait() == 0, run.output
        return run

    def reference(self, argv: str) -> Run:
        """Return the uninterrupted run, which all tests share."""
        if argv not in self._references:
            runs = self.folder / f"reference-{len(self._references)}"
            self._references[argv] = self.finish(argv, runs)
        return self._references[argv]

    def close(self) -> None:
        """Kill the runs that have not ended."""
        for process in self._started:
            process.kill()
            process.join()


@dataclass
class Brake:
    """Pauses every rank before one step, until it receives a signal or is released."""

    folder: Path
    world_size: int = 2

    def before_step(self, step: int) -> Callable[[], None]:
        """Return the function that patches a run so that it pauses before `step`."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return partial(_pause, self.folder, step)

    def paused_ranks(self) -> list[int]:
        """Wait until all ranks are paused, and return their process ids."""
        paths = [self.folder / f"rank-{rank}" for rank in range(self.world_size)]
        until(lambda: all(path.exists() for path in paths))
        return [int(path.read_text()) for path in paths]

    def release(self) -> None:
        """Release every rank."""
        (self.folder / "go").touch()


def before_each_step(act: Callable[[Training], None]) -> None:
    """Patch this process so that it calls `act` before each training step."""
    take_step = Training.take_step

    def take_step_with_act(self: Training, batches: list[Batch]) -> None:
        act(self)
        take_step(self, batches)

    setattr(Training, "take_step", take_step_with_act)  # noqa: B010


def _pause(folder: Path, step: int) -> None:
    def wait(training: Training) -> None:
        if training.step == step:
            draft = folder / f"draft-{training.wire.rank}"
            draft.write_text(str(os.getpid()))
            draft.rename(folder / f"rank-{training.wire.rank}")
            while training.stop.signal is None and not (folder / "go").exists():
                time.sleep(0.002)

    before_each_step(wait)


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
    setattr(imports, "standard_library_imports", lambda: pairs)  # noqa: B010
    if tamper is not None:
        tamper()
    sys.exit(main(argv))


def outside() -> dict[str, str]:
    """Return the environment of a run: without rank variables, and with the mark of the tests."""
    names = ("PATH", "HOME", "TMPDIR", "LANG", leftovers.MARK)
    return {name: os.environ[name] for name in names if name in os.environ}


def until(true: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, even if its parent has not waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def has_no_pending_signal(pid: int) -> bool:
    """Return whether every signal sent to the process has been delivered."""
    return not _signals(pid, "SigPnd") | _signals(pid, "ShdPnd")


def is_pending(pid: int, number: int) -> bool:
    """Return whether a signal to the process is still pending."""
    return bool((_signals(pid, "SigPnd") | _signals(pid, "ShdPnd")) >> (number - 1) & 1)


def is_handled(pid: int, number: int) -> bool:
    """Return whether the process has a handler for the signal."""
    return bool(_signals(pid, "SigCgt") >> (number - 1) & 1)


def _signals(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0
    return int(dict(line.split(":", 1) for line in lines)[name], 16)


def free_port() -> str:
    """Return a free loopback port."""
    (port,) = free_ports(1)
    return port


def records(folder: Path, kind: str) -> list[Record]:
    """Return a run's records of one kind, without their times."""
    return [
        {name: value for name, value in record.items() if "seconds" not in name}
        for record in read_metrics(folder)
        if record["kind"] == kind
    ]


def num_steps(runs: Path) -> int:
    """Return the number of recorded steps of the only run in `runs`."""
    paths = list(runs.glob("*/metrics.jsonl"))
    return sum(record["kind"] == "step" for record in read_metrics(paths[0].parent)) if paths else 0


def newest(folder: Path) -> checkpoint.Found:
    """Return a run's newest complete checkpoint."""
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    return found


def state(folder: Path) -> list[Any]:
    """Return the contents of a run's newest checkpoint by rank, without times; tensors as hashes."""
    found = newest(folder)
    return [_bits(checkpoint.load(found.path, rank)) for rank in range(found.world_size)]


def _bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().numpy().tobytes()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(data).hexdigest()
    if isinstance(value, dict):
        return {name: _bits(item) for name, item in value.items() if "seconds" not in str(name)}
    return [_bits(item) for item in value] if isinstance(value, list | tuple) else value


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that two runs have bitwise identical records and results."""
    for kind in ("step", "epoch"):
        assert records(one, kind) == records(other, kind)
    assert state(one) == state(other)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for result in results:
        for measured in ("seconds", "step_seconds", "steps_per_second", "loader_share", "peak_bytes"):
            assert result.pop(measured)
    assert results[0] == results[1]
