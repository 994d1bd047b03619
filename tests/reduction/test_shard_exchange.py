"""Reduce-scatters and all-gathers of shards between simulated ranks, and LoCo's error."""
# W = ranks, S = elements of a shard, N = elements of a vector

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reduction.loco import LocoError
from sage.reduction.shard_exchange import ReduceScatter, ShardOptions, hadamard
from sage.reduction.shard_gather import AllGather, DifferenceGather

FORMATS = ["exact", "bf16", "fp8", "int8", "int4", "loco", "sdp4bit"]
S = 77
CPU = torch.device("cpu")


def gradient(rank: int, step: int, world_size: int, length: int = S) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(world_size, length, generator=generator)


def mean(rank: int, step: int, world_size: int) -> Tensor:
    """The shard of this rank, added in rank order."""
    total_S = gradient(0, step, world_size)[rank].clone()
    for other in range(1, world_size):
        total_S += gradient(other, step, world_size)[rank]
    return total_S.div_(world_size)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_exact_is_the_sum_in_rank_order_to_the_bit(world_size: int) -> None:
    def work(wire: Wire) -> bool:
        reduce = ReduceScatter(ShardOptions(), wire)
        got_S = reduce(gradient(wire.rank, 0, world_size), world_size)
        return torch.equal(got_S, mean(wire.rank, 0, world_size)) and not reduce.state_dict()

    assert simulate(world_size, work) == [True] * world_size


@pytest.mark.parametrize("world_size", [2, 3])
def test_bf16_is_rounded_once_and_added_in_float32(world_size: int) -> None:
    def work(wire: Wire) -> bool:
        got_S = ReduceScatter(ShardOptions(reduce_scatter="bf16"), wire)(
            gradient(wire.rank, 0, world_size), world_size
        )
        total_S = torch.zeros(S)
        for rank in range(world_size):
            total_S += gradient(rank, 0, world_size)[wire.rank].bfloat16().float()
        return torch.equal(got_S, total_S.div_(world_size))

    assert simulate(world_size, work) == [True] * world_size


@pytest.mark.parametrize("name", FORMATS[:-1])
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_error_of_a_mean_is_within_that_of_a_block(name: Any, world_size: int) -> None:
    levels = {"int8": 254, "int4": 14, "loco": 14}

    def work(wire: Wire) -> tuple[float, float]:
        reduce = ReduceScatter(ShardOptions(reduce_scatter=name, block=16), wire)
        got_S = reduce(gradient(wire.rank, 0, world_size), world_size)
        off = float((got_S - mean(wire.rank, 0, world_size)).abs().max())
        largest = max(float(gradient(rank, 0, world_size).abs().max()) for rank in range(world_size))
        bound = largest / levels.get(name, 16)
        return off, bound if name != "exact" else 1e-12

    for off, bound in simulate(world_size, work):
        assert off <= bound
        assert name == "exact" or off > 0


@pytest.mark.parametrize("world_size", [2, 3])
def test_sdp4bits_error_has_the_length_that_its_transform_had(world_size: int) -> None:
    def work(wire: Wire) -> tuple[float, float]:
        reduce = ReduceScatter(ShardOptions(reduce_scatter="sdp4bit", block=32), wire)
        got_S = reduce(gradient(wire.rank, 0, world_size), world_size)
        off = (got_S - mean(wire.rank, 0, world_size)).square().mean().sqrt()
        rows_WS = torch.stack([gradient(rank, 0, world_size)[wire.rank] for rank in range(world_size)])
        scale = hadamard(F.pad(rows_WS, (0, 96 - S))).abs().max()
        return float(off), float(scale) / 7 * (96 / S) ** 0.5  # with the padding, which is not returned

    for off, bound in simulate(world_size, work):
        assert 0 < off < bound


