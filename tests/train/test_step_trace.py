"""`--trace` writes the phases and collectives of some steps for each rank, and changes nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mounted_runs import SEVERAL, processes, step, training, weights

from sage.comm.wire import Wire
from sage.timing import Spans, phase

COLLECTIVES = ("sum", "gather")


def spans(path: Path) -> list[dict[str, Any]]:
    """Return the spans of a trace, each with the name of its row."""
    events = json.loads(path.read_text())["traceEvents"]
    rows = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    return [{**e, "row": rows[e["tid"]]} for e in events if e["ph"] == "X"]


def is_inside(inner: dict[str, Any], outer: dict[str, Any]) -> bool:
    """Whether a span lies within another, to a microsecond."""
    return outer["ts"] - 1 <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 1


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, {"step"}),
        (SEVERAL, {"step", "reduction"}),
        ({"reducer": "exact", **SEVERAL}, {"step", "all-reduce 0", "all-reduce 1"}),
    ],
    ids=["whole", "ddp", "ddp exact"],
)
def test_a_trace_has_every_phase_and_collective_of_its_steps(
    tmp_path: Path, options: dict[str, Any], rows: set[str]
) -> None:
    def work(wire: Wire) -> tuple[list[int], bool]:
        run = training(wire, tmp_path, trace=2, **options)
        calls = []
        for _ in range(4):
            before = sum(wire.ledger.calls[name] for name in COLLECTIVES)
            step(run, 1)
            calls.append(sum(wire.ledger.calls[name] for name in COLLECTIVES) - before)
        plain = step(training(wire, tmp_path / "plain", **options), 4)
        same = all(torch.equal(a, b) for a, b in zip(weights(run), weights(plain), strict=True))
        return calls, same

    results = processes(2, work)
    assert not (tmp_path / "plain").exists()
    for rank, (calls, same) in enumerate(results):
        assert same
        found = spans(tmp_path / f"trace-{rank:04d}.json")
        steps = [each for each in found if each["name"].startswith("step ")]
        assert [each["name"] for each in steps] == ["step 1", "step 2"]
        assert {each["row"] for each in found} == rows
        assert all(any(is_inside(each, outer) for outer in steps) for each in found)
        names = [each["name"] for each in found]
        assert names.count("forward") == names.count("backward") == names.count("update") == 2
        assert names.count("wait") == (2 if options else 0)
        assert sum(name.startswith(COLLECTIVES) for name in names) == calls[1] + calls[2]


def test_a_run_that_ends_early_writes_what_it_has(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        run = step(training(wire, tmp_path, trace=10), 2)
        assert not (tmp_path / "trace-0000.json").exists()
        run.trace.finish()

    processes(1, work)
    assert [each["name"] for each in spans(tmp_path / "trace-0000.json")][0] == "step 1"


def test_spans_of_a_thread_that_is_not_traced_are_not_recorded() -> None:
    found = Spans(torch.device("cpu"))
    with phase("before"):
        pass
    with found.running("row"), phase("communicate", "sum(...)"), phase("inner"):
        pass
    with phase("after"):
        pass
    assert [(each.thread, each.name) for each in found.found] == [("row", "inner"), ("row", "sum(...)")]
