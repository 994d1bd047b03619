"""Laws of `--vnmse-every`, and of the bytes of state in a result."""
# N = elements of the flat gradient

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from mounted_runs import step, training
from torch import Tensor

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import Config
from sage.mount.flat import Flat
from sage.records.record import Record, read_metrics, recorder
from sage.reducers.topk import TopK
from sage.testing.harness import same_bits
from sage.train import reduction_error
from sage.train.reduction_error import ReductionError

N = 40
STEPS = 5
BASE: dict[str, Any] = {"workload": "w", "task": "classify", "model": "feedforward", "data": "digits"}


def of_runs(folder: Path, world_size: int = 2, **options: Any) -> tuple[list[Record], list[Tensor]]:
    """Return the records of a training's steps, and the weights of rank 0."""

    def work(wire: Wire) -> list[Tensor]:
        with closing(recorder(folder, wire.rank)) as record:
            run = step(training(wire, folder, record=record, **options), STEPS)
        return [p.detach().clone() for p in run.model.parameters()]

    weights = simulate(world_size, work)[0]
    return [record for record in read_metrics(folder) if record["kind"] == "step"], weights


def gradient(rank: int) -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(rank))


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_error_is_that_of_what_the_reduction_returned_to_the_exact_mean(world_size: int) -> None:
    def work(wire: Wire) -> tuple[Tensor, dict[str, float | None]]:
        flat = Flat(
            [("a", (N - 4,)), ("b", (4,))],
            TopK(density=0.1),
            dtype=torch.float32,
            device=torch.device("cpu"),
            memory="none",
            min_compress=5,
        )
        flat.grad_N.copy_(gradient(wire.rank))
        error = ReductionError(Config(**BASE, vnmse_every=2))
        error.begin_step(4)
        error.reduce(flat, wire, 0.1)
        return flat.grad_N, error.fields()

    mean_N = sum(gradient(rank).double() for rank in range(world_size)) / world_size
    for reduced_N, fields in simulate(world_size, work):
        by_hand = (reduced_N.double() - mean_N).square().sum() / torch.as_tensor(mean_N).square().sum()
        assert fields == {"vnmse": pytest.approx(float(by_hand), rel=1e-5)}
        assert float(by_hand) > 0.1


@pytest.mark.parametrize("options", [{"memory": "residual"}, {"reducer": "signum"}, {"local_steps": 2}])
def test_measurements_change_neither_weights_nor_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    plain, weights = of_runs(tmp_path / "plain", **options)
    measured, same = of_runs(tmp_path / "measured", vnmse_every=2, **options)
    assert all(same_bits(a, b) for a, b in zip(weights, same, strict=True))
    for before, after in zip(plain, measured, strict=True):
        assert all(before[name] == after[name] for name in ("bytes", "wire_sent", "wire_received", "loss"))
        assert "vnmse" not in before
    # With rounds of two steps, the exchanges are in steps 1 and 3; that of every second step is measured.
    steps = [1, 3] if "local_steps" in options else [0, 2, 4]
    assert [record["step"] for record in measured if "vnmse" in record] == steps


def test_an_exact_reduction_has_no_error(tmp_path: Path) -> None:
    records, _ = of_runs(tmp_path, reducer="exact", vnmse_every=1)
    assert [record["vnmse"] for record in records] == [0.0] * STEPS


def test_the_time_of_a_measurement_is_not_that_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10**9, 1000))  # a measurement takes 2,000 seconds by this clock
    monkeypatch.setattr(reduction_error, "_now", lambda _: next(clock))
    records, _ = of_runs(tmp_path, 1, vnmse_every=2)
    assert [record["seconds"] < 0 for record in records] == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("options", "bytes_per_element"),
    [
        ({"memory": "none"}, 0),
        ({"memory": "residual"}, 4),
        ({"memory": "momentum", "momentum": 0.0}, 8),
        ({"memory": "ef21"}, 8),
        ({"memory": "econtrol"}, 12),
        ({"memory": "none", "local_steps": 2}, 4),
        ({"memory": "residual", "local_steps": 2, "outer_optimizer": "nesterov", "outer_momentum": 0.9}, 12),
        ({"reducer": "signum"}, 4),  # its momentum
        (
            {"reducer": "exact", "optimizer": "onebit-adam", "freeze_step": 2},
            6,
        ),  # both errors, with two ranks
    ],
)
def test_the_state_of_a_rank_is_what_its_method_keeps(
    tmp_path: Path, options: dict[str, Any], bytes_per_element: int
) -> None:
    def work(wire: Wire) -> tuple[int, int]:
        run = training(wire, tmp_path, **options)
        return run.mount.state_bytes(), run.mount.num_elements

    ranks = simulate(2, work)
    expected = bytes_per_element * ranks[0][1]
    # A few numbers more: counters, learning rates, the density of each layer.
    assert expected <= sum(state for state, _ in ranks) / 2 <= expected + 50


def test_a_measurement_is_refused_where_a_reduction_overlaps_or_there_is_none(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        with pytest.raises(ValueError, match="vnmse_every is 2, but optimizer is 'demo', .* leave --vnmse"):
            training(wire, tmp_path, reducer="exact", optimizer="demo", vnmse_every=2)
        with pytest.raises(ValueError, match="vnmse_every is 2, but mount is 'ddp', whose reductions run"):
            training(wire, tmp_path, mount="ddp", vnmse_every=2)

    simulate(1, work)
