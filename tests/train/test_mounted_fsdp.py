"""`--mount fsdp` takes the steps of `--mount whole`, from shards that are reduced between replicas."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mounted_runs import (
    AS_WHOLE,
    SHARDED,
    SKIPPING,
    TWO_BY_TWO,
    UNITS,
    HalfUsed,
    Spiked,
    compare_with_whole,
    differing,
    everything,
    local,
    processes,
    step,
    training,
    weights,
    whole_weights,
)

from sage.comm.ledger import KINDS
from sage.comm.replicas import ReplicasDiffer
from sage.comm.wire import Wire
from sage.train import checkpoint
from sage.train.divergence import Diverged

WITH_ONE_UNIT: dict[str, dict[str, Any]] = {
    **AS_WHOLE,
    "accumulation, adam": {"accumulate": 2, "optimizer": "adam", "lr": 0.01},
}
"""Options under which one unit without shards must give the bits of the whole model."""


@pytest.mark.parametrize("world_size", [2, 3])
def test_with_one_unit_every_step_is_bitwise_equal_to_the_whole_model_mount(
    tmp_path: Path, world_size: int
) -> None:
    for found in processes(world_size, partial(compare_with_whole, tmp_path, WITH_ONE_UNIT, SHARDED)):
        assert {name: same for name, same in found.items() if same != (True, True)} == {}


def test_with_two_ranks_exact_is_bitwise_equal_to_the_whole_model_mount_in_units_and_shards(
    tmp_path: Path,
) -> None:
    def work(wire: Wire) -> list[bool]:
        plain = weights(step(training(wire, tmp_path, reducer="exact"), 5))
        found = []
        for mount in (UNITS, {**SHARDED, "shards": 2}, TWO_BY_TWO):
            run = step(training(wire, tmp_path, reducer="exact", **mount), 5)
            found.append(all(torch.equal(a, b) for a, b in zip(plain, whole_weights(run), strict=True)))
        return found

    assert processes(2, work) == [[True] * 3] * 2


def test_two_replicas_of_two_shards_give_the_same_up_to_the_order_of_sums(tmp_path: Path) -> None:
    def work(wire: Wire) -> list[bool]:
        found = []
        cases: list[dict[str, Any]] = [
            {"reducer": "exact"},
            {"reducer": "exact", "clip_global": 0.05, "accumulate": 2, "weight_decay": 0.01},
            {"reducer": "exact", "momentum_at": "before", "weight_decay": 0.01, "weight_decay_at": "before"},
            {"reducer": "topk", "reducer_options": {"density": 1.0}},
        ]
        for options in cases:
            plain = weights(step(training(wire, tmp_path, **options), 5))
            run = step(training(wire, tmp_path, **options, **TWO_BY_TWO), 5)
            same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, whole_weights(run), strict=True)]
            found.append(all(same))
        return found

    assert processes(4, work) == [[True] * 4] * 4


def test_the_ledger_has_the_bytes_between_replicas_and_those_of_the_shards_apart(tmp_path: Path) -> None:
    def work(wire: Wire) -> dict[str, int]:
        run = training(wire, tmp_path, reducer="exact", accumulate=2, **{**SHARDED, "shards": 2})
        before = wire.ledger.copy()
        step(run, 3)
        return dict(wire.ledger.since(before).payload)

    # Rows 16, 16, 3, 3 of 6, 1, 16, 1 elements; each of the two ranks has half of them, rounded up.
    shard = 8 * 6 + 8 + 2 * 16 + 2
    for sent in processes(2, work):
        assert {kind: sent[kind] for kind in KINDS if kind in sent} == {"values": 3 * 4 * shard}
        # In each step two all-gathers of a shard, and the reduce-scatter of a gradient.
        assert sent["shards"] == 3 * 4 * (2 * shard + 2 * shard)


RESUMED: dict[str, dict[str, Any]] = {
    "exact": {"reducer": "exact", "optimizer": "adam", "lr": 0.01},
    "topk": {"momentum_at": "before", "amp": "fp16", "min_compress": 20},
    "powersgd": {"reducer": "powersgd"},
    "momentum": {"memory": "momentum", "momentum": 0.0, "accumulate": 2},
    "average": {"average_from": 0.0, "eval_every": 0.25},
}


@pytest.mark.parametrize(
    ("world_size", "mount"), [(1, UNITS), (3, UNITS), (2, {**UNITS, "shards": 2}), (4, TWO_BY_TWO)]
)
def test_a_training_resumes_from_its_checkpoint_bitwise_identically(
    tmp_path: Path, world_size: int, mount: dict[str, Any]
) -> None:
    def work(wire: Wire) -> dict[str, list[str]]:
        found = {}
        for name, options in RESUMED.items():
            never_stopped = everything(step(training(wire, tmp_path / name, **options, **mount), 6))
            first = step(training(wire, tmp_path / name, **options, **mount), 3)
            first.average.update(first.model)
            mean = {key: local(x).clone() for key, x in first.average.means.items()}
            first.save()
            again = training(wire, tmp_path / name, **options, **mount)
            assert again.resume() == "its own checkpoint"
            means = {key: local(x) for key, x in again.average.means.items()}
            found[name] = differing(means, mean) + differing(everything(step(again, 3)), never_stopped)
        return found

    for found in processes(world_size, work):
        assert found == {name: [] for name in RESUMED}


def test_a_checkpoint_has_whole_tensors_whatever_the_number_of_shards(tmp_path: Path) -> None:
    options: dict[str, Any] = {"reducer": "exact", "optimizer": "adam", "lr": 0.01}

    def work(wire: Wire) -> None:
        for name, mount in (("whole", {}), ("fsdp", TWO_BY_TWO)):
            step(training(wire, tmp_path / name, **options, **mount), 3).save()

    processes(2, work)
    plain, sharded = (
        checkpoint.load_shared(tmp_path / name / "checkpoints" / "step-00000003")
        for name in ("whole", "fsdp")
    )
    assert sharded["model"].keys() == plain["model"].keys()
    assert all(torch.equal(sharded["model"][name], x) for name, x in plain["model"].items())
    for index, own in plain["optimizer"]["state"].items():
        assert all(torch.equal(sharded["optimizer"]["state"][index][name], x) for name, x in own.items())


@pytest.mark.parametrize("shards", [1, 2])
def test_an_evaluation_has_the_metrics_of_the_whole_model_on_uneven_shares_of_the_test_set(
    tmp_path: Path, shards: int
) -> None:
    def work(wire: Wire) -> list[list[dict[str, float]]]:
        found = []
        for mount in ({}, {**UNITS, "shards": shards}):
            run = training(
                wire, tmp_path / f"{mount}", reducer="exact", epochs=2.0, average_from=0.0, **mount
            )
            assert run.run()
            found.append(run.metrics.evaluations)
        return found

    for plain, sharded in processes(2, work):  # 10 test points in batches of 2: three and two
        assert len(plain) == 2
        assert sharded == plain


def test_all_ranks_skip_a_step_that_is_not_finite_on_one_and_restore_all_state(tmp_path: Path) -> None:
    def work(wire: Wire) -> dict[str, tuple[list[str], bool, bool]]:
        found = {}
        for name, options in SKIPPING.items():
            for shards in (1, 2):
                mount = {**UNITS, "shards": shards}
                run = training(wire, tmp_path, task=Spiked, non_finite="skip", **options, **mount)
                assert isinstance(run.task, Spiked)
                run.task.here = wire.rank == wire.world_size - 1
                step(run, 2)
                before = everything(run)
                step(run, 1)
                after = everything(run)
                for state in (before, after):
                    del state["/scale/scale"], state["/scale/good"]  # an overflow halves the scale
                step(run, 1)
                moved = any(
                    not torch.equal(a, b) for a, b in zip(weights(run), list(before.values()), strict=False)
                )
                finite = all(bool(x.isfinite().all()) for x in everything(run).values())
                found[f"{name}, {shards}"] = differing(after, before), moved, finite
        return found

    for found in processes(2, work):
        assert {name: each for name, each in found.items() if each != ([], True, True)} == {}


@pytest.mark.parametrize("shards", [1, 2])
def test_by_default_a_run_ends_at_a_step_that_is_not_finite_and_names_the_rank(
    tmp_path: Path, shards: int
) -> None:
    def work(wire: Wire) -> str:
        run = training(wire, tmp_path, task=Spiked, reducer="exact", **UNITS, shards=shards)
        assert isinstance(run.task, Spiked)
        run.task.here = wire.rank == 1
        step(run, 2)
        run.task.again = True  # the gradient is computed again to find the rank
        with pytest.raises(Diverged) as raised:
            run.take_step(next(run.rest_of_epoch()))
        return str(raised.value)

    for text in processes(2, work):
        assert "step 2: the mean gradient is not finite; the local gradient of rank 1 is not finite" in text


def test_replicas_that_differ_are_found_on_every_rank_though_their_shards_always_do(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        run = training(wire, tmp_path, check_replicas=1, eval_every=100.0, checkpoint_every=100, **TWO_BY_TWO)
        step(run, 2)
        with torch.no_grad():
            local(next(run.model.parameters())).add_(int(wire.rank == 3))
        with pytest.raises(ReplicasDiffer, match="rank 3 differs from that of rank 1, first in 0.weight"):
            run.run()

    processes(4, work)


def test_the_schedule_guard_compares_the_collectives_of_replicas_and_shards_too(tmp_path: Path) -> None:
    def work(wire: Wire) -> tuple[int, int]:
        for reducer in ("exact", "topk"):
            step(training(wire, tmp_path, reducer=reducer, **TWO_BY_TWO), 2)
        return wire.ledger.calls["guard"], sum(wire.ledger.calls.values())

    for guards, calls in processes(4, work, guard=True):
        assert 2 * guards == calls  # every other collective has one


def test_the_record_of_a_step_has_its_phases_and_its_exposed_seconds(tmp_path: Path) -> None:
    def work(wire: Wire) -> tuple[set[str], set[str], bool, float]:
        run = training(wire, tmp_path, profile=True, **UNITS)
        batches = run.rest_of_epoch()
        before = wire.ledger.seconds
        run.take_step(next(batches))
        spent = wire.ledger.seconds - before
        assert run.pending is not None
        _, fields = run.pending
        run.settle()
        times = {name for name in fields if name.endswith("_seconds")}
        exposed = fields["exposed_seconds"]
        return set(fields["phases"]), times, 0 < exposed < fields["seconds"], exposed / spent

    phases = {"forward", "backward", "update", "select", "communicate", "scatter"}
    times = {"encode_seconds", "decode_seconds", "exposed_seconds", "loader_seconds"}
    for *found, of_all_collectives in processes(2, work):
        assert found == [phases, times, True]
        assert of_all_collectives == pytest.approx(1.0)


@pytest.mark.parametrize("shards", [1, 2])
def test_parameters_without_a_gradient_contribute_zeros(tmp_path: Path, shards: int) -> None:
    def work(wire: Wire) -> bool:
        plain = weights(step(training(wire, tmp_path, model=HalfUsed, reducer="exact"), 3))
        run = step(training(wire, tmp_path, model=HalfUsed, reducer="exact", **UNITS, shards=shards), 3)
        return all(torch.equal(a, b) for a, b in zip(plain, whole_weights(run), strict=True))

    assert processes(2, work) == [True, True]


def test_an_error_of_a_reducer_ends_backward(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        run = training(wire, tmp_path, **UNITS)

        def fail(*_: object) -> None:
            raise ArithmeticError("no such gradient")

        run.mount.flats[1].feedback.register_forward_pre_hook(fail)
        with pytest.raises(ArithmeticError, match="no such gradient"):
            step(run, 1)

    processes(1, work)
