"""LoCo: what a 4-bit code loses, kept as a moving average in 8 bits (Xie et al., 2024).

https://arxiv.org/abs/2407.04480; in this form in DeepSpeed (`csrc/quantization/swizzled_quantize.cu`). With g
the gradient, Q the code and deq its value:

    h = g + e,   q = Q(h),   e ← β·e + (1 − β)·(h − deq(q))

With β = 0 this is error feedback as of 1-bit SGD. Every T steps e becomes 0. `LocoError` is that of one
exchange of FSDP2's shards; `LocoResidual` is the memory `loco`, in place of a residual in float32.
"""
# N = elements of the vector, P = blocks

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sage import ops
from sage.reduction.layout import Layout

BLOCK = 256
"""Elements of a parameter that share a scale in `LocoResidual`."""


@dataclass(frozen=True)
class _Kept:
    """e in 8 bits; the tensors are replaced, never changed, so that an earlier one can be put back."""

    codes_N: Tensor
    scale_P: Tensor


class LocoError:
    """The error e of one vector, in 8-bit integers with a scale for each block.

    Args:
        block: Number of elements that share a scale.
        beta: β.
        reset_every: T, steps after which the error becomes 0.
        sizes: Number of elements of each group, which begins a new block; None: the vector is one.
    """

    def __init__(
        self, block: int, *, beta: float, reset_every: int, sizes: Sequence[int] | None = None
    ) -> None:
        self._coding = ops.Coding(ops.Codec.INT8, bucket=block)
        self._beta, self._reset_every, self._sizes = beta, reset_every, sizes
        self.kept: _Kept | None = None
        """The error; None: 0."""

    def value(self, like_N: Tensor) -> Tensor:
        """Decode the error (float32, N)."""
        e_N = torch.zeros_like(like_N)
        if self.kept is not None:
            if self.kept.codes_N.numel() != e_N.numel():
                raise ValueError(
                    f"the error is that of {self.kept.codes_N.numel()} elements, and FSDP2 passes "
                    f"{e_N.numel()}: load the state of the same model and number of shards"
                )
            codes_1N, scale_1P = self.kept.codes_N[None], self.kept.scale_P[None]
            ops.average(e_N, codes_1N, scale_1P, self._groups(e_N), self._coding, divisor=1)
        return e_N

    def update(self, h_N: Tensor, sent_N: Tensor, step: int) -> None:
        """Replace the error after h was sent as `sent_N`; where either is not finite, it becomes 0.

        Args:
            h_N: Gradient plus error (float32).
            sent_N: The values of its codes.
            step: Number of the step, from 1 on.
        """
        self.keep(h_N - sent_N, step)

    def keep(self, lost_N: Tensor, step: int) -> _Kept | None:
        """Replace the error after a code has lost `lost_N` (float32), as `update`, and return it."""
        if step % self._reset_every == 0:
            self.kept = None
            return None
        e_N = self.value(lost_N).mul_(self._beta).add_(lost_N, alpha=1 - self._beta)
        e_N.nan_to_num_(0.0, 0.0, 0.0)
        self.kept = _Kept(*ops.quantise(e_N, None, self._groups(e_N), self._coding))
        return self.kept

    def _groups(self, e_N: Tensor) -> Sequence[int]:
        return [e_N.numel()] if self._sizes is None else self._sizes

    def rescale(self, factor: float) -> None:
        """Multiply the error, when the loss scale of the gradients changes."""
        if self.kept is not None:
            self.kept = _Kept(self.kept.codes_N, self.kept.scale_P * factor)

    def state_dict(self) -> dict[str, Tensor]:
        """The error; empty if it is 0."""
        return {} if self.kept is None else {"codes": self.kept.codes_N, "scales": self.kept.scale_P}

    def load_state_dict(self, saved: dict[str, Tensor], device: torch.device) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: if it is not an error with these blocks.
        """
        self.kept = None
        if saved:
            codes_N, scale_P = saved["codes"].to(device), saved["scales"].to(device)
            fits = codes_N.dtype == torch.uint8 and scale_P.dtype == torch.float32
            if not fits or scale_P.shape != (self._coding.num_buckets([codes_N.numel()]),):
                raise ValueError(
                    f"the error has codes of shape {[*codes_N.shape]} and scales of shape "
                    f"{[*scale_P.shape]}, not those of blocks of {self._coding.bucket}: use the block it "
                    "was saved with"
                )
            self.kept = _Kept(codes_N, scale_P)


class LocoResidual(nn.Module):
    """The memory `loco`: the error of the whole vector in 8 bits, where a residual in float32 has 32.

    State: 1 byte per element and 4 bytes per block of 256; each parameter begins a new block.

    Args:
        layout: Layout of the flat vector.
        beta: β, at least 0 and below 1.
        reset_every: T, 1 or more.
    """

    codes_N: Tensor
    scale_P: Tensor
    step: Tensor

    def __init__(self, layout: Layout, *, beta: float, reset_every: int) -> None:
        super().__init__()
        sizes = [span.numel for span in layout.spans]
        self._error = LocoError(BLOCK, beta=beta, reset_every=reset_every, sizes=sizes)
        self.register_buffer("codes_N", torch.zeros(layout.numel, dtype=torch.uint8))
        self.register_buffer("scale_P", torch.zeros(num_blocks(sizes)))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def value(self) -> Tensor:
        """Decode the error (float32, N)."""
        self._error.kept = _Kept(self.codes_N, self.scale_P)
        return self._error.value(torch.empty_like(self.codes_N, dtype=torch.float32))

    def keep(self, lost_N: Tensor) -> None:
        """Replace the error after a step in which the reducer did not send `lost_N` (float32, N)."""
        self.step += 1
        self._error.kept = _Kept(self.codes_N, self.scale_P)
        kept = self._error.keep(lost_N, int(self.step))
        if kept is None:
            self.codes_N.zero_()
            self.scale_P.zero_()
        else:
            self.codes_N.copy_(kept.codes_N)
            self.scale_P.copy_(kept.scale_P)
        self._error.kept = None

    def rescale(self, factor: float) -> None:
        """Multiply the error."""
        self.scale_P.mul_(factor)


def num_blocks(sizes: Sequence[int]) -> int:
    """Number of blocks of parameters of these sizes."""
    return sum(-(-n // BLOCK) for n in sizes)
