"""Reduce-scatter of shards in compressed formats, in one level or in two.

Two levels (ZeRO++'s qgZ, Wang et al., 2023; SDP4Bit, Jia et al., 2024): with W = L·M ranks, of which M
neighbours form a node, a rank first sends to each rank m of its node the L rows for the ranks m of all nodes.
These are added, encoded again, and sent between the nodes, of which each rank gets its row.
"""
# W = ranks that share a replica, L = nodes, M = ranks of a node, S = elements of a rank's shard

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sage.comm.wire import Wire
from sage.reduction.loco import LocoError
from sage.reduction.shard_formats import (
    BLOCK,
    VALUES,
    Format,
    GatherFormat,
    Int4,
    RandomLevels,
    ReduceFormat,
    by_name,
)
from sage.rng import seed_at

SDP4BIT_BLOCK = 128
"""Elements that share a scale in `sdp4bit`'s reduce-scatter, by default."""
HADAMARD = 32
"""Elements that SDP4Bit's Hadamard transform mixes."""


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """How FSDP2's collectives send their numbers.

    Raises:
        ValueError: if an option is out of range.
    """

    reduce_scatter: ReduceFormat = "exact"
    """Format of the reduce-scatter of gradients."""
    all_gather: GatherFormat = "exact"
    """Format of the all-gather of parameters."""
    block: int | None = None
    """Elements that share a scale; None: 256, for gradients in `sdp4bit` 128, for parameters 2,048."""
    node: int | None = None
    """Neighbouring ranks of a node, within which gradients are reduced first; None: one level."""
    beta: float = 0.8
    """`loco`: β, the factor of the error before what the code has lost is added."""
    reset_every: int = 1024
    """`loco`: T, steps after which the error becomes 0."""
    seed: int = 0
    """`sdp4bit`: seed of the random rounding."""

    def __post_init__(self) -> None:
        for name, allowed in (("reduce_scatter", ReduceFormat), ("all_gather", GatherFormat)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: expected one of {', '.join(get_args(allowed))}"
                )
        for name in ("block", "node", "reset_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r}: expected 1 or more")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta={self.beta!r}: expected 0 or more, and less than 1")

    def has_two_levels(self, world_size: int) -> bool:
        """Whether gradients of this number of ranks are reduced within nodes first.

        Raises:
            ValueError: if the ranks cannot be divided into nodes.
        """
        if self.reduce_scatter == "exact" or self.node is None:
            return False
        if world_size % self.node:
            allowed = ", ".join(str(n) for n in range(1, world_size + 1) if world_size % n == 0)
            raise ValueError(
                f"node={self.node}: {world_size} shards cannot be divided into nodes of that size; expected "
                f"one of {allowed}"
            )
        return 1 < self.node < world_size


@dataclass
class Hop:
    """One exchange: its ranks, its format, and the error that is fed back."""

    wire: Wire
    format: Format
    error: LocoError | None = None

    def __call__(self, x_WS: Tensor, step: int, rank: int, divisor: int) -> Tensor:
        """Send row r to rank r; return the sum of the rows that arrive, divided (float32, S)."""
        h_WS = x_WS
        if self.error is not None:
            h_WS = self.error.value(x_WS.reshape(-1)).view(x_WS.shape).add_(x_WS)
        rows = self.format.encode(h_WS, step, rank)
        if self.error is not None:
            sent_WS = self.format.decode(rows, x_WS.shape[1])
            self.error.update(h_WS.reshape(-1), sent_WS.view(-1), step)
        received = dict(zip(rows, self.wire.all_to_all_packed(**rows), strict=True))
        return self.format.total(received, x_WS.new_empty(x_WS.shape[1]), divisor)


