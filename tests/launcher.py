"""Runs under way: started as on the command line, held before a step, hurt, and compared to the bit.

Every run is a process of its own, forked off a server that has imported what takes seconds to import.
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
PATIENCE = 200.0
"""Seconds to wait for what should take one or two, on a machine that is busy."""

NOTHING: Mapping[str, str] = {}


@dataclass
class Run:
    """A run under way: its main process, what it says, and where its folder will be."""

    process: Any
    log: Path
    runs: Path

    def wait(self) -> int:
        """Wait for the end, and return the exit status."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"still running: {self.said}"
        return int(self.process.exitcode)

    @property
    def said(self) -> str:
        """What it has written to stdout and stderr."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def folder(self) -> Path:
        """The one run folder there is."""
        (folder,) = self.runs.iterdir()
        return folder


class Launcher:
    """Starts runs, and lets none outlive the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Reading the standard library takes each rank seconds; here it is done once for all.
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
        """Run `sage run ARGV`, in a process where nothing but `environment` tells of ranks."""
        (self.folder / "data").mkdir(exist_ok=True)
        around = {**outside(), "COLUMNS": "100", "SAGE_DATA_DIR": str(self.folder / "data"), **environment}
        log = self.folder / f"log-{len(self._started)}"
        arguments = ["run", *argv.split(), "--runs", str(runs)]
        process = CONTEXT.Process(target=_main, args=(arguments, log, around, tamper, self._pairs))
        process.start()
        self._started.append(process)
        return Run(process, log, runs)

    def finish(self, argv: str, runs: Path) -> Run:
        """The same, and wait for it to finish well."""
        run = self.start(argv, runs)
        assert run.wait() == 0, run.said
        return run

    def reference(self, argv: str) -> Run:
        """The uninterrupted run, the same one for all tests."""
        if argv not in self._references:
            runs = self.folder / f"reference-{len(self._references)}"
            self._references[argv] = self.finish(argv, runs)
        return self._references[argv]

    def close(self) -> None:
        """Kill what still runs."""
        for process in self._started:
            process.kill()
            process.join()


@dataclass
class Brake:
    """Holds every rank before one step, until it hears a signal or is let go."""

    folder: Path
    world_size: int = 2

    def put(self, step: int) -> Callable[[], None]:
        """What to tamper with in a run that is to be held before `step`."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return partial(_hold, self.folder, step)

    def held(self) -> list[int]:
        """The ranks' process ids, once all of them are held."""
        paths = [self.folder / f"rank-{rank}" for rank in range(self.world_size)]
        until(lambda: all(path.exists() for path in paths))
        return [int(path.read_text()) for path in paths]

    def let_go(self) -> None:
        """Let every rank take the step."""
        (self.folder / "go").touch()


def before_each_step(act: Callable[[Training], None]) -> None:
    """Tamper with this process, so that it acts before each step of training."""
    take_step = Training.take_step

    def acted(self: Training, batches: list[Batch]) -> None:
        act(self)
        take_step(self, batches)

    setattr(Training, "take_step", acted)  # noqa: B010


def _hold(folder: Path, step: int) -> None:
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
    """The environment of a run: nothing that tells of ranks, and the mark of the tests."""
    names = ("PATH", "HOME", "TMPDIR", "LANG", leftovers.MARK)
    return {name: os.environ[name] for name in names if name in os.environ}


def until(true: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; its parent need not have asked for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def has_heard(pid: int) -> bool:
    """Whether every signal that was sent to the process has reached it."""
    return not _signals(pid, "SigPnd") | _signals(pid, "ShdPnd")


def is_pending(pid: int, number: int) -> bool:
    """Whether a signal has been sent to the process that it has not heard yet."""
    return bool((_signals(pid, "SigPnd") | _signals(pid, "ShdPnd")) >> (number - 1) & 1)


def is_handled(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    return bool(_signals(pid, "SigCgt") >> (number - 1) & 1)


def _signals(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0
    return int(dict(line.split(":", 1) for line in lines)[name], 16)


def free_port() -> str:
    """A port of loopback that is free."""
    (port,) = free_ports(1)
    return port


def records(folder: Path, kind: str) -> list[Record]:
    """A run's records of one kind, but for the times in them."""
    return [
        {name: value for name, value in record.items() if "seconds" not in name}
        for record in read_metrics(folder)
        if record["kind"] == kind
    ]


def num_steps(runs: Path) -> int:
    """The steps on record in the one run among `runs`."""
    paths = list(runs.glob("*/metrics.jsonl"))
    return sum(record["kind"] == "step" for record in read_metrics(paths[0].parent)) if paths else 0


def newest(folder: Path) -> checkpoint.Found:
    """A run's newest checkpoint that is whole."""
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    return found


def state(folder: Path) -> list[Any]:
    """All that a run's newest checkpoint holds, by rank, but for times, with hashes for tensors."""
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
    """Two runs went through the same numbers and came to the same, to the bit."""
    for kind in ("step", "epoch"):
        assert records(one, kind) == records(other, kind)
    assert state(one) == state(other)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for result in results:
        for measured in ("seconds", "step_seconds", "steps_per_second"):
            assert result.pop(measured)
    assert results[0] == results[1]
