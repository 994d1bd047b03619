"""Tests of failing runs: one line that names the rank and the cause, and the exit status."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import (
    PATIENCE,
    Brake,
    Launcher,
    before_each_step,
    free_port,
    has_no_pending_signal,
    outside,
    until,
)

from sage.reducers.exact import Exact
from sage.reduction.reducer import Reduced
from sage.train import failure
from sage.train.backward import Backward
from sage.train.loop import Training

FF = "digits-ff --data.limit-train 320 --reducer exact"


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("runs"))
    yield launcher
    launcher.close()


def lines(output: str) -> list[str]:
    """Return the lines about failures."""
    return [line for line in output.splitlines() if line.startswith("sage: ")]


# Replicas that diverge.


def diverge(step: int) -> None:
    """From a step on, the reducer's mean differs on rank 1."""
    forward, steps = Exact.forward, [0]

    def diverging(self: Exact, grad_N: torch.Tensor, residual_N: torch.Tensor | None, wire: Any) -> Reduced:
        reduced = forward(self, grad_N, residual_N, wire)
        if wire.rank == 1 and steps[0] >= step:
            reduced.mean_N[5] += 1e-3
        steps[0] += 1
        return reduced

    setattr(Exact, "forward", diverging)  # noqa: B010


@pytest.mark.parametrize(
    ("argv", "found_at"),
    [
        ("--steps 8 --guard", 5),  # an evaluation, at the end of an epoch
        ("--steps 8 --checkpoint-every 3", 3),
        ("--steps 8 --check-replicas 2", 4),
        ("--steps 8 --check-replicas 0", None),
    ],
)
def test_diverging_replicas_end_the_run_at_the_next_comparison(
    launcher: Launcher, tmp_path: Path, argv: str, found_at: int | None
) -> None:
    run = launcher.start(f"{FF} {argv}", tmp_path / "runs", tamper=partial(diverge, 2))
    assert run.wait() == (0 if found_at is None else 2), run.output
    if found_at is not None:
        message = f"step {found_at}: the model of rank 1 differs from that of rank 0, first in "
        assert len(lines(run.output)) == 1, run.output
        assert message in lines(run.output)[0]
        assert ".weight" in lines(run.output)[0] or ".bias" in lines(run.output)[0]
        word = json.loads((run.folder / "failure.json").read_text())
        assert word["status"] == 2
        assert message in word["error"]


def make_gradient_nan(step: int, rank: int) -> None:
    """From a step on, one rank's gradient is not finite."""
    call, steps = Backward.__call__, [0]

    def with_nan(self: Backward, batches: Any) -> torch.Tensor:
        loss = call(self, batches)
        if RANK[0] == rank and steps[0] >= step:
            self.mount.grad_N[3] = math.nan
        steps[0] += 1
        return loss

    setattr(Backward, "__call__", with_nan)  # noqa: B010

    def note(training: Training) -> None:
        RANK[0] = training.wire.rank

    before_each_step(note)


RANK = [-1]


def test_a_gradient_that_is_not_finite_is_traced_to_its_rank(launcher: Launcher, tmp_path: Path) -> None:
    run = launcher.start(f"{FF} --steps 5", tmp_path / "runs", tamper=partial(make_gradient_nan, 2, 1))
    assert run.wait() == 2
    (line,) = lines(run.output)
    assert "step 2: the mean gradient is not finite; the local gradient of rank 1 is not finite" in line


# Ranks that exit.


def leave(how: str, training: Training) -> None:
    if training.wire.rank == 1 and training.step == 2:
        if how == "_exit 0":
            os._exit(0)
        if how == "_exit 7":
            os._exit(7)
        if how == "SystemExit":
            sys.exit(3)
        if how == "text":
            sys.exit("a text")
        raise KeyError("a key")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("_exit 0", "sage: rank 1 exited with status 0 before it had finished: it called os._exit"),
        ("_exit 7", "sage: rank 1 exited with status 7 before it had finished: it called os._exit"),
        ("SystemExit", "called sys.exit(3)"),
        ("text", "called sys.exit('a text')"),
        ("KeyError", "KeyError: 'a key'"),
    ],
)
def test_a_rank_that_exits_is_named_with_its_status(
    launcher: Launcher, tmp_path: Path, how: str, says: str
) -> None:
    run = launcher.start(
        f"{FF} --steps 5", tmp_path / "runs", tamper=partial(before_each_step, partial(leave, how))
    )
    assert run.wait() == 1, run.output
    assert says in run.output
    assert "Traceback" not in run.output
    if "exit" not in how:
        assert "rank 1 has exited: " in run.output, "the others are not told"