class ReduceScatter:
    """Gives each rank its shard of the mean or sum of all ranks' gradients; it has the state of one unit.

    Args:
        options: Format and levels.
        whole: Wire of all W ranks.
        levels: Wires within a node and between nodes, if there are two levels.
        unit: Number of the unit, on which random rounding depends too.
    """

    def __init__(
        self, options: ShardOptions, whole: Wire, levels: Sequence[Wire] = (), *, unit: int = 0
    ) -> None:
        self._whole = whole
        # With one level, a node is one rank, or all of them.
        wires = levels or [whole]
        within = [wire is levels[0] for wire in levels] or [options.node == whole.world_size]
        self._hops = [
            Hop(wire, _format(options, is_within_node=inside, unit=unit), _error(options))
            for wire, inside in zip(wires, within, strict=True)
            if options.reduce_scatter != "exact"
        ]
        self._mixes = options.reduce_scatter == "sdp4bit"
        self._step, self._loss_scale = 0, 1.0

    def __call__(self, x_WS: Tensor, divisor: int) -> Tensor:
        """Return this rank's row of the sum over ranks, divided; a collective call.

        Args:
            x_WS: A row for each rank; not modified.
            divisor: The sum is divided by it.
        """
        if not self._hops:
            own_S = self._whole.reduce_scatter(x_WS, kind=VALUES)
            return own_S if divisor == 1 else own_S.div_(divisor)
        self._step += 1
        length = x_WS.shape[1]
        rows = x_WS.float()
        if self._mixes:
            rows = hadamard(F.pad(rows, (0, -length % HADAMARD)))
        first, *others = self._hops
        place = self._step, self._whole.rank
        if others:
            num_nodes, num_in_node = others[0].wire.world_size, first.wire.world_size
            rows = rows.view(num_nodes, num_in_node, -1).transpose(0, 1).reshape(num_in_node, -1)
        sum_S = first(rows, *place, 1 if others else divisor)
        for hop in others:
            sum_S = hop(sum_S.view(hop.wire.world_size, -1), *place, divisor)
        return hadamard(sum_S)[:length] if self._mixes else sum_S

    # State.

    @property
    def errors(self) -> list[LocoError]:
        """The errors that are fed back, of each level."""
        return [hop.error for hop in self._hops if hop.error is not None]

    def set_loss_scale(self, scale: float) -> None:
        """Convert the errors to the loss scale of the next gradients."""
        if scale != self._loss_scale:
            for error in self.errors:
                error.rescale(scale / self._loss_scale)
            self._loss_scale = scale

    def drop_errors(self) -> None:
        """Set the errors to 0."""
        for error in self.errors:
            error.kept = None

    def save(self) -> tuple[Any, ...]:
        """Return the state, for `put_back`; nothing is copied."""
        return self._step, self._loss_scale, [error.kept for error in self.errors]

    def put_back(self, saved: tuple[Any, ...]) -> None:
        """Restore what `save` returned."""
        self._step, self._loss_scale, kept = saved
        for error, of_it in zip(self.errors, kept, strict=True):
            error.kept = of_it

    def state_dict(self) -> dict[str, Any]:
        """State of this rank: number of steps, and errors with their loss scale; empty with `exact`."""
        if not self._hops:
            return {}
        return {
            "step": self._step,
            "loss_scale": self._loss_scale,
            "errors": {str(level): error.state_dict() for level, error in enumerate(self.errors)},
        }

    def load_state_dict(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: if it is that of another format.
        """
        if saved.keys() != self.state_dict().keys() or len(saved.get("errors", ())) != len(self.errors):
            raise ValueError(
                "the state is that of a reduce-scatter in another format: use the format and the node that "
                "it was saved with"
            )
        if saved:
            self._step, self._loss_scale = saved["step"], saved["loss_scale"]
            for level, error in enumerate(self.errors):
                error.load_state_dict(saved["errors"][str(level)], device)


def _format(options: ShardOptions, *, is_within_node: bool, unit: int) -> Format:
    """The format of one level of the reduce-scatter."""
    match options.reduce_scatter:
        case "int4" | "loco":
            return Int4(options.block or BLOCK)
        case "sdp4bit":
            seed = seed_at(options.seed, unit)
            return RandomLevels(127 if is_within_node else 7, options.block or SDP4BIT_BLOCK, seed)
        case name:
            return by_name(name, options.block or BLOCK)


def _error(options: ShardOptions) -> LocoError | None:
    if options.reduce_scatter != "loco":
        return None
    return LocoError(options.block or BLOCK, beta=options.beta, reset_every=options.reset_every)


def hadamard(x: Tensor) -> Tensor:
    """Multiply each 32 elements of the last dimension by the orthonormal Hadamard matrix, its own inverse.

    >>> x_N = torch.arange(64.0)
    >>> torch.allclose(hadamard(hadamard(x_N)), x_N, atol=1e-4)
    True
    """
    y = x.reshape(-1, HADAMARD)
    half = 1
    while half < HADAMARD:
        pairs = y.view(-1, HADAMARD // (2 * half), 2, half)
        y = torch.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), 2)
        half *= 2
    return y.reshape(x.shape).mul_(HADAMARD**-0.5)