@pytest.mark.parametrize("name", FORMATS)
def test_the_ledger_has_the_bytes_of_codes_and_scales(name: Any) -> None:
    def work(wire: Wire) -> dict[str, int]:
        ReduceScatter(ShardOptions(reduce_scatter=name, block=16), wire)(gradient(wire.rank, 0, 3), 3)
        return dict(wire.ledger.payload)

    blocks, padded_blocks = 5, 6  # of 77 elements, and of 96 for the transform
    by_hand = {
        "exact": {"shards": 4 * S},
        "bf16": {"shards": 2 * S},
        "fp8": {"shards": S, "shard_scales": 4 * blocks},
        "int8": {"shards": S, "shard_scales": 4 * blocks},
        "int4": {"shards": 39, "shard_scales": 4 * blocks},
        "loco": {"shards": 39, "shard_scales": 4 * blocks},
        "sdp4bit": {"shards": 48, "shard_scales": 4 * padded_blocks},
    }
    wanted = {kind: 3 * size for kind, size in by_hand[name].items()}
    assert simulate(3, work) == [wanted] * 3


@pytest.mark.parametrize("name", ["exact", "bf16", "fp8", "int8"])
def test_every_rank_gathers_the_same_rows_within_the_error_of_a_block(name: Any) -> None:
    def work(wire: Wire) -> tuple[Tensor, dict[str, int]]:
        rows_WS = AllGather(ShardOptions(all_gather=name, block=16), wire)(gradient(wire.rank, 0, 1)[0])
        return rows_WS, dict(wire.ledger.payload)

    seen = simulate(3, work)
    true_WS = torch.cat([gradient(rank, 0, 1) for rank in range(3)])
    for rows_WS, payload in seen:
        assert torch.equal(rows_WS, seen[0][0])
        off, largest = float((rows_WS - true_WS).abs().max()), float(true_WS.abs().max())
        assert off <= largest * {"exact": 0, "bf16": 2.0**-8, "fp8": 1 / 16, "int8": 1 / 254}[name] * 1.001
        size = {"exact": 4 * S, "bf16": 2 * S}.get(name, S)
        assert payload == {"shards": size, **({"shard_scales": 20} if size == S else {})}


def test_integers_are_gathered_as_they_are() -> None:
    def work(wire: Wire) -> Tensor:
        return AllGather(ShardOptions(all_gather="int8"), wire)(torch.tensor([wire.rank, 9]))

    assert all(torch.equal(rows, torch.tensor([[0, 9], [1, 9]])) for rows in simulate(2, work))


def test_the_hadamard_transform_keeps_lengths_and_is_its_own_inverse() -> None:
    x_N = torch.randn(96, generator=torch.Generator().manual_seed(0))
    y_N = hadamard(x_N)
    torch.testing.assert_close(y_N.view(3, 32).norm(dim=1), x_N.view(3, 32).norm(dim=1))
    torch.testing.assert_close(hadamard(y_N), x_N)
    one_N = torch.zeros(32)
    one_N[0] = 1
    torch.testing.assert_close(hadamard(one_N), torch.full((32,), 32**-0.5))


# SDP4Bit's differences of parameters


def parameters(rank: int, step: int) -> Tensor:
    """Parameters that move a little in each step."""
    return gradient(rank, 0, 1)[0] + 0.01 * step * gradient(rank, 99, 1)[0]


def test_differences_follow_the_parameters_within_half_a_level_of_their_block() -> None:
    def work(wire: Wire) -> list[tuple[Tensor, float, dict[str, int]]]:
        gather, found = DifferenceGather(ShardOptions(all_gather="sdp4bit", block=S), wire), []
        for step in range(4):
            before = wire.ledger.copy()
            rows_WS = gather(parameters(wire.rank, step))
            true_WS = torch.stack([parameters(rank, step) for rank in range(wire.world_size)])
            off = float((rows_WS - true_WS).abs().max())
            found.append((rows_WS, off, dict(wire.ledger.since(before).payload)))
        return found

    moved = max(float((parameters(r, 1) - parameters(r, 0)).abs().max()) for r in range(3))
    ours, *others = simulate(3, work)
    assert [off for _, off, _ in ours][0] == 0
    for step in range(1, 4):
        rows_WS, off, payload = ours[step]
        assert 0 < off <= (moved + moved / 13) / 14 * 1.001  # with what was left of the step before
        assert payload == {"shards": 39, "shard_scales": 4}
        assert all(torch.equal(rows_WS, theirs[step][0]) for theirs in others)
    assert ours[0][2] == {"shards": 4 * S}


