"""All-gather of shards' parameters in compressed formats, and of their differences in 4 bits.

SDP4Bit's quantised weight differences (qWD; Jia et al., 2024, https://arxiv.org/abs/2410.15526): with θ this
rank's parameters, K what all ranks have of them, Q the int4 code and deq its value,

    q = Q(θ − K),   K ← K + deq(q)   on all ranks

What a code loses is in the next difference.
"""
# W = ranks that share a replica, S = elements of a rank's shard

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sage.comm.wire import Wire
from sage.reduction.shard_exchange import ShardOptions
from sage.reduction.shard_formats import BLOCK, Format, Int4, by_name

DIFFERENCE_BLOCK = 2048
"""Elements of differences that share a scale, by default."""


class AllGather:
    """Gives every rank the parameters of all shards.

    Args:
        options: The format; `exact` sends the parameters as they are.
        whole: Wire of all W ranks.
    """

    def __init__(self, options: ShardOptions, whole: Wire) -> None:
        self._whole = whole
        self._format: Format | None = None
        if options.all_gather not in ("exact", "sdp4bit"):
            self._format = by_name(options.all_gather, options.block or BLOCK)

    def __call__(self, x_S: Tensor) -> Tensor:
        """Return the rows of all ranks (W × S), on all ranks the same; a collective call."""
        if self._format is None or not x_S.is_floating_point():
            (rows_WS,) = self._whole.gather(shards=x_S)
            return rows_WS
        return self._gathered(x_S.float(), self._format)

    def _gathered(self, x_S: Tensor, form: Format) -> Tensor:
        row = form.encode(x_S[None], 0, self._whole.rank)
        gathered = self._whole.gather(**{kind: part_1[0] for kind, part_1 in row.items()})
        return form.decode(dict(zip(row, gathered, strict=True)), x_S.numel())

    # State; only differences have any.

    def forget(self) -> None:
        """Begin anew, as after the parameters were replaced."""

    def save(self) -> Any:
        """Return the state, for `put_back`; nothing is copied."""
        return None

    def put_back(self, saved: Any) -> None:
        """Restore what `save` returned."""

    def state_dict(self) -> dict[str, Tensor]:
        """State of this rank."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Tensor], device: torch.device) -> None:
        """Restore what `state_dict` returned; a collective call."""


class DifferenceGather(AllGather):
    """Gathers the differences of parameters to what all ranks have of them, in 4 bits.

    The first gather sends the parameters. Parameters that have not changed since the last gather are gathered
    as before, so that forward and backward compute with the same ones; the codes are sent all the same.

    Args:
        options: The block.
        whole: Wire of all W ranks.
    """

    def __init__(self, options: ShardOptions, whole: Wire) -> None:
        super().__init__(options, whole)
        self._code = Int4(options.block or DIFFERENCE_BLOCK)
        # Tensors are replaced, never changed, so that earlier ones can be put back.
        self._kept_WS: Tensor | None = None
        self._own: tuple[Tensor, Tensor] | None = None
        """The row of `_kept_WS` and the parameters of this rank at the last gather, both S."""

    def __call__(self, x_S: Tensor) -> Tensor:
        if not x_S.is_floating_point():
            return super().__call__(x_S)
        if self._kept_WS is None:
            (self._kept_WS,) = self._whole.gather(shards=x_S.float())
        elif self._own is not None:
            kept_S, seen_S = self._own
            if kept_S.shape != x_S.shape:
                raise ValueError(
                    f"the state is that of {kept_S.numel()} elements, and FSDP2 passes {x_S.numel()}: load "
                    "the state of the same model and number of shards"
                )
            difference_S = torch.zeros_like(kept_S) if torch.equal(x_S, seen_S) else x_S - kept_S
            self._kept_WS = self._kept_WS + self._gathered(difference_S, self._code)
        self._own = self._kept_WS[self._whole.rank], x_S.clone()
        return self._kept_WS

    def forget(self) -> None:
        self._kept_WS = self._own = None

    def save(self) -> Any:
        return self._kept_WS, self._own

    def put_back(self, saved: Any) -> None:
        self._kept_WS, self._own = saved

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self._own is None else {"kept": self._own[0].clone(), "seen": self._own[1]}

    def load_state_dict(self, saved: Mapping[str, Tensor], device: torch.device) -> None:
        self.forget()
        if saved:
            self._own = saved["kept"].to(device), saved["seen"].to(device)
            (self._kept_WS,) = self._whole.gather(state=self._own[0])


def gather_of(options: ShardOptions, whole: Wire) -> AllGather:
    """Create the all-gather of one unit."""
    kind = DifferenceGather if options.all_gather == "sdp4bit" else AllGather
    return kind(options, whole)
