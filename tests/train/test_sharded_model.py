"""What `--mount fsdp` shards together, what it refuses, and other numbers of ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mounted_runs import SHARDED, UNITS, processes, step, training
from torch import Tensor, nn

import sage.train.mounted_fsdp  # noqa: F401 - here, so that the ranks, which are forks, do not import it again
from sage.comm.wire import Wire
from sage.config import Config
from sage.storage import write_json
from sage.train.sharded_model import units


def of(*sizes: int) -> nn.Sequential:
    """Layers with this number of parameters each."""
    return nn.Sequential(*(nn.Linear(size, 1, bias=False) for size in sizes))


def test_a_unit_is_a_module_whose_parameters_outside_other_units_reach_the_size() -> None:
    first, second, last = of(4, 1), of(1, 1), nn.Linear(9, 1, bias=False)
    model = nn.Sequential(first, second, last)
    assert units(model, 4 * 4) == [first[0], last]  # the rest is below the size everywhere
    assert units(model, 5 * 4) == [first, last]
    assert units(model, 1 * 4) == [*first, *second, last]
    assert units(model, 100 * 4) == []


def test_modules_that_share_a_parameter_and_containers_are_no_units() -> None:
    tied = of(3, 3, 3)
    tied[2].weight = tied[0].weight
    assert units(tied, 3 * 4) == [tied[1]]
    assert units(nn.Sequential(tied), 3 * 4) == [tied[1], tied]
    listed = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
    assert units(nn.Sequential(listed), 6 * 4) == []


class Odd(nn.Sequential):
    """A network with a further parameter."""

    def __init__(self, odd: Tensor) -> None:
        super().__init__(nn.Linear(6, 3))
        self.odd = nn.Parameter(odd)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"clip_local": 1.0},
            r"clip_local clips by the norm of the whole .*, but --mount fsdp reduces 2",
        ),
        ({"reducer": "sage"}, r"the reducer sage decides over .* 2 parts .*: use --bucket-mb 1 for a single"),
        ({"reducer": "variance"}, r"the reducer variance needs the squares.*which FSDP2 does not compute"),
        ({"grouping": "model"}, r"\(grouping is model\), but .*: use --grouping layer, --bucket-mb 1 for"),
        (
            {"shards": 2},
            r"shards is 2, but 1 ranks cannot be divided .* of 2 ranks: allowed are 1$",
        ),
        (
            {"model": lambda: Odd(torch.zeros(()))},
            r"the parameter 'odd' is a scalar, which FSDP2 cannot",
        ),
        ({"model": lambda: Odd(torch.zeros(2, dtype=torch.complex64))}, r"the parameter 'odd' is complex"),
        (
            {"model": lambda: Odd(torch.zeros(2).double())},
            r"the model's parameters are torch.float32 on cpu",
        ),
        ({"model": lambda: nn.Embedding(9, 6, sparse=True)}, r"the model has sparse gradients"),
    ],
)
def test_what_fsdp_cannot_do_is_refused_by_name(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    def work(wire: Wire) -> None:
        with pytest.raises(ValueError, match=says):
            training(wire, tmp_path, **{**UNITS, **options})

    processes(1, work)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"clip_local": 1.0},
            "clip_local .* reduces 2 parts one by one: use --shards 1 for a single part",
        ),
        (
            {"reducer": "sage", **UNITS},
            "reduces 4 parts one by one: use --bucket-mb 1 --shards 1 for a",
        ),
        (
            {"reducer": "int8"},
            r"\(grouping is model\), .*: use --grouping layer, --shards 1 for a single",
        ),
    ],
)
def test_what_needs_the_whole_gradient_is_refused_with_shards(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    def work(wire: Wire) -> None:
        with pytest.raises(ValueError, match=says):
            training(wire, tmp_path, **{**SHARDED, "shards": 2, **options})

    processes(2, work)


@pytest.mark.parametrize(("before", "now", "shards"), [(3, 2, 1), (1, 2, 1), (4, 2, 2), (2, 4, 2)])
def test_another_number_of_replicas_and_other_units_keep_the_sum_of_the_residuals(
    tmp_path: Path, before: int, now: int, shards: int
) -> None:
    def residuals(run: Any) -> dict[str, Tensor]:
        feedback = run.mount.state_dict()["feedback"]
        return {name: part["residual_N"].double().clone() for name, part in feedback.items()}

    def first(wire: Wire) -> dict[str, Tensor]:
        run = training(wire, tmp_path / "first", **UNITS, shards=shards)
        if wire.rank == 0:
            (tmp_path / "first").mkdir()
            write_json(tmp_path / "first" / "config.json", run.config.to_dict())
        step(run, 3).save()
        return residuals(run)

    def then(wire: Wire) -> dict[str, Tensor]:
        run = training(wire, tmp_path / "then", continue_from=tmp_path / "first", **SHARDED, shards=shards)
        assert run.resume()
        return residuals(run)

    left, taken = processes(before, first), processes(now, then)
    for shard in range(shards):
        was, now_is = (
            {name: torch.stack([each[name] for each in ranks[shard::shards]]).sum(0) for name in left[0]}
            for ranks in (left, taken)
        )
        assert any(bool(total.any()) for total in was.values())
        torch.testing.assert_close(now_is, was)


def test_a_run_does_not_continue_from_one_with_other_shards(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        if wire.rank == 0:
            (tmp_path / "first").mkdir()
            write_json(
                tmp_path / "first" / "config.json", training(wire, tmp_path / "first").config.to_dict()
            )

    processes(1, work)

    def then(wire: Wire) -> None:
        run = training(wire, tmp_path / "then", continue_from=tmp_path / "first", mount="whole", shards=2)
        with pytest.raises(ValueError, match="whose shards is 1; this run's is 2"):
            run.resume()

    processes(1, then)


def test_the_hash_has_the_shards_and_the_size_of_units_under_fsdp_only() -> None:
    given: dict[str, Any] = {
        "workload": "points",
        "task": "classify",
        "model": "feedforward",
        "data": "digits",
    }

    def hashed(**options: Any) -> str:
        return Config(**given, **options).hash

    assert hashed() == hashed(mount="whole", shards=2, bucket_mb=1.0)
    assert hashed(mount="ddp") == hashed(mount="ddp", shards=2)
    fsdp = [hashed(**{"mount": "fsdp", **more}) for more in ({}, {"shards": 2}, {"bucket_mb": 1.0})]
    assert len({hashed(), hashed(mount="ddp"), *fsdp}) == 5
    assert "shards" not in Config(**given).to_dict()
