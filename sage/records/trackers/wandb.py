"""Weights & Biases, by its package wandb (extra `wandb`).

Where it cannot log in, it writes files that `wandb sync` sends later. The variables of wandb count:
WANDB_MODE, WANDB_API_KEY, WANDB_ENTITY, WANDB_PROJECT (default here: sage) and others.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sage.records.flat import flat
from sage.records.tracking import Start

PACKAGES = ("wandb",)

INIT_SECONDS = 10
"""Seconds to wait for the server when the run starts."""


class Wandb:
    """A run of Weights & Biases; a run that resumes continues it."""

    def __init__(self, start: Start) -> None:
        self._wandb: Any = importlib.import_module("wandb")
        self._run = self._init(start)
        self.id = str(self._run.id)

    def _init(self, start: Start) -> Any:
        options = {
            "project": os.environ.get("WANDB_PROJECT") or "sage",
            "group": start.config["workload"],
            "tags": [str(start.config["reducer"])],
            "name": start.name,
            "id": start.earlier,
            "resume": "allow",
            "config": dict(start.config),
            "dir": str(start.folder),
            # The process of the tracker has no figures of its own to send.
            "settings": self._wandb.Settings(
                console="off",
                disable_git=True,
                init_timeout=INIT_SECONDS,
                save_code=False,
                x_disable_stats=True,
            ),
        }
        try:
            return self._wandb.init(**options)
        except (self._wandb.Error, OSError) as error:  # no network, no key, or no access to the project
            if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
                raise
            run = self._wandb.init(**options, mode="offline")
            folder = Path(run.dir).parent
            start.note(f"cannot send: {error} It writes files instead, for `wandb sync {folder}`")
            return run

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log figures; wandb ignores a step that it has already."""
        self._run.log(dict(values), step=step)

    def histogram(self, name: str, counts: Sequence[int], edges: Sequence[float], step: int) -> None:
        """Log a histogram."""
        self._run.log({name: self._wandb.Histogram(np_histogram=(list(counts), list(edges)))}, step=step)

    def result(self, result: Mapping[str, Any]) -> None:
        """Add the figures of the result to the summary: `final/NAME`, and `result/NAME` for the others."""
        others = {name: value for name, value in result.items() if name != "final"}
        figures = {f"result/{name}": value for name, value in flat(others).items()}
        figures |= {f"final/{name}": value for name, value in result["final"].items()}
        self._run.summary.update(figures)

    def close(self, *, is_finished: bool) -> None:
        """Finish the run; one that is not finished is shown as failed, and may resume."""
        self._run.finish(exit_code=0 if is_finished else 1)


TRACKER = Wandb
