"""Tests of the link probe: equal results on every rank, every byte in the ledger, and bounded time."""
# W = world size

from typing import Any

import pytest
from gloo import processes

from sage.comm import probe as module
from sage.comm.ledger import ring_all_gather, ring_all_reduce
from sage.comm.probe import FIRST, KIND, LATENCIES, MOST, probe
from sage.comm.threads import simulate
from sage.comm.wire import Wire

TIMES = 8  # bytes of the time that each rank sends after each all-reduce


def test_all_ranks_get_the_same_measurement_and_the_ledger_has_every_byte() -> None:
    def work(wire: Wire) -> tuple[Any, ...]:
        sizes: list[int] = []
        sum_ = wire.sum

        def noted(x_N: Any, kind: str = "values") -> Any:
            sizes.append(4 * x_N.numel())
            return sum_(x_N, kind)

        setattr(wire, "sum", noted)  # noqa: B010
        return probe(wire), sizes, wire.ledger

    results = processes(3, work)
    assert len({repr((found, sizes)) for found, sizes, _ in results}) == 1
    for found, sizes, ledger in results:
        assert ledger.payload == {KIND: sum(sizes) + TIMES * len(sizes)}
        calls = [ring_all_reduce(size, 3) for size in sizes] + [ring_all_gather(TIMES, 3)] * len(sizes)
        assert (ledger.sent, ledger.received) == tuple(map(sum, zip(*calls, strict=True)))
        assert found["alpha_seconds"] > 0
        assert found["bits_per_second"] > 0
        assert found["largest_bytes"] == max(sizes) == sizes[-1]
        assert found["repeats"] == sizes.count(max(sizes))


def test_one_rank_has_no_links() -> None:
    assert simulate(1, lambda wire: (probe(wire), wire.ledger.payload)) == [(None, {})]


def modelled(monkeypatch: pytest.MonkeyPatch, bits: float, alpha: float, burst: int, budget: float) -> Any:
    """Probe a wire of four ranks with a modelled clock: links of a given rate after a burst."""

    def timed(_: Any, x_N: Any) -> float:
        carried, _ = ring_all_reduce(4 * x_N.numel(), 4)
        return 6 * alpha + 8 * max(0, carried - burst) / bits

    monkeypatch.setattr(module._Bench, "_timed", timed)
    return simulate(4, lambda wire: probe(wire, budget))[0]


@pytest.mark.parametrize("bits", [1e6, 1e7, 1e8, 1e9, 1e10, 1e12])
def test_bursts_do_not_increase_the_measured_bandwidth_and_the_budget_is_kept(
    monkeypatch: pytest.MonkeyPatch, bits: float
) -> None:
    burst = min(max(int(bits / 800), 32_000), 256_000)
    found = modelled(monkeypatch, bits, alpha=1e-5, burst=burst, budget=1.0)
    assert found["seconds"] < 1.0
    assert found["bits_per_second"] == pytest.approx(bits, rel=0.5 if bits < 1e7 else 0.15)
    assert found["alpha_seconds"] == pytest.approx(1e-5)


def test_a_measurement_that_takes_too_long_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    found = modelled(monkeypatch, 1e5, alpha=0.0, burst=0, budget=1.0)
    assert (found["largest_bytes"], found["repeats"], found["spread"]) == (FIRST, 1, 0.0)
    assert found["bits_per_second"] == pytest.approx(1e5)
    slow_start = modelled(monkeypatch, 1e12, alpha=1.0 / 6, burst=0, budget=0.5)
    assert slow_start["seconds"] == pytest.approx(1.0 * (LATENCIES + 2), rel=0.01)


def test_a_fast_link_gets_the_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert modelled(monkeypatch, 1e12, alpha=1e-6, burst=0, budget=1.0)["largest_bytes"] == MOST
