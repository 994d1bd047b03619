"""Variance-based: sends sums that are large relative to their variance, in 4 bits (Tsuzuku et al., 2018)."""
# N = elements of the flat vector, K = elements sent, L = layers

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from sage.reduction import Layout, Reduced, Sparsifier, Wire, ops, phase

INDEX_BITS = 28
"""Bits of an index with `values='4bit'`."""
LARGEST_STEP = 7
"""Number of powers of two below the layer's largest that are still sent."""
CHUNK = 1 << 17
"""Elements that are compared and encoded at a time, so that intermediate results stay in the cache."""
NOT_FINITE = 128
"""Exponent of a layer that is not finite: 2^128 is infinite in float32."""


class Variance(Sparsifier):
    """Send an element when its sum over time is large relative to its variance over samples.

    This is Algorithm 1 of the paper. With z the samples of this rank's batch of B, in every step

        r ← r + Σ_z ∇f_z/B,   v ← v + Σ_z (∇f_z/B)²;   where r² > α·v: send r and zero both;   else v ← ζ·v

    r is the residual. The engine computes Σ_z (∇f_z/B)² over parts of the batch or over single samples
    (`squares`). If it does not, for example under a mount that cannot, the rank's whole gradient counts as
    one sample. Without error feedback v is that of this step only; if it is not computed, everything is sent.

    As in the paper's section on quantisation, an element is sent as ±2^(e − d). Here e = ⌊log2 M⌋, M is the
    layer's largest |r|, and |r|, limited to 2^e, is rounded to the nearest power of two. An element with d >
    7 is not sent. Payload bytes per rank: 4 per element, of which 28 bits are the index, one the sign and
    three d (`values`); 2 per layer for e (`scales`); 16 for the lengths of these. With `values` of fp32 or
    fp16, payload bytes are those of any sparsifier with uneven counts. The paper discards the rounding error
    (`rounding=lost`); by default it stays in the residual, which is ours.

    Args:
        alpha: Factor α of the variance, above 0; 1 to 2 in the paper.
        zeta: Decay ζ of the variance per step, in (0, 1].
        values: Format of the values: `4bit` as above, or fp32 or fp16.
        rounding: With `4bit`, whether the rounding error (the whole value if d > 7) is `kept` in the residual
            or `lost`, as in the paper.
        squares: How the engine computes Σ_z (∇f_z/B)²: it `split`s batches, or takes each sample's gradient
            with torch.func (`per-sample`).
        sub_batches: With `split`, the number of parts of a batch, each of which counts as one sample; 1 or
            more.

    Raises:
        ValueError: if an option is out of range; in `bind`, if the vector is too long for `4bit` indices.
    """

    decides_by = "group"
    serves = False  # a mean has no squared gradients
    needs_squares = True
    rounds = True
    even = False
    grouping = "layer"
    variance_N: Tensor
    stop_L: Tensor

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        zeta: float = 0.999,
        values: Literal["4bit", "fp32", "fp16"] = "4bit",
        rounding: Literal["kept", "lost"] = "kept",
        squares: Literal["split", "per-sample"] = "split",
        sub_batches: int = 4,
    ) -> None:
        if values not in ("4bit", "fp32", "fp16"):
            raise ValueError(f"values={values!r}: expected 4bit, fp32 or fp16")
        super().__init__(values="fp32" if values == "4bit" else values)
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha={alpha!r}: expected a finite number above 0")
        if not 0 < zeta <= 1:
            raise ValueError(f"zeta={zeta!r}: expected a number above 0 and at most 1")
        if rounding not in ("kept", "lost"):
            raise ValueError(f"rounding={rounding!r}: expected kept or lost")
        if rounding == "lost" and values != "4bit":
            raise ValueError(f"rounding='lost' with values={values!r}: expected values='4bit'")
        if squares not in ("split", "per-sample"):
            raise ValueError(f"squares={squares!r}: expected split or per-sample")
        if sub_batches < 1:
            raise ValueError(f"sub_batches={sub_batches!r}: expected 1 part or more")
        self._alpha, self._zeta = alpha, zeta
        self._short = values == "4bit"
        self.conserves = rounding == "kept"
        self.sub_batches = None if squares == "per-sample" else sub_batches
        self._square_N: Tensor | None = None

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        if self._short and layout.numel > 1 << INDEX_BITS:
            raise ValueError(
                f"{layout.numel:,} elements in one vector; with values='4bit', indices of {INDEX_BITS} "
                f"bits, at most {1 << INDEX_BITS:,}: use values='fp32', or reduce the model in several parts"
            )
        self.register_buffer("variance_N", torch.zeros(layout.numel))
        stops = [span.stop for span in layout.spans]
        self.register_buffer("stop_L", torch.tensor(stops, dtype=torch.int64), persistent=False)

    def observe(self, square_N: Tensor) -> None:
        self._square_N = square_N

    def _above_variance(self, grad_N: Tensor, signal_N: Tensor, *, keep: bool) -> Iterator[Tensor]:
        """Indices where the signal exceeds its variance, by chunks; also decays v for the next step.

        Args:
            grad_N: This rank's gradient.
            signal_N: The signal.
            keep: Whether the signal is a residual.
        """
        square_N, self._square_N = self._square_N, None
        for start in range(0, grad_N.numel(), CHUNK):
            part = slice(start, start + CHUNK)
            signal, square = signal_N[part], None if square_N is None else square_N[part]
            if keep:
                variance = self.variance_N[part].add_(grad_N[part].square() if square is None else square)
            else:
                variance = torch.zeros_like(signal) if square is None else square
            known = signal.square() > self._alpha * variance
            # Elements that are not finite, or too large to be squared, are sent and leave the residual.
            known |= ~(signal.isfinite() & variance.isfinite())
            if keep:
                variance.mul_(self._zeta)
            yield known.nonzero().view(-1).add_(start)

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        signal_N = ops.accumulate(grad_N, residual_N)
        chunks = self._above_variance(grad_N, signal_N, keep=residual_N is not None)
        at_K = torch.cat([known_K.int() for known_K in chunks] or [self.stop_L[:0].int()])
        self.variance_N.index_fill_(0, at_K.long(), 0)
        return ops.take(signal_N, at_K, dtype=self.dtype, keep=residual_N is not None), at_K

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if not self._short:
            return super().forward(grad_N, residual_N, wire)
        with phase("select"):
            parts = self._compress(grad_N, residual_N)
        rows = wire.gather_streams(**parts)
        parts.clear()  # its memory is reused
        with phase("scatter"):
            counts = [len(word) for word, _ in rows]
            at_M = rows[0][0].new_empty(sum(counts))
            for (word, _), at in zip(rows, at_M.split(counts), strict=True):
                torch.bitwise_and(word, (1 << INDEX_BITS) - 1, out=at)
            self._scatter(rows, at_M.split(counts), grad_N)
        at_K = at_M.split(counts)[wire.rank]
        return Reduced(grad_N, at_K, sum(counts) / (len(counts) * max(1, grad_N.numel())), at_M)

    def _scatter(self, rows: Sequence[tuple[Tensor, ...]], indices: Sequence[Tensor], out_N: Tensor) -> None:
        """Write the mean of all ranks' codes to `out_N`.

        The values are decoded chunk by chunk of the vector, so that they are never all in memory.

        Args:
            rows: Codes and exponents of each rank.
            indices: Indices of the codes of each rank, ascending.
            out_N: The mean; overwritten.
        """
        starts = range(0, out_N.numel(), CHUNK)
        # The last chunk has all indices that are left, so that one outside of the vector is refused.
        edges = torch.tensor([*starts, 2**31 - 1], dtype=torch.int32, device=out_N.device)
        stops = [torch.searchsorted(at, edges).tolist() for at in indices]
        for number, start in enumerate(starts):
            parts = [slice(each[number], each[number + 1]) for each in stops]
            at = torch.cat([at[part] for at, part in zip(indices, parts, strict=True)]).sub_(start)
            x = [
                self.decode(word[part], exponents_L)[1]
                for (word, exponents_L), part in zip(rows, parts, strict=True)
            ]
            counts = [part.stop - part.start for part in parts]
            ops.scatter_mean(torch.cat(x), at, counts, out_N=out_N[start : start + CHUNK])

    def _compress(self, grad_N: Tensor, residual_N: Tensor | None) -> dict[str, Tensor]:
        """The parts of the signal to send; clears the elements sent in the residual and the variance."""
        signal_N = ops.accumulate(grad_N, residual_N)
        exponent_L = exponents(signal_N, [span.numel for span in self.layout.spans])
        words = [exponent_L[:0].int()]
        for known_K in self._above_variance(grad_N, signal_N, keep=residual_N is not None):
            at_K, word_K = self.encode(signal_N, known_K, exponent_L)
            words.append(word_K)
            gone_K = at_K if self.conserves else known_K
            self.variance_N.index_fill_(0, gone_K, 0)
            if residual_N is not None and self.conserves:
                left_K = residual_N[at_K] - self.decode(word_K, exponent_L)[1]
                residual_N[at_K] = left_K.nan_to_num_(0.0, 0.0, 0.0)
            elif residual_N is not None:
                residual_N.index_fill_(0, gone_K, 0)
        return {"values": torch.cat(words), "scales": exponent_L}

    def encode(self, signal_N: Tensor, at_K: Tensor, exponent_L: Tensor) -> tuple[Tensor, Tensor]:
        """Select the elements that 4 bits can represent and encode them.

        Args:
            signal_N: The signal.
            at_K: Indices of the candidates (int64, ascending).
            exponent_L: e of each layer (int16).

        Returns:
            Indices of the elements sent, and a code (int32) for each.
        """
        x_K = signal_N[at_K]
        mantissa_K, above_K = torch.frexp(x_K.abs())  # |x| = mantissa · 2^above, mantissa in [0.5, 1)
        nearest_K = above_K - (mantissa_K < 0.75).int()
        exponent_K = exponent_L.int()[self._layer_of(at_K)]
        step_K = (exponent_K - nearest_K).clamp_(min=0).masked_fill_(~x_K.isfinite(), 0).long()
        sent_K = step_K <= LARGEST_STEP
        code_K = (x_K < 0).long() << 3 | step_K
        at_K, code_K = at_K[sent_K], code_K[sent_K]
        return at_K, (at_K | code_K << INDEX_BITS).int()

    def decode(self, word_K: Tensor, exponent_L: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (int32, ascending) and values (float32) of these codes."""
        at_K = word_K.long() & (1 << INDEX_BITS) - 1
        code_K = word_K.long() >> INDEX_BITS & 0xF
        sign_K = 1 - 2 * (code_K >> 3).float()
        exponent_K = exponent_L.int()[self._layer_of(at_K)] - (code_K & LARGEST_STEP)
        return at_K.int(), torch.ldexp(sign_K, exponent_K)

    def _layer_of(self, at_K: Tensor) -> Tensor:
        return torch.searchsorted(self.stop_L, at_K, right=True, out_int32=True)

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if not self._short:
            return super().payload(counts, rank)
        return {"values": 4 * counts[rank], "scales": 2 * len(self.layout.spans), "sizes": 16}


def exponents(x_N: Tensor, sizes: list[int]) -> Tensor:
    """⌊log2 max |x|⌋ of each layer (int16)."""
    largest_L = ops.statistics(x_N, None, sizes, ops.Kind.LARGEST).largest_G.float()
    exponent_L = torch.frexp(largest_L).exponent - 1
    return exponent_L.masked_fill_(~largest_L.isfinite(), NOT_FINITE).short()


REDUCER = Variance
