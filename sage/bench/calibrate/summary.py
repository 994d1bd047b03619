"""The tables that `sage calibrate` prints."""

import statistics
from collections.abc import Iterable, Sequence

from sage import registry
from sage.output.units import MISSING, duration, size
from sage.predict.calibration import Calibration, MethodTimes, Samples


def summary(calibration: Calibration) -> str:
    """Return Markdown tables of the links, the model and the reducers; times are medians."""
    model = calibration.model
    times = {
        "forward": duration(statistics.median(model.forward_seconds)),
        "backward": duration(statistics.median(model.backward_seconds)),
        "first gradient": duration(model.parameters[0].ready_seconds),
        "rest of the step": duration(statistics.median(model.optimizer_seconds)),
        "backward during communication": f"{statistics.median(model.gamma):.2f} times",
    }
    w = calibration.world_size
    parts = [
        f"{model.workload}: {model.numel:,} parameters, batches of {model.batch_size}, {w} ranks, up to "
        f"{calibration.ranks_per_node} on a node.\n",
        _table(times.keys(), [times.values()]),
        _table(
            ("collective", "scope", "ranks", "sizes", "smallest", "time", "largest", "time"),
            [_link(group) for group in _groups(calibration.links)],
        ),
        _table(
            ("reducer", "density", "encode", f"decode {w}", f"collectives at {w}", f"bytes at {w}"),
            [_method(method, w) for method in calibration.methods],
        ),
    ]
    return "\n".join(parts)


def _groups(links: Sequence[Samples]) -> list[list[Samples]]:
    groups: dict[tuple[str, str], list[Samples]] = {}
    for samples in links:
        groups.setdefault((samples.scope, samples.collective), []).append(samples)
    return list(groups.values())


def _link(group: Sequence[Samples]) -> list[str]:
    first, last = group[0], group[-1]
    ends = [(size(samples.bytes), duration(statistics.median(samples.seconds))) for samples in (first, last)]
    return [first.collective, first.scope, str(first.ranks), str(len(group)), *ends[0], *ends[1]]


def _method(method: MethodTimes, world_size: int) -> list[str]:
    messages = method.messages[world_size]
    return [
        f"`{registry.short(method.reducer)}`",
        MISSING if method.density is None else f"{method.density:.3g}",
        duration(statistics.median(method.encode_seconds)),
        duration(statistics.median(method.decode_seconds[world_size])),
        ", ".join(message.collective for message in messages) or MISSING,
        size(sum(message.bytes for message in messages)),
    ]


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(titles), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
