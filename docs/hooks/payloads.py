"""A hook of mkdocs: measures the payload of each reducer in an example, when the site is built.

`<!-- payload: NAME -->` in a cell of a table is replaced by the bytes that the ledger counts for one step of
the reducer, so the table cannot differ from the code. The conformance suite compares the ledger with
`payload()`.
"""

import re
import sys
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from sage import registry  # noqa: E402
from sage.comm.ledger import KINDS  # noqa: E402
from sage.comm.threads import simulate  # noqa: E402
from sage.comm.wire import Wire  # noqa: E402
from sage.reduction.error_feedback import ErrorFeedback  # noqa: E402
from sage.reduction.layout import Layout  # noqa: E402

MARK = re.compile(r"<!-- payload: ([\w+-]+) -->")
WORLD_SIZE = 4
ROWS, COLUMNS = 400, 250
"""The example: one layer, a matrix of 100,000 elements with a normally distributed gradient."""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the marks of a page."""
    return MARK.sub(lambda found: shown(measured(found[1])), markdown)


@cache
def measured(name: str) -> dict[str, float]:
    """Payload bytes of the first step by kind, the mean over ranks, with the reducer's default options."""

    def work(wire: Wire) -> dict[str, int]:
        reducer = registry.load("reducers", name)()
        feedback = ErrorFeedback(reducer, Layout.of([("weight", (ROWS, COLUMNS))]), memory=reducer.memory)
        feedback.reducer.begin_epoch(0, 0.1, wire)
        generator = torch.Generator().manual_seed(wire.rank)
        samples_ZN = torch.randn(4, ROWS * COLUMNS, generator=generator)  # Z = samples of a batch
        if reducer.needs_squares:
            reducer.observe((samples_ZN / 4).square().sum(0))
        before = wire.ledger.copy()
        feedback(samples_ZN.mean(0), wire)
        return dict(wire.ledger.since(before).payload)

    by_rank = simulate(WORLD_SIZE, work)
    kinds = {kind for payload in by_rank for kind in payload if kind in KINDS}
    return {kind: sum(each.get(kind, 0) for each in by_rank) / WORLD_SIZE for kind in sorted(kinds)}


def shown(payload: dict[str, float]) -> str:
    """The total, its share of the dense gradient in fp32, and the bytes by kind.

    >>> shown({"indices": 4000, "values": 4000})
    '8,000 (2 %): indices 4,000, values 4,000'
    """
    total = sum(payload.values())
    kinds = ", ".join(f"{kind} {size:,.0f}" for kind, size in payload.items() if size)
    return f"{total:,.0f} ({100 * total / (4 * ROWS * COLUMNS):.3g} %): {kinds}"