def test_a_second_sigint_ends_a_run_with_130(launcher: Launcher, brake: Brake, tmp_path: Path) -> None:
    for to_main in (True, False):
        run = launcher.start(f"{FF} --steps 5", tmp_path / f"{to_main}", tamper=brake.before_step(3))
        ranks = brake.paused_ranks()
        pids_signalled = [run.process.pid] if to_main else ranks
        for _ in range(2):
            for pid in pids_signalled:
                os.kill(pid, signal.SIGINT)
            until(partial(no_signal_is_pending, pids_signalled))
        assert run.wait() == 130, run.output


def no_signal_is_pending(pids: list[int]) -> bool:
    return all(map(has_no_pending_signal, pids))


@pytest.fixture
def brake(tmp_path: Path) -> Brake:
    return Brake(tmp_path / "brake")


# Errors that would happen again.


def test_an_error_of_a_library_in_the_first_step_is_one_line_and_not_retried(
    launcher: Launcher, tmp_path: Path
) -> None:
    argv = "lstm-topics --steps 2 --amp fp16 --device cpu --data.limit-train 20000 --data.limit-test 1000"
    run = launcher.start(argv, tmp_path / "runs")
    assert run.wait() == 2, run.output
    (line,) = lines(run.output)
    assert "the first step failed, and would fail again: " in line
    assert "raised by a library, called from sage/models/lstm.py, line " in line
    assert all("Traceback" in path.read_text() for path in run.folder.glob("traceback-?.txt"))
    assert (run.folder / line.rpartition("/")[2]).exists()


@pytest.mark.parametrize(
    ("code", "says", "status"),
    [
        ("raise KeyError(1)", "KeyError: 1 (mine.py, line 2, outside SAGE)", 1),
        ("torch.ones(2) @ torch.ones(3)", "raised by a library, called from mine.py, line 2", 1),
        ("json.loads('{')", "Expecting property name", 2),  # a ValueError is the user's
        ("raise MemoryError('no room')", "out of memory: no room", 1),
        ("torch.empty(2**60)", "out of memory: ", 1),
        (
            "from sage.reduction.layout import Layout; Layout.of(3)",
            "this is a bug in SAGE, please report it",
            1,
        ),
    ],
)
def test_the_line_of_an_unexpected_error_names_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, says: str, status: int
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"def act(torch, json):\n    {code}\n")
    space: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    with pytest.raises((Exception, SystemExit)) as caught:
        space["act"](torch, json)
    end = failure.classify(caught.value)
    assert says in end.text.replace(f"{tmp_path}/", "")
    assert end.status == status
    assert "\n" not in end.text


# Restarted.


@pytest.mark.slow
def test_ranks_that_torchrun_restarts_resume_from_the_checkpoint(tmp_path: Path, python_command: str) -> None:
    killer = tmp_path / "killed_once.py"
    killer.write_text(
        "import os, signal, sys\n"
        "from sage.cli.main import main\n"
        "from sage.train.loop import Training\n"
        "take_step = Training.take_step\n"
        "def act(self, batches):\n"
        "    if self.step == 5 and self.wire.rank == 1 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    take_step(self, batches)\n"
        "Training.take_step = act\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    argv = [*f"{FF} --steps 8 --checkpoint-every 2 --timeout 60".split(), "--runs", str(tmp_path / "runs")]
    torchrun = [python_command, "-m", "torch.distributed.run", f"--master-port={free_port()}"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node=2", "--max-restarts=2", str(killer), "run", *argv],
        env={
            **outside(),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "COLUMNS": "200",
            "PYTHON_EXEC": python_command,
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "resuming from its own checkpoint, at step 4 of 8" in done.stdout + done.stderr
    assert "another process is rank" not in done.stderr
    assert "already" not in done.stdout + done.stderr
