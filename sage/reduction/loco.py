"""LoCo: what a 4-bit code loses, kept as a moving average in 8 bits (Xie et al., 2024).

https://arxiv.org/abs/2407.04480; in this form in DeepSpeed (`csrc/quantization/swizzled_quantize.cu`). With g
the gradient, Q the code and deq its value:

    h = g + e,   q = Q(h),   e ← β·e + (1 − β)·(h − deq(q))

With β = 0 this is error feedback as of 1-bit SGD. Every T steps e becomes 0.
"""
# N = elements of the vector

from dataclasses import dataclass

import torch
from torch import Tensor

from sage import ops


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
    """

    def __init__(self, block: int, *, beta: float, reset_every: int) -> None:
        self._coding = ops.Coding(ops.Codec.INT8, bucket=block)
        self._beta, self._reset_every = beta, reset_every
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
            ops.average(e_N, codes_1N, scale_1P, [e_N.numel()], self._coding, divisor=1)
        return e_N

    def update(self, h_N: Tensor, sent_N: Tensor, step: int) -> None:
        """Replace the error after h was sent as `sent_N`; where either is not finite, it becomes 0.

        Args:
            h_N: Gradient plus error (float32).
            sent_N: The values of its codes.
            step: Number of the step, from 1 on.
        """
        if step % self._reset_every == 0:
            self.kept = None
            return
        e_N = self.value(h_N).mul_(self._beta).add_(h_N - sent_N, alpha=1 - self._beta)
        e_N.nan_to_num_(0.0, 0.0, 0.0)
        self.kept = _Kept(*ops.quantise(e_N, None, [e_N.numel()], self._coding))

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
