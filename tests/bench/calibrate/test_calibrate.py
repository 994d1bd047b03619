"""`sage calibrate` on two ranks: what is measured agrees with what a run records, and failures are named."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sage.bench.calibrate.collectives import CALLS, fitted_size
from sage.bench.calibrate.links import LEAST_REPEATS, NEAR
from sage.cli.main import main
from sage.predict.calibration import Calibration, MethodTimes, read, write
from sage.records.record import read_metrics

ROOT = Path(__file__).parents[3]
REDUCERS = ("exact", "bf16", "topk", "powersgd", "onebit")
STOP_FLAG = 16
"""Bytes of the sum of losses and stop flags, which follows each step and is no part of a reduction."""

BROKEN = '''
"""Fails at its third step."""

from sage.reduction import Reduced, Reducer


class Broken(Reducer):
    """Fails."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, grad_N, residual_N, wire):
        self.steps += 1
        if self.steps == 3:
            raise RuntimeError("no third step")
        return Reduced(wire.mean(grad_N))


REDUCER = Broken
'''


BROKEN_AT_8 = BROKEN.replace("if self.steps == 3", "if wire.world_size == 8")


def started(
    *argv: str, folder: Path, command: tuple[str, ...] = (sys.executable, "-m", "sage")
) -> subprocess.Popen[str]:
    """Start the command in a folder."""
    return subprocess.Popen(
        [*command, *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


Sage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def ended(sage_command: str) -> Sage:
    """Run the command to its end in a folder."""

    def run(*argv: str, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sage_command, *argv],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@dataclass(frozen=True)
class Measured:
    """A calibration, its file, and what the command printed."""

    content: Calibration
    path: Path
    out: str
    err: str

    def method(self, reducer: str) -> MethodTimes:
        (found,) = [each for each in self.content.methods if each.reducer == reducer]
        return found


@pytest.fixture(scope="module")
def measured(ended: Sage, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("calibrate")
    (folder / "broken.py").write_text(BROKEN)
    (folder / "broken8.py").write_text(BROKEN_AT_8)
    options = ("--seconds", "4", "--steps", "3", "--output", "deeper/c.json")
    reducers = ("--reducers", *REDUCERS, "./broken.py", "./broken8.py")
    done = ended("calibrate", "digits-ff", *options, *reducers, folder=folder)
    assert done.returncode == 1, done.stderr  # of the broken reducer
    path = folder / "deeper" / "c.json"
    return Measured(read(path), path, done.stdout, done.stderr)


def test_a_written_file_is_read_back_equal(measured: Measured, tmp_path: Path) -> None:
    write(tmp_path / "again.json", measured.content)
    assert read(tmp_path / "again.json") == measured.content
    assert (tmp_path / "again.json").read_bytes() == measured.path.read_bytes()
    assert [path.name for path in measured.path.parent.iterdir()] == ["c.json"]


def test_gradients_are_ready_one_after_the_other_and_before_backward_ends(measured: Measured) -> None:
    model = measured.content.model
    ready = [each.ready_seconds for each in model.parameters]
    assert ready == sorted(ready)
    assert ready[0] > 0
    assert ready[-1] <= statistics.median(model.backward_seconds)
    # 64 inputs, two hidden layers of 200, 10 classes; backward begins with the last layer.
    assert model.numel == 64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10
    assert model.parameters[0].numel in (10, 200 * 10)
    assert len({each.name for each in model.parameters}) == 6


def test_every_rank_and_step_gives_a_sample(measured: Measured) -> None:
    model, ranks, steps = measured.content.model, 2, 3
    num_steps, left = divmod(len(model.forward_seconds), ranks)
    assert num_steps >= steps  # more where steps are short
    assert left == 0
    for samples in (model.forward_seconds, model.backward_seconds, model.optimizer_seconds):
        assert len(samples) == ranks * num_steps
    assert (measured.content.world_size, measured.content.ranks_per_node) == (2, 2)
    for name in REDUCERS:
        method = measured.method(name)
        assert len(method.encode_seconds) == len(method.decode_seconds[2]) <= ranks * steps
        assert set(method.decode_seconds) == {1, 2, 4}
        assert set(method.messages) == {2, 4, 8}
        assert min(method.encode_seconds) >= 0


def test_every_collective_has_all_sizes_or_a_line_with_the_largest_one(measured: Measured) -> None:
    links = measured.content.links
    assert {each.collective for each in links} == set(CALLS)
    for collective in CALLS:
        own = [each for each in links if each.collective == collective]
        sizes = [each.bytes for each in own]
        assert sizes == sorted(set(sizes))
        assert {(each.scope, each.ranks) for each in own} == {("intra", 2)}
        assert all(len(each.seconds) >= LEAST_REPEATS and min(each.seconds) > 0 for each in own)
        end = f"{collective} between 2 ranks of one node: measured up to"
        assert sizes[-1] == 32 * 2**20 or end in measured.err
        sent = [m for name in REDUCERS for m in measured.method(name).messages[2]]
        for message in sent:
            if message.collective == collective and message.bytes <= sizes[-1]:
                near = [size for size in sizes if 1 / NEAR <= size / fitted_size(message.bytes, 2) <= NEAR]
                assert near, message


@pytest.mark.parametrize("reducer", REDUCERS)
def test_messages_have_the_bytes_that_a_run_records(
    measured: Measured, ended: Sage, reducer: str, tmp_path: Path
) -> None:
    done = ended("run", "digits-ff", "--reducer", reducer, "--steps", "4", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    step = [record for record in read_metrics(run) if record["kind"] == "step"][-1]
    sent = sum(message.bytes for message in measured.method(reducer).messages[2])
    assert sent + STOP_FLAG == sum(step["bytes"].values())


def test_density_is_what_was_achieved(measured: Measured) -> None:
    assert measured.method("exact").density is None
    density = measured.method("topk").density
    assert density is not None
    assert 0.009 < density < 0.011
    assert measured.method("topk").options["density"] == 0.01  # of the workload


def test_a_reducer_that_fails_is_named_and_the_others_are_measured(measured: Measured) -> None:
    assert [each.reducer for each in measured.content.methods] == list(REDUCERS)
    assert "the reducer broken failed: rank 0: RuntimeError: no third step" in measured.err
    message = "the reducer broken8 failed: between simulated ranks: RuntimeError: no third step"
    assert message in measured.err
    assert "Traceback" not in measured.err
    for name in REDUCERS:
        assert f"| `{name}` |" in measured.out


def test_a_stop_signal_ends_the_calibration_and_leaves_no_file(tmp_path: Path, sage_command: str) -> None:
    options = ("--seconds", "1000", "--steps", "100000")
    process = started("calibrate", "digits-ff", *options, folder=tmp_path, command=(sage_command,))
    assert process.stderr is not None
    assert process.stderr.readline().startswith("sage calibrate: steps")
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    assert process.returncode == 75, err
    assert "stopped by SIGTERM" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_killed_or_stopped_is_named(number: signal.Signals, tmp_path: Path) -> None:
    options = ("--seconds", "1000", "--steps", "100000", "--timeout", "10")
    process = started("calibrate", "digits-ff", *options, folder=tmp_path)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("sage calibrate: steps")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), number)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1, err
    assert "Cause: rank 1 does not respond (killed, stopped, or disconnected)" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--reducers tpok", "no reducer is called 'tpok'; did you mean 'topk'"),
        ("--reducers topk:density=2", "density=2.0: expected a share"),
        ("--reducers topk:densty=0.1", "did you mean 'density'"),
        ("--reducers topk:density", "is not OPTION=VALUE"),
        ("--reducers", "--reducers"),
        ("--densities 2", "density=2.0: expected a share"),
        ("--reducer topk", "did you mean --reducers"),
        ("--mount ddp", "no flag of `sage calibrate digits-ff` is called '--mount'"),
        ("--density 0.1", "did you mean --densities"),
        ("--steps 1", "--steps 1: expected 2 or more"),
        ("--seconds 0", "--seconds 0: expected more than 0"),
        ("--workers-in-process", "simulated ranks have no links to measure"),
        ("--world-size 0", "world-size"),
    ],
)
def test_wrong_input_is_refused_in_one_line(argv: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "digits-ff", *argv.split()]) == 2
    message = capsys.readouterr()
    assert message.err.count("\n") == 1
    assert says in message.err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--world-size", "1"], "collectives need 2 ranks or more"),
        (["--output", "/proc/no/c.json"], "/proc/no: cannot be written"),
        (["--output", "."], "--output .: it is a folder; name a file"),
    ],
)
def test_an_error_of_the_ranks_is_one_line(ended: Sage, argv: list[str], says: str, tmp_path: Path) -> None:
    done = ended("calibrate", "digits-ff", *argv, folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_densities_apply_to_the_reducers_that_have_one(tmp_path: Path) -> None:
    from sage.cli.calibrate import configs_of
    from sage.config import load, resolve

    config = resolve(load("digits-ff"))
    found = configs_of("topk", [0.1, 0.2], config, ["digits-ff"])
    assert [each.reducer_options["density"] for each in found] == [0.1, 0.2]
    assert len(configs_of("exact", [0.1, 0.2], config, ["digits-ff"])) == 1
    (given,) = configs_of("topk:density=0.5", [0.1, 0.2], config, ["digits-ff"])
    assert given.reducer_options["density"] == 0.5
    (own,) = configs_of("topk:values=fp16", [], config, ["digits-ff"])
    assert (own.reducer_options["density"], own.reducer_options["values"]) == (0.01, "fp16")
    assert json.loads(json.dumps(own.to_dict()))["data"] == "digits"
