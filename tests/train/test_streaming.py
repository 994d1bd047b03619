"""Tests of `--fragments`: Streaming DiLoCo, in which parts of the model are exchanged at different steps."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from mounted_runs import GIVEN, differing, everything, step, training
from small import Points
from torch import Tensor, nn

from sage.comm.ledger import KINDS
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import Config
from sage.data.dataset import Batch
from sage.records.record import read_metrics, recorder
from sage.storage import write_json
from sage.testing.harness import same_bits
from sage.train import choose_mount
from sage.train.evaluate import evaluate
from sage.train.fragments import Order, first_steps, fragments_of
from sage.train.loop import Training
from sage.train.mounted_local import MountedLocal
from sage.train.mounted_streaming import MountedStreaming

NESTEROV: dict[str, Any] = {"outer_optimizer": "nesterov", "outer_lr": 0.7, "outer_momentum": 0.9}
DELAYED: dict[str, Any] = {"fragment_sync_delay": 2, "fragment_update_alpha": 0.5}


def equal_blocks() -> nn.Module:
    """A network of four layers of 42 elements each."""
    torch.manual_seed(1)
    return nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))


def weights(run: Training) -> list[Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


def state(run: Training) -> dict[str, Tensor]:
    """All state that later steps depend on, with the common weights and the outer momentum."""
    assert isinstance(run.mount, MountedLocal)
    outer = run.mount.outer
    anchors = {f"anchor {name}": x.clone() for name, x in outer.anchors().items()}
    momenta = {f"momentum {name}": x.clone() for name, x in outer.state_dict().items()}
    return {**everything(run), **anchors, **momenta}


# One fragment without delay is DiLoCo.


@pytest.mark.parametrize(
    "options",
    [
        {"reducer": "exact"},
        {"reducer": "topk", "min_compress": 20},
        {"reducer": "sparseloco", "memory_beta": 0.95},
        {"reducer": "qsgd"},
        {"reducer": "powersgd", "clip_local": 0.1, "optimizer": "adamw", "lr": 0.01},
        {
            "reducer": "exact",
            "local_from": 2,
            "outer_optimizer": None,
            "outer_lr": None,
            "outer_momentum": None,
        },
    ],
    ids=["exact", "topk", "sparseloco", "qsgd", "powersgd", "post-local"],
)
def test_one_fragment_without_delay_is_diloco_to_the_bit(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(wire: Wire) -> list[Any]:
        before = wire.ledger.copy()
        run = training(wire, tmp_path, **{"local_steps": 3, "epochs": 1.0, **NESTEROV, **options})
        seen: list[Any] = [type(run.mount)]
        for _ in range(run.total_steps):
            step(run, 1)
            seen += [weights(run), dict(wire.ledger.since(before).payload), run.mount.density()]
            seen.append(evaluate(run).metrics)
        return seen

    diloco = simulate(2, work)
    monkeypatch.setattr(choose_mount, "is_streaming", lambda config: True)
    streaming = simulate(2, work)
    for (kind, *plain), (other_kind, *other) in zip(diloco, streaming, strict=True):
        assert (kind, other_kind) == (MountedLocal, MountedStreaming)
        for a, b in zip(plain, other, strict=True):
            assert all(map(same_bits, a, b)) if isinstance(a, list) else a == b


# Bytes.


@pytest.mark.parametrize("order", ["strided", "sequential"])
def test_a_period_has_the_bytes_of_diloco_and_its_peak_is_one_in_p_of_them(
    tmp_path: Path, order: str
) -> None:
    def payloads(wire: Wire, **options: Any) -> list[dict[str, int]]:
        run = training(
            wire, tmp_path, model=equal_blocks, reducer="exact", local_steps=8, epochs=9.0, **options
        )
        found = []
        for _ in range(16):
            before = wire.ledger.copy()
            step(run, 1)
            sent = wire.ledger.since(before).payload
            found.append({kind: sent[kind] for kind in KINDS if sent[kind] and kind != "control"})
        return found

    def work(wire: Wire) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
        delayed = {"fragments": 4, "fragment_order": order, **DELAYED}
        return payloads(wire), payloads(wire, **delayed)

    for diloco, streaming in simulate(2, work):
        for period in (slice(0, 8), slice(8, 16)):
            assert sum(each.get("values", 0) for each in diloco[period]) == 4 * 168
            assert sum(each.get("values", 0) for each in streaming[period]) == 4 * 168
        assert max(each.get("values", 0) for each in diloco) == 4 * 168
        assert [each.get("values", 0) for each in streaming] == [0, 4 * 42] * 8


def test_the_record_has_the_share_of_the_model_that_a_step_sent(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        with closing(recorder(tmp_path, wire.rank)) as record:
            run = training(
                wire,
                tmp_path,
                model=equal_blocks,
                reducer="sparseloco",
                local_steps=4,
                fragments=2,
                epochs=1.0,
                record=record,
            )
            assert run.total_steps > 5
            assert run.run()

    simulate(2, work)
    steps = [record for record in read_metrics(tmp_path) if record["kind"] == "step"]
    assert [record["communicated"] for record in steps[:5]] == [False, True, False, True, False]
    for record in steps[:-1]:
        # Of each of two layers, one weight and one bias are sent; asked are 1/64 of half of the model.
        expected = record["communicated"] * 4 / 168
        assert record["density_had"] == pytest.approx(expected)
        assert record["density_asked"] == pytest.approx(record["communicated"] / 128)
        assert ("encode_seconds" in record) == record["communicated"]
    assert steps[-1]["density_had"] == pytest.approx(8 / 168)


# The algorithm, against a plain implementation.


def batches_of(rank: int, world_size: int) -> Iterator[Batch]:
    for epoch in range(9):
        yield from Points().train_batches(epoch=epoch, rank=rank, world_size=world_size, batch_size=2, seed=0)


def plain(world_size: int, steps: int, period: int, delay: int, own_share: float) -> list[list[Tensor]]:
    """Streaming DiLoCo with the layers 0 and 2, 1 and 3 as fragments, and plain SGD inside."""
    models = [equal_blocks().double() for _ in range(world_size)]
    inner = [torch.optim.SGD(model.parameters(), lr=0.25) for model in models]
    fragments = [[0, 1, 4, 5], [2, 3, 6, 7]]
    common = [p.detach().clone() for p in models[0].parameters()]
    momenta = [torch.zeros_like(x) for x in common]
    batches = [batches_of(rank, world_size) for rank in range(world_size)]
    for t in range(1, steps + 1):
        for model, optimizer, mine in zip(models, inner, batches, strict=True):
            x_BF, y_B = next(mine)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x_BF.double()), y_B).backward()
            optimizer.step()
        with torch.no_grad():
            for indices, first in zip(fragments, (period // 2, period), strict=True):
                if t >= first and (t - first) % period == 0:
                    for i in indices:
                        delta = common[i] - torch.stack([[*m.parameters()][i] for m in models]).mean(0)
                        momenta[i] = 0.9 * momenta[i] + delta
                        common[i] = common[i] - 0.7 * (delta + 0.9 * momenta[i])
                if t - delay >= first and (t - delay - first) % period == 0:
                    for i in indices:
                        for m in models:
                            p = [*m.parameters()][i]
                            p.copy_(own_share * p + (1 - own_share) * common[i])
    return [[p.detach() for p in model.parameters()] for model in models]


@pytest.mark.parametrize(("delay", "own_share"), [(0, 0.0), (0, 0.5), (3, 0.0), (1, 0.25)])
def test_the_weights_are_those_of_a_plain_implementation(
    tmp_path: Path, delay: int, own_share: float
) -> None:
    def work(wire: Wire) -> list[Tensor]:
        run = training(
            wire,
            tmp_path,
            model=equal_blocks,
            reducer="exact",
            momentum_kind="none",
            lr=0.25,
            epochs=9.0,
            local_steps=4,
            fragments=2,
            fragment_sync_delay=delay,
            fragment_update_alpha=own_share,
            **NESTEROV,
        )
        return weights(step(run, 13))

    for found, expected in zip(simulate(2, work), plain(2, 13, 4, delay, own_share), strict=True):
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-5)


def test_after_the_last_step_all_ranks_have_the_same_weights_and_nothing_is_delayed(tmp_path: Path) -> None:
    def work(wire: Wire) -> tuple[list[Tensor], list[Tensor]]:
        given: dict[str, Any] = {"local_steps": 4, "fragments": 2, "epochs": 1.0, **DELAYED, **NESTEROV}
        run = training(wire, tmp_path, model=equal_blocks, **given)
        before = weights(step(run, run.total_steps - 1))
        step(run, 1)
        assert isinstance(run.mount, MountedStreaming)
        anchors = run.mount.outer.anchors()
        assert all(same_bits(p.detach(), anchors[name]) for name, p in run.model.named_parameters())
        return before, weights(run)

    (one_before, one), (other_before, other) = simulate(2, work)
    assert not any(map(same_bits, one_before, other_before))
    assert all(map(same_bits, one, other))


def test_an_evaluation_is_of_the_common_weights_and_changes_no_later_step(tmp_path: Path) -> None:
    def work(wire: Wire) -> tuple[Any, list[Tensor], list[Tensor]]:
        given: dict[str, Any] = {"local_steps": 4, "fragments": 2, **DELAYED}
        run = training(wire, tmp_path, model=equal_blocks, **given)
        other = training(wire, tmp_path, model=equal_blocks, **given)
        step(run, 3)
        step(other, 3)
        run.mount.replicas().check("between exchanges")
        metrics = evaluate(run).metrics
        return metrics, weights(step(run, 4)), weights(step(other, 4))

    for _, evaluated, not_evaluated in (ranks := simulate(2, work)):
        assert all(map(same_bits, evaluated, not_evaluated))
    assert ranks[0][0] == ranks[1][0]


# Resuming.


@pytest.mark.parametrize("at", [2, 3, 5], ids="after step {}".format)
@pytest.mark.parametrize("reducer", ["sparseloco", "fp4", "sage"])
def test_a_run_resumes_to_the_bit_while_a_result_is_delayed_and_at_other_times(
    tmp_path: Path, reducer: str, at: int
) -> None:
    """Fragments are exchanged after steps 2, 4, 6 …, and taken over two steps later."""

    def work(wire: Wire) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        given: dict[str, Any] = {"reducer": reducer, "local_steps": 4, "fragments": 2, **DELAYED, **NESTEROV}
        given |= {"optimizer": "adamw", "lr": 0.01, "model": equal_blocks}
        run = training(wire, tmp_path, **given)
        step(run, at).save()
        resumed = training(wire, tmp_path, **given)
        assert resumed.resume() == "its own checkpoint"
        return state(step(run, 7)), state(step(resumed, 7))

    for uninterrupted, resumed in simulate(2, work):
        assert differing(uninterrupted, resumed) == []


def test_another_number_of_ranks_keeps_the_common_weights_and_the_sum_of_the_residuals(
    tmp_path: Path,
) -> None:
    before = tmp_path / "before"
    before.mkdir()
    given: dict[str, Any] = {"reducer": "sparseloco", "local_steps": 4, "fragments": 2, **DELAYED, **NESTEROV}
    config = Config(**{**GIVEN, **given, "reducer_options": {}, "world_size": 2})
    write_json(before / "config.json", config.to_dict())

    def kept(run: Training) -> tuple[Tensor, Tensor]:
        assert isinstance(run.mount, MountedStreaming)
        residuals = [flat.feedback.residual_N for flat in run.mount.flats]
        anchors = run.mount.outer.anchors().values()
        return torch.cat([x.flatten() for x in anchors]), torch.cat([x for x in residuals if x is not None])

    def first(wire: Wire) -> tuple[Tensor, Tensor]:
        run = step(training(wire, before, model=equal_blocks, epochs=1.0, **given), 5)
        run.save()
        return kept(run)

    def then(wire: Wire) -> tuple[Tensor, Tensor]:
        run = training(wire, tmp_path / "now", model=equal_blocks, continue_from=before, **given)
        assert "the sum of their residuals is this run's" in run.resume()
        found = kept(run)
        step(run, 3)
        return found

    two, three = simulate(2, first), simulate(3, then)
    assert all(torch.equal(anchor_N, two[0][0]) for anchor_N, _ in three)
    sums = [torch.stack([residual_N for _, residual_N in ranks]).sum(0) for ranks in (two, three)]
    torch.testing.assert_close(*sums)


# Division of the model.


@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_fragments_have_every_parameter_once_and_as_many_units_as_possible(num: int) -> None:
    names = [f"blocks.{number}.{what}.weight" for number in range(7) for what in ("attention", "mlp")]
    orders: tuple[Order, ...] = ("strided", "sequential")
    for order in orders:
        found = fragments_of(names, num, order)
        assert sorted(name for fragment in found for name in fragment) == sorted(names)
        sizes = [len(fragment) // 2 for fragment in found]
        assert max(sizes) - min(sizes) <= 1
    assert len(set(first_steps(num, 7))) == num
    assert first_steps(num, 7)[-1] == 7


def test_more_fragments_than_the_model_has_parts_are_refused(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        with pytest.raises(
            ValueError, match="fragments is 3, but the model has 2 parts .* set --fragments to 2"
        ):
            training(wire, tmp_path, local_steps=4, fragments=3)

    simulate(1, work)
