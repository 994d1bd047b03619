"""The time of a reduction on this rank: encoding and decoding, without its collectives."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sage.comm.wire import Wire


@dataclass(frozen=True)
class ReductionSeconds:
    """Seconds of one reduction on a CPU."""

    encode: float
    """Seconds until the last collective, without the time in collectives."""
    decode: float
    """Seconds after the last collective: decoding all ranks' payloads into the mean."""


def seconds_since(start: float, waited: float, wire: Wire) -> ReductionSeconds:
    """Return the time of a reduction that ends now. Without a collective, all of it is encoding.

    Args:
        start: When it started (`time.perf_counter`).
        waited: The ledger's seconds at that time.
        wire: The communicator that it used.
    """
    now = time.perf_counter()
    end = wire.last_end if wire.last_end >= start else now
    return ReductionSeconds(max(0.0, end - start - (wire.ledger.seconds - waited)), now - end)


def fields_of_sum(reductions: Sequence[ReductionSeconds | None]) -> dict[str, float]:
    """Return fields of a step in `metrics.jsonl`, sums over its reductions; empty if one was not timed."""
    timed = [seconds for seconds in reductions if seconds is not None]
    if not timed or len(timed) < len(reductions):
        return {}
    encode, decode = (sum(times) for times in zip(*((r.encode, r.decode) for r in timed), strict=True))
    return {"encode_seconds": encode, "decode_seconds": decode}
