"""Tests that runs with local updates resume to the bit, within a round and between rounds."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import Brake, Launcher, assert_same_run, is_gone, records, until
from mounted_runs import GIVEN, differing, everything, step, training
from small import small_network
from torch import Tensor

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import Config
from sage.storage import write_json
from sage.testing.harness import same_bits
from sage.train.loop import Training
from sage.train.mounted_local import MountedLocal

NESTEROV: dict[str, Any] = {"outer_optimizer": "nesterov", "outer_lr": 0.7, "outer_momentum": 0.9}

# Rounds of 4 steps, which do not end with the epochs of 5 steps.
KILLED = (
    "digits-ff --reducer topk --steps 14 --checkpoint-every 3 --data.limit-train 320 --local-steps 4 "
    "--optimizer adamw --lr 0.001 --outer-optimizer nesterov --outer-lr 0.7 --outer-momentum 0.9"
)


def outer_of(run: Training) -> dict[str, Tensor]:
    """A copy of the outer state: the common weights and the momentum."""
    assert isinstance(run.mount, MountedLocal)
    outer = run.mount.outer
    anchor_N = torch.cat([x.flatten() for x in outer.anchors().values()])
    return {"anchor": anchor_N, **{name: x.clone() for name, x in outer.state_dict().items()}}


def residual(run: Training) -> Tensor:
    """The residuals of this rank, in one vector."""
    residuals = [flat.feedback.residual_N for flat in run.mount.flats]
    return torch.cat([residual_N for residual_N in residuals if residual_N is not None])


def all_of(run: Training) -> dict[str, Tensor]:
    return {**everything(run), **outer_of(run)}


@pytest.mark.parametrize("at", [5, 6, 7], ids="after step {}".format)
@pytest.mark.parametrize(
    "options",
    [
        {**NESTEROV, "optimizer": "adamw", "lr": 0.01},
        {
            "reducer": "powersgd",
            "momentum": 0.9,
            "schedule": "cosine",
            "outer_optimizer": "sgd",
            "outer_by_lr": True,
        },
        {**NESTEROV, "optimizer": "muon", "lr": 0.02, "adamw_lr": 0.01},
        {"amp": "fp16", "local_from": 4, "momentum_at": "before", "memory_lr_ratio": True},
        {"memory": "econtrol"},
    ],
    ids=["diloco", "slowmo", "muon", "post-local", "estimates"],
)
def test_a_run_resumes_to_the_bit_within_a_round_and_between_rounds(
    tmp_path: Path, options: dict[str, Any], at: int
) -> None:
    """Rounds end after steps 3, 6 and 9, or after steps 7 and 10 where local steps begin with the fourth."""

    def work(wire: Wire) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        given = {"local_steps": 3, "model": lambda: small_network(norm=True), **options}
        run = training(wire, tmp_path, **given)
        step(run, at).save()
        resumed = training(wire, tmp_path, **given)
        assert resumed.resume() == "its own checkpoint"
        return all_of(step(run, 6)), all_of(step(resumed, 6))

    for uninterrupted, resumed in simulate(2, work):
        assert differing(uninterrupted, resumed) == []


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("runs"))
    yield launcher
    launcher.close()


@pytest.mark.parametrize(("at", "saved"), [(7, 6), (12, 12)], ids=["within a round", "between rounds"])
def test_a_killed_run_resumes_bitwise_identically(
    launcher: Launcher, tmp_path: Path, at: int, saved: int
) -> None:
    brake = Brake(tmp_path / "brake")
    run = launcher.start(KILLED, tmp_path / "runs", tamper=brake.before_step(at))
    pids = brake.paused_ranks()
    run.process.kill()
    until(lambda: all(is_gone(pid) for pid in pids))
    resumed = launcher.finish(KILLED, tmp_path / "runs")
    assert f"resuming from its own checkpoint, at step {saved} of 14" in resumed.output
    assert_same_run(launcher.reference(KILLED).folder, resumed.folder)


@pytest.mark.parametrize("now", [1, 3])
def test_another_number_of_ranks_keeps_the_outer_state_and_loses_the_steps_within_a_round(
    tmp_path: Path, now: int
) -> None:
    before = tmp_path / "before"
    before.mkdir()
    given = {**NESTEROV, "local_steps": 3, "reducer": "topk", "reducer_options": {"density": 0.1}}

    def first(wire: Wire) -> tuple[dict[str, Tensor], Tensor]:
        run = step(training(wire, before, **given, epochs=1.0), 5)
        run.save()
        residual_N = run.mount.flats[0].feedback.residual_N
        assert residual_N is not None
        return outer_of(run), residual_N.clone()

    def then(wire: Wire) -> tuple[dict[str, Tensor], Tensor, str, list[Tensor], int]:
        run = training(wire, tmp_path / "now", **given, continue_from=before)
        text = run.resume()
        residual_N = run.mount.flats[0].feedback.residual_N
        assert residual_N is not None
        assert isinstance(run.mount, MountedLocal)
        weights = [p.detach().clone() for p in run.model.parameters()]
        return outer_of(run), residual_N.clone(), text, weights, run.mount.taken

    write_json(before / "config.json", Config(**{**GIVEN, **given, "world_size": 2}).to_dict())
    (outer, one_N), (_, other_N) = simulate(2, first)
    assert outer.keys() > {"anchor"}
    continued = simulate(now, then)
    for kept, _, text, weights, taken in continued:
        assert all(same_bits(kept[name], x) for name, x in outer.items())
        assert torch.equal(torch.cat([p.flatten() for p in weights]), outer["anchor"])
        assert text.endswith(
            "the sum of their residuals is this run's, and their last 2 local steps are lost"
        )
        assert taken == 0
    torch.testing.assert_close(
        torch.stack([residual_N for _, residual_N, *_ in continued]).sum(0), one_N + other_N
    )


@pytest.mark.parametrize(
    "more", [{}, {"fragments": 2, "fragment_update_alpha": 0.5}], ids=["whole", "fragments"]
)
def test_a_quorum_resumes_from_the_checkpoint_of_more_ranks_and_of_fewer(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    given = {**NESTEROV, "local_steps": 3, "quorum": 1, "world_size": 3, **more}

    def first(wire: Wire) -> tuple[dict[str, Tensor], Tensor]:
        run = step(training(wire, tmp_path, **given), 5)
        run.save()
        return outer_of(run), residual(run)

    def again(wire: Wire) -> tuple[dict[str, Tensor], Tensor, int]:
        run = training(wire, tmp_path, **given)
        assert run.resume() == "its own checkpoint"
        found = outer_of(run), residual(run), run.step
        run.save()
        step(run, 3)
        return found

    before = simulate(3, first)
    total_N = torch.stack([residual_N for _, residual_N in before]).sum(0)
    for ranks in (2, 3):
        resumed = simulate(ranks, again)
        for outer, _, number in resumed:
            assert number == 5
            assert all(same_bits(outer[name], x) for name, x in before[0][0].items())
        torch.testing.assert_close(torch.stack([residual_N for _, residual_N, _ in resumed]).sum(0), total_N)


LOST = (
    "digits-ff --reducer topk --steps 12 --checkpoint-every 4 --data.limit-train 480 --local-steps 4 "
    "--world-size 3 --optimizer adamw --lr 0.001 --outer-optimizer nesterov --outer-lr 0.7 --quorum"
)


@pytest.mark.parametrize(("quorum", "status"), [(2, 0), (3, 1)], ids=["they go on", "they stop"])
def test_a_rank_is_lost_between_outer_steps_and_the_others_do_as_asked(
    launcher: Launcher, tmp_path: Path, quorum: int, status: int
) -> None:
    brake = Brake(tmp_path / "brake", 3)
    run = launcher.start(f"{LOST} {quorum}", tmp_path / "runs", tamper=brake.before_step(10))
    os.kill(brake.paused_ranks()[1], signal.SIGKILL)
    brake.release()
    assert run.wait() == status, run.output
    says = f"sage: 1 of 3 ranks lost; going on with 2 from the newest checkpoint, as the quorum is {quorum}"
    assert (says in run.output) == (status == 0)
    events = [(event["event"], event["step"]) for event in records(run.folder, "event")]
    if status:
        assert events == []
        assert "rank 1" in json.loads((run.folder / "failure.json").read_text())["error"]
        return
    assert events == [("lost", 8), ("resumed", 8)]
    assert [step["step"] for step in records(run.folder, "step")] == list(range(12))
    assert json.loads((run.folder / "result.json").read_text())["world_size"] == 2


def test_the_same_number_of_ranks_continues_within_the_round(tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    given = {**NESTEROV, "local_steps": 3, "epochs": 4.0}
    write_json(before / "config.json", Config(**{**GIVEN, **given, "world_size": 2}).to_dict())

    def work(wire: Wire) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        run = training(wire, before, **given)
        step(run, 5).save()
        continued = training(wire, tmp_path / "now", **given, continue_from=before)
        assert continued.resume()
        return all_of(step(run, 4)), all_of(step(continued, 4))

    for uninterrupted, continued in simulate(2, work):
        assert differing(uninterrupted, continued) == []


@pytest.mark.parametrize(("was", "now"), [(3, None), (None, 3)])
def test_a_run_with_local_updates_continues_only_another_such_run(
    tmp_path: Path, was: int | None, now: int | None
) -> None:
    before = tmp_path / "before"
    before.mkdir()
    write_json(before / "config.json", Config(**{**GIVEN, "local_steps": was, "world_size": 1}).to_dict())

    def work(wire: Wire) -> None:
        step(training(wire, before, local_steps=was), 2).save()
        with pytest.raises(ValueError, match=f"whose local_steps is {was}; this run's is {now}"):
            training(wire, tmp_path / "now", local_steps=now, continue_from=before).resume()

    simulate(1, work)


def test_a_damaged_state_within_a_round_is_refused(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        run = step(training(wire, tmp_path, local_steps=3), 2)
        state = run.mount.state_dict()
        state["local"]["weights"] = {name: x[:1] for name, x in state["local"]["weights"].items()}
        with pytest.raises(ValueError, match="the weights within a round: .* has shape"):
            run.mount.load_state_dict(state)

    simulate(1, work)