def test_unchanged_parameters_are_gathered_as_before() -> None:
    def work(wire: Wire) -> tuple[bool, bool]:
        gather = DifferenceGather(ShardOptions(all_gather="sdp4bit"), wire)
        gather(parameters(wire.rank, 0))
        first_WS = gather(parameters(wire.rank, 1))
        again_WS = gather(parameters(wire.rank, 1))
        # One rank's may change while another's have not.
        other_WS = gather(parameters(wire.rank, 1 + wire.rank))
        return torch.equal(first_WS, again_WS), torch.equal(other_WS[0], first_WS[0])

    assert simulate(2, work) == [(True, True)] * 2


def test_a_gather_of_differences_goes_on_from_its_state_from_one_put_back_and_anew() -> None:
    def work(wire: Wire) -> list[bool]:
        options = ShardOptions(all_gather="sdp4bit", block=16)
        stays, again = DifferenceGather(options, wire), DifferenceGather(options, wire)
        for step in range(3):
            stays(parameters(wire.rank, step))
        again(torch.zeros(S))
        again.load_state_dict(stays.state_dict(), CPU)
        kept = stays.save()
        wanted_WS = stays(parameters(wire.rank, 3))
        found = [torch.equal(again(parameters(wire.rank, 3)), wanted_WS)]
        stays.put_back(kept)
        found.append(torch.equal(stays(parameters(wire.rank, 3)), wanted_WS))
        stays.forget()
        assert stays.state_dict() == {}
        found.append(torch.equal(stays(parameters(wire.rank, 3))[wire.rank], parameters(wire.rank, 3)))
        with pytest.raises(ValueError, match="the state is that of 77 elements, and FSDP2 passes 5"):
            again(torch.zeros(5))
        return found

    assert simulate(2, work) == [[True] * 3] * 2


# LoCo


def test_the_error_is_a_moving_average_of_what_the_code_loses() -> None:
    def work(wire: Wire) -> list[float]:
        reduce = ReduceScatter(ShardOptions(reduce_scatter="loco", block=16, beta=0.75), wire)
        (error,) = reduce.errors
        plain = ReduceScatter(ShardOptions(reduce_scatter="int4", block=16), wire)
        off = []
        for step in range(4):
            x_WS = gradient(wire.rank, step, wire.world_size)
            e_N = error.value(x_WS.view(-1))
            h_WS = x_WS + e_N.view(x_WS.shape)
            sent = plain._hops[0].format
            lost_N = (h_WS - sent.decode(sent.encode(h_WS, 1, 0), S)).view(-1)
            wanted_N = 0.75 * e_N + 0.25 * lost_N
            reduce(x_WS, 2)
            step_of_8_bits = float(wanted_N.abs().max()) / 254
            off.append(float((error.value(wanted_N) - wanted_N).abs().max()) / step_of_8_bits)
        return off

    for off in simulate(2, work):
        assert max(off) <= 1.001


def test_with_beta_0_the_error_keeps_all_that_int4_loses_up_to_the_rounding_to_8_bits() -> None:
    steps = 6

    def work(wire: Wire) -> tuple[Tensor, Tensor, float]:
        reduce = ReduceScatter(ShardOptions(reduce_scatter="loco", block=16, beta=0.0), wire)
        sent_S, bound = torch.zeros(S), 0.0
        (error,) = reduce.errors
        for step in range(steps):
            sent_S += reduce(gradient(wire.rank, step, 2), 1)
            bound += float(error.value(torch.empty(2 * S)).abs().max()) / 254
        return sent_S, error.value(torch.empty(2 * S)).view(2, S), bound

    seen = simulate(2, work)
    for rank, (sent_S, _, _) in enumerate(seen):
        kept_S = seen[0][1][rank] + seen[1][1][rank]
        true_S = torch.stack([gradient(r, step, 2)[rank] for r in range(2) for step in range(steps)]).sum(0)
        off = float((sent_S + kept_S - true_S).abs().max())
        assert off <= seen[0][2] + seen[1][2] + 1e-5
        assert float(kept_S.abs().max()) > 10 * off / 2  # the error is what was missing


