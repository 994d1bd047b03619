"""`--mount ddp` takes the steps that `--mount whole` takes, from buckets that are reduced during backward."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mounted_runs import (
    AS_WHOLE,
    ONE,
    SEVERAL,
    SIZES,
    SKIPPING,
    HalfUsed,
    Spiked,
    compare_with_whole,
    differing,
    everything,
    processes,
    step,
    training,
    weights,
)
from torch import Tensor

from sage.comm.ledger import ring_all_reduce
from sage.comm.replicas import ReplicasDiffer
from sage.comm.wire import Wire
from sage.storage import write_json
from sage.train.divergence import Diverged

WITH_ONE_BUCKET: dict[str, dict[str, Any]] = {
    **AS_WHOLE,
    "onebit of the model": {"reducer": "onebit", "grouping": "model"},
    "accumulation": {"accumulate": 2},
}
"""Options under which one bucket must give the bits of the whole model."""


@pytest.mark.parametrize("world_size", [2, 3])
def test_with_one_bucket_every_step_is_bitwise_equal_to_the_whole_model_mount(
    tmp_path: Path, world_size: int
) -> None:
    for found in processes(world_size, partial(compare_with_whole, tmp_path, WITH_ONE_BUCKET, ONE)):
        assert {name: same for name, same in found.items() if same != (True, True)} == {}


def test_several_buckets_give_the_same_up_to_the_order_of_sums(tmp_path: Path) -> None:
    def work(wire: Wire) -> list[bool]:
        found = []
        for options in (
            {"reducer": "exact"},
            {"reducer": "bf16"},
            {},
            {"clip_global": 0.05, "accumulate": 2},
        ):
            whole, ddp = (
                weights(step(training(wire, tmp_path, **options, **mount), 5)) for mount in ({}, SEVERAL)
            )
            found.append(all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, ddp, strict=True)))
        return found

    assert all(all(found) for found in processes(3, work))


def test_the_ledger_has_the_bytes_of_every_bucket(tmp_path: Path) -> None:
    def work(wire: Wire) -> tuple[int, tuple[int, int], int, int]:
        run = training(wire, tmp_path, reducer="exact", **SEVERAL)
        before = wire.ledger.copy()
        step(run, 3)
        exact = wire.ledger.since(before)
        run = training(wire, tmp_path, **SEVERAL)
        before = wire.ledger.copy()
        step(run, 3)
        topk = wire.ledger.since(before)
        return (
            exact.payload["values"],
            (exact.sent, exact.received),
            exact.calls["sum"],
            topk.payload["values"],
        )

    own = torch.empty(2, dtype=torch.float64).nbytes  # loss and stop flag, summed after each step
    each_way = 3 * (sum(ring_all_reduce(4 * n, 3)[0] for n in SIZES) + ring_all_reduce(own, 3)[0])
    # Of each layer a tenth, rounded down, and at least one element.
    kept = sum(max(1, n // 10) for n in (96, 16, 48, 3))
    for values, traffic, calls, sparse_values in processes(3, work):
        assert values == 3 * 4 * sum(SIZES)
        assert traffic == (each_way, each_way)
        assert calls == 3 * len(SIZES)
        assert sparse_values == 3 * 4 * kept


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_training_resumes_from_its_checkpoint_bitwise_identically(tmp_path: Path, world_size: int) -> None:
    cases: dict[str, dict[str, Any]] = {
        "exact": {"reducer": "exact"},
        "topk": {"momentum_at": "before", "amp": "fp16", "min_compress": 20},
        "powersgd": {"reducer": "powersgd"},
        "momentum": {"memory": "momentum", "momentum": 0.0, "accumulate": 2},
        "econtrol": {"memory": "econtrol"},
    }

    def work(wire: Wire) -> dict[str, list[str]]:
        found = {}
        for name, options in cases.items():
            never_stopped = everything(step(training(wire, tmp_path / name, **options, **SEVERAL), 6))
            first = step(training(wire, tmp_path / name, **options, **SEVERAL), 3)
            first.save()
            again = training(wire, tmp_path / name, **options, **SEVERAL)
            assert again.resume() == "its own checkpoint"
            found[name] = differing(everything(step(again, 3)), never_stopped)
        return found

    for found in processes(world_size, work):
        assert found == {name: [] for name in cases}


def test_all_ranks_skip_a_step_that_is_not_finite_on_one_and_restore_all_state(tmp_path: Path) -> None:
    def work(wire: Wire) -> dict[str, tuple[list[str], bool, bool, bool]]:
        found = {}
        for name, options in SKIPPING.items():
            run = training(wire, tmp_path, task=Spiked, non_finite="skip", **options, **SEVERAL)
            assert isinstance(run.task, Spiked)
            run.task.here = wire.rank == wire.world_size - 1
            step(run, 2)
            before = everything(run)
            before.pop("/scale/scale")  # an overflow halves it
            before.pop("/scale/good")
            control = wire.ledger.payload["control"]
            step(run, 1)
            spent = wire.ledger.payload["control"] - control
            after = everything(run)
            after.pop("/scale/scale")
            after.pop("/scale/good")
            step(run, 1)
            moved = any(
                not torch.equal(a, b) for a, b in zip(weights(run), list(before.values()), strict=False)
            )
            finite = all(bool(x.isfinite().all()) for x in everything(run).values())
            found[name] = differing(after, before), moved, finite, spent == 4 + 16
        return found

    for found in processes(2, work):
        assert found == {name: ([], True, True, True) for name in SKIPPING}


def test_by_default_a_run_ends_at_a_step_that_is_not_finite_and_names_the_rank(tmp_path: Path) -> None:
    def work(wire: Wire) -> str:
        run = training(wire, tmp_path, task=Spiked, reducer="exact", **SEVERAL)
        assert isinstance(run.task, Spiked)
        run.task.here = wire.rank == 1
        step(run, 2)
        run.task.again = True  # the gradient is computed again to find the rank
        with pytest.raises(Diverged) as raised:
            run.take_step(next(run.rest_of_epoch()))
        return str(raised.value)

    for text in processes(2, work):
        assert "step 2: the mean gradient is not finite; the local gradient of rank 1 is not finite" in text


def test_replicas_that_differ_are_found(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        run = training(wire, tmp_path, check_replicas=1, eval_every=100.0, checkpoint_every=100, **SEVERAL)
        step(run, 2)
        with torch.no_grad():
            next(run.model.parameters()).add_(wire.rank)
        with pytest.raises(ReplicasDiffer, match="rank 1 differs from that of rank 0"):
            run.run()

    processes(2, work)


def test_the_schedule_guard_compares_the_collectives_of_buckets_too(tmp_path: Path) -> None:
    def work(wire: Wire) -> tuple[int, int]:
        for reducer in ("exact", "bf16", "topk"):
            step(training(wire, tmp_path, reducer=reducer, **SEVERAL), 2)
        return wire.ledger.calls["guard"], sum(wire.ledger.calls.values())

    for guards, calls in processes(2, work, guard=True):
        assert 2 * guards == calls  # every other collective has one


def test_without_ddp_the_exposed_seconds_are_those_of_the_collectives(tmp_path: Path) -> None:
    def work(wire: Wire) -> tuple[float, float, float]:
        run = training(wire, tmp_path)
        batches = next(run.rest_of_epoch())
        before = wire.ledger.seconds
        run.take_step(batches)
        assert run.pending is not None
        _, fields = run.pending
        run.settle()
        return fields["exposed_seconds"], wire.ledger.seconds - before, fields["seconds"]

    for exposed, collectives, seconds in processes(2, work):
        assert 0 < exposed == pytest.approx(collectives)
        assert exposed < seconds


def test_the_record_of_a_step_has_its_phases_and_its_exposed_seconds(tmp_path: Path) -> None:
    def work(wire: Wire) -> list[tuple[set[str], set[str], bool]]:
        found = []
        for reducer in ("exact", "bf16", "topk"):
            run = training(wire, tmp_path, reducer=reducer, profile=True, **SEVERAL)
            batches = run.rest_of_epoch()
            run.take_step(next(batches))
            assert run.pending is not None
            _, fields = run.pending
            run.settle()
            times = {name for name in fields if name.endswith("_seconds")}
            found.append((set(fields["phases"]), times, 0 <= fields["exposed_seconds"] <= fields["seconds"]))
        return found

    passes = {"forward", "backward", "update"}
    coding = {"encode_seconds", "decode_seconds", "exposed_seconds", "loader_seconds"}
    for exact, bf16, topk in processes(2, work):
        assert exact == bf16 == (passes, coding, True)  # started where the gradients arrive
        assert topk == (passes | {"select", "communicate", "scatter"}, coding, True)


def test_a_parameter_without_a_gradient_is_named(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        run = training(wire, tmp_path, model=HalfUsed, **SEVERAL)
        with pytest.raises(ValueError, match=r"'3.weight' has no gradient.*use --mount whole"):
            step(run, 1)

    processes(1, work)


def test_an_error_of_a_reducer_ends_backward(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        run = training(wire, tmp_path, **SEVERAL)

        def fail(*_: object) -> None:
            raise ArithmeticError("no such gradient")

        run.mount.flats[1].feedback.register_forward_pre_hook(fail)
        with pytest.raises(ArithmeticError, match="no such gradient"):
            step(run, 1)

    processes(1, work)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"clip_local": 1.0},
            r"clip_local clips by the norm of the whole gradient, but --mount ddp reduces 2",
        ),
        (
            {"reducer": "sage"},
            r"the reducer sage decides over the whole gradient, .*: use --bucket-mb 1 for a",
        ),
        (
            {"grouping": "model"},
            r"the reducer topk decides over the whole gradient \(grouping is model\).*layer",
        ),
        ({"reducer": "variance"}, r"the reducer variance needs the squares.*use --mount whole"),
    ],
)
def test_settings_that_need_the_whole_gradient_are_refused_by_name(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    def work(wire: Wire) -> None:
        with pytest.raises(ValueError, match=says):
            training(wire, tmp_path, **options, **SEVERAL)

    processes(1, work)


@pytest.mark.parametrize(("before", "now"), [(3, 2), (1, 2)])
def test_another_number_of_ranks_and_other_buckets_keep_the_sum_of_the_residuals(
    tmp_path: Path, before: int, now: int
) -> None:
    def residuals(run: Any) -> dict[str, Tensor]:
        feedback = run.mount.state_dict()["feedback"]
        return {name: part["residual_N"].double().clone() for name, part in feedback.items()}

    def first(wire: Wire) -> dict[str, Tensor]:
        run = training(wire, tmp_path / "first", **SEVERAL)
        if wire.rank == 0:
            (tmp_path / "first").mkdir()
            write_json(tmp_path / "first" / "config.json", run.config.to_dict())
        step(run, 3).save()
        return residuals(run)

    def then(wire: Wire) -> dict[str, Tensor]:
        run = training(wire, tmp_path / "then", continue_from=tmp_path / "first", **ONE)
        assert run.resume()
        return residuals(run)

    left, taken = processes(before, first), processes(now, then)
    for name in left[0]:
        total = torch.stack([each[name] for each in left]).sum(0)
        assert bool(total.any())
        torch.testing.assert_close(torch.stack([each[name] for each in taken]).sum(0), total)
