"""The reasons why the times of two runs cannot be compared: other machines, torch versions or links."""

from collections.abc import Iterable
from statistics import median
from typing import Any

from sage.output.units import duration, printable, rate
from sage.report.runs import Run

BANDWIDTH_FACTOR, LATENCY_FACTOR = 1.25, 2.0
"""Ratios of the medians of two sets of link probes beyond which the links count as different. The probe of
one link varies: its bandwidth by some percent, its latency by tens of percent."""


def differences(pairs: Iterable[tuple[Run, Run]]) -> list[str]:
    """Return what differs between the machines of the paired runs, A's value first; [] if nothing does."""
    pairs = list(pairs)
    result = []
    for name, of in (("hosts", _hosts), ("hardware", _hardware), ("torch", _torch)):
        for a, b in pairs:
            if (ours := of(a)) != (theirs := of(b)):
                result.append(f"{name}: {ours} and {theirs}")
                break
    return [*result, *_links([a for a, _ in pairs], [b for _, b in pairs])]


def _hosts(run: Run) -> str:
    hosts = run.manifest.get("hosts") or [run.manifest["machine"]["hostname"]]
    return printable(", ".join(sorted(set(hosts))))


def _hardware(run: Run) -> str:
    machine = run.manifest["machine"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return printable(f"{machine['cpu']}, {machine['cores']} cores, {gpus}")


def _torch(run: Run) -> str:
    return printable(run.manifest["versions"].get("torch") or "unknown")


def _links(a: list[Run], b: list[Run]) -> list[str]:
    """Compare the bandwidths and latencies that the runs measured before training.

    They differ if the ranges of the two sets do not overlap, and their medians are beyond the factor.
    """
    result = []
    for key, name, factor, text in (
        ("bits_per_second", "bandwidth", BANDWIDTH_FACTOR, rate),
        ("alpha_seconds", "latency", LATENCY_FACTOR, duration),
    ):
        ours, theirs = _probes(a, key), _probes(b, key)
        if bool(ours) != bool(theirs):
            result.append(f"{name}: measured in {'A' if ours else 'B'} only")
        elif ours:
            one, other = median(ours), median(theirs)
            is_apart = min(ours) > max(theirs) or max(ours) < min(theirs)
            if is_apart and max(one, other) > factor * min(one, other):
                result.append(f"{name}: {text(one)} and {text(other)}")
    return result


def _probes(runs: Iterable[Run], key: str) -> list[float]:
    values: list[Any] = [
        links.get(key) for run in runs if isinstance(links := run.manifest.get("links"), dict)
    ]
    return [float(value) for value in values if isinstance(value, int | float) and 0 < value < float("inf")]
