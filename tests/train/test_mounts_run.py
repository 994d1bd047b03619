"""`sage run --mount ddp` and `--mount fsdp` from the command line: killed, stopped and refused."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launcher import Brake, Launcher, assert_same_run, is_gone, newest, records, until

# Five steps an epoch and several buckets or units, with a residual, and checkpoints in the middle of epochs.
FF = "digits-ff --bucket-mb 0.02 --reducer topk --steps 14 --checkpoint-every 4 --data.limit-train 320"
DDP, FSDP = f"{FF} --mount ddp", f"{FF} --mount fsdp"
# Two nodes of two ranks; without buckets.
NODE = f"{FF.replace('--bucket-mb 0.02 ', '')} --hierarchy node --ranks-per-node 2 --world-size 4"
# The momentum is coded from the seventh step on, with an error for each way.
ONE_BIT = (
    "digits-ff --reducer exact --optimizer onebit-adam --freeze-step 6 --lr 1e-3 --adam-eps 1e-3 "
    "--steps 14 --checkpoint-every 4 --data.limit-train 320"
)
# Running statistics, momentum before the reduction, an average of the model; three ranks, or two shards.
CNN = (
    "digits --bucket-mb 0.1 --reducer exact --steps 12 --checkpoint-every 4 --batch-size 8 "
    "--momentum-at before --average-from 1"
)
DDP_CNN = f"{CNN} --mount ddp --world-size 3 --data.limit-train 120 --data.limit-test 40"
FSDP_CNN = f"{CNN} --mount fsdp --shards 2 --data.limit-train 80 --data.limit-test 41"
# Dropout, a hidden state carried from step to step, two batches a step; FSDP has two replicas of two shards.
LSTM = (
    "lstm-topics --bucket-mb 0.5 --reducer powersgd --steps 6 --checkpoint-every 2 --accumulate 2 "
    "--non-finite skip --data.limit-train 20000 --data.limit-test 1000"
)
DDP_LSTM = f"{LSTM} --mount ddp"
FSDP_LSTM = (
    f"{LSTM} --mount fsdp --shards 2 --world-size 4 --batch-size 8 --shard-reduce loco --shard-gather sdp4bit"
)
# Windows at random tokens, AdamW, tied weights that a unit cannot have alone, clipping after the reduction.
GPT = (
    "gpt-topics --bucket-mb 0.2 --reducer topk --epochs 9 --steps 6 --checkpoint-every 2 --accumulate 2 "
    "--model.layers 2 --model.dropout 0.1 --data.limit-train 6000 --data.limit-test 1000"
)
DDP_GPT, FSDP_GPT = f"{GPT} --mount ddp", f"{GPT} --mount fsdp"
# One matrix of 31 weights, which is one bucket; the penalty is part of the loss.
CONVEX = "logistic-breast-cancer --steps 20 --reducer topk --density 0.2"


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("runs"))
    yield launcher
    launcher.close()


@pytest.mark.parametrize(
    ("argv", "at", "saved", "ranks"),
    [
        pytest.param(DDP, 11, 8, 2, id="ddp-ff"),
        pytest.param(NODE, 11, 8, 4, id="node-ff"),
        pytest.param(ONE_BIT, 11, 8, 2, id="onebit-adam"),
        pytest.param(DDP_CNN, 9, 8, 3, id="ddp-cnn"),
        pytest.param(DDP_LSTM, 3, 2, 2, id="ddp-lstm"),
        pytest.param(DDP_GPT, 5, 4, 2, id="ddp-gpt"),
        pytest.param(FSDP, 11, 8, 2, id="fsdp-ff"),
        pytest.param(FSDP_CNN, 9, 8, 2, id="fsdp-cnn"),
        pytest.param(FSDP_LSTM, 3, 2, 4, id="fsdp-lstm"),
        pytest.param(FSDP_GPT, 5, 4, 2, id="fsdp-gpt"),
    ],
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


@pytest.mark.parametrize("argv", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_a_stop_signal_writes_a_checkpoint_and_the_run_resumes_bitwise_identically(
    launcher: Launcher, tmp_path: Path, argv: str
) -> None:
    brake = Brake(tmp_path / "brake")
    run = launcher.start(argv, tmp_path / "runs", tamper=brake.before_step(5))
    brake.paused_ranks()
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.wait() == 75, run.output
    assert newest(run.folder).step > 5
    assert_same_run(launcher.reference(argv).folder, launcher.finish(argv, tmp_path / "runs").folder)


@pytest.mark.parametrize("argv", [DDP, FSDP, f"{FSDP} --shards 2"], ids=["ddp", "fsdp", "fsdp-shards"])
def test_a_killed_rank_ends_the_others_and_is_named(launcher: Launcher, tmp_path: Path, argv: str) -> None:
    brake = Brake(tmp_path / "brake")
    run = launcher.start(f"{argv} --reducer exact", tmp_path / "runs", tamper=brake.before_step(3))
    os.kill(brake.paused_ranks()[1], signal.SIGKILL)
    brake.release()
    assert run.wait() == 1
    assert "Cause: rank 1 does not respond" in run.output
    assert "Traceback" not in run.output
    assert json.loads((run.folder / "failure.json").read_text())["status"] == 1


@pytest.mark.parametrize(
    ("argv", "steps", "mount"),
    [
        (DDP, 14, {"mount": "ddp", "bucket_mb": 0.02}),
        (FSDP_CNN, 12, {"mount": "fsdp", "bucket_mb": 0.1, "shards": 2}),
    ],
    ids=["ddp", "fsdp"],
)
def test_every_record_has_its_exposed_seconds_and_the_configuration_its_mount(
    launcher: Launcher, argv: str, steps: int, mount: dict[str, Any]
) -> None:
    run = launcher.reference(argv)
    config = json.loads((run.folder / "config.json").read_text())
    assert {key: config[key] for key in mount} == mount
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    of_steps = [line for line in lines if line["kind"] == "step"]
    assert len(of_steps) == len(records(run.folder, "step")) == steps
    assert all(0 < step["exposed_seconds"] < step["seconds"] for step in of_steps)
    if "shards" in mount:
        assert all(step["bytes"]["shards"] > step["bytes"]["values"] > 0 for step in of_steps)


@pytest.mark.parametrize("mount", ["ddp", "fsdp"])
def test_a_convex_problem_trains_as_under_the_mount_whole(
    launcher: Launcher, tmp_path: Path, mount: str
) -> None:
    whole = launcher.reference(CONVEX).folder
    mounted = launcher.finish(f"{CONVEX} --mount {mount}", tmp_path / "runs").folder
    losses, mounted_losses = ([step["loss"] for step in records(run, "step")] for run in (whole, mounted))
    assert mounted_losses == losses
    final, mounted_final = (
        json.loads((run / "result.json").read_text())["final"] for run in (whole, mounted)
    )
    assert mounted_final == final
    assert 0 < final["gap"] < 0.3  # from ln 2 - 0.066 = 0.627


OF_BOTH = {
    "--reducer sage": "the reducer sage decides over the whole gradient, but --mount {mount} reduces",
    "--clip-local 1": "clip_local clips by the norm of the whole gradient, but --mount {mount} reduces",
    "--reducer int8": "(grouping is model), but --mount {mount} reduces",
    "--reducer variance": "the reducer variance needs the squares of the samples' gradients",
    "--workers-in-process": "mount is '{mount}' with workers_in_process, but its ranks must be processes",
}
"""Settings that neither mount supports, and the error."""


@pytest.mark.parametrize(
    ("run", "argv", "says"),
    [
        *((DDP, argv, says.format(mount="ddp")) for argv, says in OF_BOTH.items()),
        (DDP, "--bucket-mb 0", "--bucket-mb is 0.0; allowed is a number in [1e-06, 1e+06]"),
        (
            DDP,
            "--mount whole --bucket-mb 5",
            "--bucket-mb is 5, but the mount whole has no buckets: add --mount ddp",
        ),
        (
            DDP,
            "--shards 2",
            "--shards is 2, but the mount ddp has no shards: add --mount fsdp, or leave --shards out",
        ),
        *((FSDP, argv, says.format(mount="fsdp")) for argv, says in OF_BOTH.items()),
        (
            FSDP,
            "--shards 3",
            "shards is 3, but 2 ranks cannot be divided into replicas of 3 ranks: allowed are 1, 2",
        ),
        (FSDP, "--shards 0", "--shards is 0; allowed is"),
        (
            FSDP,
            "--shard-reduce int4 --shard-node 2",
            "--shard-reduce, --shard-node: here no replica has several shards; add --mount fsdp --shards 2",
        ),
        (
            FSDP,
            "--shards 2 --shard-reduce int3",
            "--shard-reduce is 'int3'; allowed is one of 'exact', 'bf16'",
        ),
        (
            FSDP,
            "--shards 2 --shard-reduce int4 --shard-node 3",
            "shard_node is 3, but 2 shards cannot be divided into nodes of 3: allowed are 1, 2",
        ),
        (FSDP, "--hierarchy node", "mount 'fsdp', which has --shards for the ranks of a node"),
        (NODE, "--world-size 3", "ranks_per_node is 2, but 3 ranks cannot be divided into nodes of 2 ranks"),
        (NODE, "--hierarchy flat", "--ranks-per-node is 2, but the hierarchy is flat: add --hierarchy node"),
    ],
)
def test_settings_that_the_mount_does_not_support_are_refused_in_one_line(
    launcher: Launcher, tmp_path: Path, run: str, argv: str, says: str
) -> None:
    refused = launcher.start(f"{run} {argv}", tmp_path / "runs")
    assert refused.wait() == 2
    (line,) = [line for line in refused.output.splitlines() if line.strip()]
    assert says in line
