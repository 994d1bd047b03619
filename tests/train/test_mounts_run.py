"""`sage run --mount ddp` from the command line: killed, stopped, refused, and with other numbers of ranks."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher import Brake, Launcher, assert_same_run, is_gone, newest, records, until

# Five steps an epoch and several buckets, with a residual, and checkpoints in the middle of epochs.
FF = (
    "digits-ff --mount ddp --bucket-mb 0.02 --reducer topk --steps 14 --checkpoint-every 4 "
    "--data.limit-train 320"
)
# Running statistics, momentum before the reduction, a running average of the model; three ranks.
CNN = (
    "digits --mount ddp --bucket-mb 0.1 --reducer exact --world-size 3 --steps 12 --checkpoint-every 4 "
    "--batch-size 8 --momentum-at before --average-from 1 --data.limit-train 120 --data.limit-test 40"
)
# Dropout, and a hidden state carried from step to step; two batches a step.
LSTM = (
    "lstm-topics --mount ddp --bucket-mb 0.5 --reducer powersgd --steps 6 --checkpoint-every 2 "
    "--accumulate 2 --non-finite skip --data.limit-train 20000 --data.limit-test 1000"
)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("runs"))
    yield launcher
    launcher.close()


@pytest.mark.parametrize(
    ("argv", "at", "saved", "ranks"),
    [(FF, 11, 8, 2), (CNN, 9, 8, 3), (LSTM, 3, 2, 2)],
    ids=["ff", "cnn", "lstm"],
)
def test_a_killed_run_resumes_bitwise_identically(
    launcher: Launcher, tmp_path: Path, argv: str, at: int, saved: int, ranks: int
) -> None:
    brake = Brake(tmp_path / "brake", ranks)
    run = launcher.start(argv, tmp_path / "runs", tamper=brake.before_step(at))
    pids = brake.paused_ranks()
    run.process.kill()
    until(lambda: all(is_gone(pid) for pid in pids))
    resumed = launcher.finish(argv, tmp_path / "runs")
    assert f"resuming from its own checkpoint, at step {saved} of " in resumed.output
    assert_same_run(launcher.reference(argv).folder, resumed.folder)


def test_a_stop_signal_writes_a_checkpoint_and_the_run_resumes_bitwise_identically(
    launcher: Launcher, tmp_path: Path
) -> None:
    brake = Brake(tmp_path / "brake")
    run = launcher.start(FF, tmp_path / "runs", tamper=brake.before_step(5))
    brake.paused_ranks()
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.wait() == 75, run.output
    assert newest(run.folder).step > 5
    assert_same_run(launcher.reference(FF).folder, launcher.finish(FF, tmp_path / "runs").folder)


def test_a_killed_rank_ends_the_others_and_is_named(launcher: Launcher, tmp_path: Path) -> None:
    brake = Brake(tmp_path / "brake")
    run = launcher.start(f"{FF} --reducer exact", tmp_path / "runs", tamper=brake.before_step(3))
    os.kill(brake.paused_ranks()[1], signal.SIGKILL)
    brake.release()
    assert run.wait() == 1
    assert "Cause: rank 1 does not respond" in run.output
    assert "Traceback" not in run.output
    assert json.loads((run.folder / "failure.json").read_text())["status"] == 1


def test_every_record_has_its_exposed_seconds_and_the_configuration_its_mount(launcher: Launcher) -> None:
    run = launcher.reference(FF)
    config = json.loads((run.folder / "config.json").read_text())
    assert (config["mount"], config["bucket_mb"]) == ("ddp", 0.02)
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if line["kind"] == "step"]
    assert len(steps) == len(records(run.folder, "step")) == 14
    assert all(0 < step["exposed_seconds"] < step["seconds"] for step in steps)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--reducer sage", "the reducer sage decides over the whole gradient, but --mount ddp reduces"),
        ("--clip-local 1", "clip_local clips by the norm of the whole gradient, but --mount ddp reduces"),
        ("--reducer int8", "(grouping is model), but --mount ddp reduces"),
        ("--reducer variance", "the reducer variance needs the squares of the samples' gradients"),
        ("--workers-in-process", "mount is 'ddp' with workers_in_process, but its ranks must be processes"),
        ("--bucket-mb 0", "--bucket-mb is 0.0; allowed is a number in [1e-06, 1e+06]"),
        (
            "--mount whole --bucket-mb 5",
            "--bucket-mb is 5, but the mount whole has no buckets: add --mount ddp",
        ),
        (
            "--shards 2",
            "--shards is 2, but the mount ddp has no shards: add --mount fsdp, or leave --shards out",
        ),
    ],
)
def test_settings_that_ddp_does_not_support_are_refused_in_one_line(
    launcher: Launcher, tmp_path: Path, argv: str, says: str
) -> None:
    run = launcher.start(f"{FF} {argv}", tmp_path / "runs")
    assert run.wait() == 2
    (line,) = [line for line in run.output.splitlines() if line.strip()]
    assert says in line
