"""Bandwidths of a run's reductions in the sense of nccl-tests, and the bits that it sends of an element.

    algbw = S / t        busbw = algbw · 2(W − 1)/W        S = 4·N bytes

S is the dense gradient in float32, whatever a method sends of it, and t the time of a whole reduction on rank
0: encoding, collectives and decoding. So algbw is the rate at which the gradient is averaged, and busbw what
a ring all-reduce of the dense gradient would have to achieve on a link to be as fast. (The names and the
factor are those of nccl-tests, doc/PERFORMANCE.md, where t is the time of the collective alone.)
"""
# N = elements of the gradient, S = bytes of it, W = ranks

from sage.report.run_summary import Figures
from sage.report.runs import Run
from sage.report.steps import median


def bandwidths(run: Run) -> dict[str, float | None]:
    """Return `reduction_seconds_p50` and the two bandwidths in bytes per second, each None if not known.

    The time is the median over the steps. It is known where a reduction does not overlap with backward, as
    with `--mount whole`, and on a CPU.
    """
    names = ("reduction_seconds_p50", "algbw_bytes_per_second", "busbw_bytes_per_second")
    is_apart = run.config.get("mount", "whole") == "whole"
    seconds = median(run.steps.reduction_seconds) if is_apart else None
    numel, world_size = run.figures.parameters, run.config["world_size"]
    if not seconds or numel is None:
        return dict.fromkeys(names)
    algbw = 4 * numel / seconds
    return dict(zip(names, (seconds, algbw, algbw * 2 * (world_size - 1) / world_size), strict=True))


def bits_per_element(figures: Figures) -> float | None:
    """Payload bits of a rank in a step for each element of the gradient; None if not recorded."""
    payload, numel = figures.payload_bytes, figures.parameters
    return None if payload is None or numel is None else 8 * payload / numel