def test_the_error_is_dropped_every_t_steps_and_where_it_is_not_finite() -> None:
    error = LocoError(16, beta=0.5, reset_every=3)
    h_N = torch.randn(32, generator=torch.Generator().manual_seed(0))
    for step in (1, 2):
        error.update(h_N, torch.zeros(32), step)
        assert bool(error.value(h_N).any())
    error.update(h_N, torch.zeros(32), 3)
    assert error.kept is None
    error.update(h_N, torch.where(torch.arange(32) < 16, torch.nan, 0.0), 4)
    e_N = error.value(h_N)
    assert not e_N[:16].any()
    assert bool(e_N[16:].any())


def test_a_loss_scale_that_halves_halves_the_error() -> None:
    def work(wire: Wire) -> bool:
        reduce = ReduceScatter(ShardOptions(reduce_scatter="loco"), wire)
        reduce.set_loss_scale(1024.0)
        reduce(gradient(wire.rank, 0, 2), 2)
        before_N = reduce.errors[0].value(torch.empty(2 * S))
        reduce.set_loss_scale(512.0)
        return torch.equal(reduce.errors[0].value(before_N), before_N / 2)

    assert simulate(2, work) == [True, True]


@pytest.mark.parametrize("name", ["loco", "sdp4bit"])
def test_a_reduce_scatter_goes_on_from_its_saved_state_and_from_one_put_back(name: Any) -> None:
    def work(wire: Wire) -> tuple[bool, bool]:
        options = ShardOptions(reduce_scatter=name, block=16)
        never_stopped = ReduceScatter(options, wire)
        never_stopped(gradient(wire.rank, 0, 2), 2)
        kept = never_stopped.save()
        again = ReduceScatter(options, wire)
        again.load_state_dict(never_stopped.state_dict(), CPU)
        wanted_S = never_stopped(gradient(wire.rank, 1, 2), 2)
        resumed_S = again(gradient(wire.rank, 1, 2), 2)
        never_stopped.put_back(kept)
        repeated_S = never_stopped(gradient(wire.rank, 1, 2), 2)
        return torch.equal(wanted_S, resumed_S), torch.equal(wanted_S, repeated_S)

    assert simulate(2, work) == [(True, True)] * 2


def test_the_state_of_another_format_or_block_is_refused() -> None:
    def work(wire: Wire) -> None:
        loco = ReduceScatter(ShardOptions(reduce_scatter="loco", block=16), wire)
        loco(gradient(wire.rank, 0, 2), 2)
        saved = loco.state_dict()
        with pytest.raises(ValueError, match="the state is that of a reduce-scatter in another format"):
            ReduceScatter(ShardOptions(reduce_scatter="int4"), wire).load_state_dict(saved, CPU)
        other = ReduceScatter(ShardOptions(reduce_scatter="loco", block=8), wire)
        with pytest.raises(ValueError, match="not those of blocks of 8: use the block"):
            other.load_state_dict(saved, CPU)
        with pytest.raises(ValueError, match="the error is that of 154 elements, and FSDP2 passes 20"):
            loco(torch.ones(2, 10), 2)

    simulate(2, work)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"reduce_scatter": "int5"}, "reduce_scatter='int5': expected one of exact, bf16, fp8, int8, int4"),
        ({"all_gather": "int4"}, "all_gather='int4': expected one of exact, bf16, fp8, int8, sdp4bit"),
        ({"block": 0}, "block=0: expected 1 or more"),
        ({"node": 0}, "node=0: expected 1 or more"),
        ({"beta": 1.0}, "beta=1.0: expected 0 or more, and less than 1"),
        ({"reset_every": 0}, "reset_every=0: expected 1 or more"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ShardOptions(**options)


def test_a_node_that_does_not_divide_the_shards_is_refused() -> None:
    options = ShardOptions(reduce_scatter="int4", node=3)
    with pytest.raises(ValueError, match="node=3: 4 shards cannot be divided .*; expected one of 1, 2, 4$"):
        options.has_two_levels(4)
    assert [options.has_two_levels(num) for num in (3, 6)] == [False, True]
