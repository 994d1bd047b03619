"""The states of runs as a table on a terminal, drawn by rich."""

import time

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from sage.jobs.state import Word
from sage.jobs.status_view import REFRESH, TITLES, StatusView

COLORS: dict[Word, str] = {
    "running": "cyan",
    "failed": "red",
    "damaged": "red",
    "unknown": "magenta",
    "pending": "yellow",
    "missing": "dim",
    "finished": "green",
}
"""The states' colors, in the order in which runs are shown when there are too many."""


def show(view: StatusView, *, once: bool) -> None:
    """Print the table once, or update it in place until no run is active."""
    console = Console(highlight=False)
    if once:
        console.print(table(view, len(view.labels)))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(table(view, max(1, console.height - 6)), refresh=True)
            if not view.is_active:
                return
            time.sleep(min(view.queue.seconds, REFRESH))
            view.update()


def table(view: StatusView, most: int) -> Table:
    """The runs as a rich table; of more than `most` runs, those that come first in COLORS."""
    shown = list(view.states.items())
    if len(shown) > most:
        shown = sorted(shown, key=lambda row: list(COLORS).index(row[1].word))[:most]
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for title in TITLES:
        drawn.add_column(title, no_wrap=True)
    for name, state in shown:
        word = f"[{COLORS[state.word]}]{state.word}"
        # Names and messages may contain rich's markup.
        first = map(escape, (name, view.labels[name], state.job))
        rest = map(escape, (state.step, state.metric, str(state.requeued or ""), state.why))
        drawn.add_row(*first, word, *rest)
    if len(shown) < len(view.states):
        drawn.add_row(f"and {len(view.states) - len(shown)} more")
    return drawn
