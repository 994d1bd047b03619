"""The simulated exchanges of requantising_ring.py: who is added, and how often a share is encoded."""
# N = elements of the vector

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reduction.quantise import Parts, Quantiser

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import requantising_ring

ROOT = Path(__file__).parents[2]
N = 50


class Lossless(Quantiser):
    """Sends the values as they are, and counts the elements that are encoded."""

    num = 0

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        self.num += x_N.numel()
        return {"values": x_N}

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        return parts["values"]


@pytest.mark.parametrize(("name", "codes"), [("ring", 4), ("two-way", 4), ("gather", 4)])
def test_the_mean_has_every_rank_once_and_each_element_is_encoded_w_times(name: str, codes: int) -> None:
    grads = [torch.randn(N, generator=torch.Generator().manual_seed(rank)) for rank in range(4)]
    quantiser = Lossless()
    exchange = requantising_ring.EXCHANGES[name]
    (mean_N,) = simulate(1, lambda wire: exchange(quantiser, grads, wire))
    torch.testing.assert_close(mean_N, torch.stack(grads).mean(0))
    assert quantiser.num == codes * N


def test_in_a_ring_the_error_grows_with_the_number_of_ranks() -> None:
    grads = [torch.randn(4096, generator=torch.Generator().manual_seed(rank)) for rank in range(16)]
    few, many = (requantising_ring.error("mxfp8", requantising_ring.ring, [grads[:w]]) for w in (2, 16))
    once = requantising_ring.error("mxfp8", requantising_ring.gather, [grads])
    assert many > 1.5 * few
    assert many > 3 * once


def test_the_table_of_the_page_has_the_measured_figures() -> None:
    rows = list(
        csv.DictReader((ROOT / "benchmarks/results/requantising_ring.csv").read_text("utf-8").splitlines())
    )
    vnmse = {(row["format"], row["exchange"], row["ranks"]): float(row["vnmse"]) for row in rows}
    page = (ROOT / "docs/explanation/requantising.md").read_text("utf-8")
    columns = [*(("ring", ranks) for ranks in ("2", "4", "8", "16")), ("two-way", "16"), ("gather", "16")]
    for spec in requantising_ring.FORMATS:
        cells = [f"{vnmse[spec, *column]:.2g}" for column in columns]
        assert f"| `{spec}` | {' | '.join(cells)} |" in page
