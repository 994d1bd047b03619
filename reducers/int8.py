"""int8: 8-bit integers with a scale per block, by a two-way all-reduce (common practice, no single paper)."""
# N = elements of the vector, P = blocks

from collections.abc import Mapping, Sequence

from torch import Tensor

from sage.reduction import LevelQuantiser, Parts, Reduced, Wire, ops, payload_two_way, reduce_two_way


class Int8(LevelQuantiser):
    """Each element becomes the nearest multiple of s/127, where s is the largest magnitude in its block.

    Block-wise scaling to 127 is common practice; this form follows no single paper. Every rank reduces 1/W of
    the vector, where W is the number of ranks: it receives all ranks' codes of that share and sends a code of
    their mean (`sage.reduction.two_way`). With a residual, the errors of both codes are fed back.

    Payload bytes per rank: W + 1 times the code of a share. A code takes 1 byte per element (`values`) and 4
    bytes per block (`scales`); each share and each group begins a new block.

    Args:
        block: Number of elements that share a scale, 1 or more.

    Raises:
        ValueError: if `block` is below 1.
    """

    grouping = "model"

    def __init__(self, *, block: int = 256) -> None:
        super().__init__()
        if block < 1:
            raise ValueError(f"block={block!r}: expected 1 element or more")
        self.coding = ops.Coding(ops.Codec.INT8, bucket=block)

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        codes_N, scale_P = ops.quantise(grad_N, residual_N, sizes, self.coding)
        return {"values": codes_N, "scales": scale_P}

    def compress_signal(self, signal_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        codes_N, scale_P = ops.quantise(None, signal_N, sizes, self.coding)
        return {"values": codes_N, "scales": scale_P}

    def compress_mean(
        self,
        grad_N: Tensor,
        residual_N: Tensor | None,
        rows: Mapping[str, Tensor],
        sizes: Sequence[int],
        wire: Wire,
        *,
        out: Parts,
    ) -> Parts:
        if residual_N is None:
            return super().compress_mean(grad_N, None, rows, sizes, wire, out=out)
        codes_WN, scale_WP = rows["values"], rows["scales"]
        ops.quantise_mean(
            grad_N,
            residual_N,
            codes_WN,
            scale_WP,
            sizes,
            self.coding,
            divisor=1 + len(codes_WN),
            out=(out["values"], out["scales"]),
        )
        return out

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": sum(sizes), "scales": 4 * self.coding.num_buckets(sizes)}

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        return reduce_two_way(self, grad_N, residual_N, self.sizes, wire)

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return payload_two_way(self, self.sizes, len(counts))


REDUCER = Int8
