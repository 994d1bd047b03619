"""MLflow, by its package mlflow-skinny or mlflow (extra `mlflow`).

Without MLFLOW_TRACKING_URI, runs are in the file store `mlruns` beside the run folders. MLflow's other
variables count too, such as MLFLOW_EXPERIMENT_NAME, whose default here is sage.
"""

import importlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sage.records.flat import flat
from sage.records.tracking import Start
from sage.storage.lock import locked

PACKAGES = ("mlflow",)

BATCH = 1000
"""Most metrics of one request (MLflow's limit)."""

SECONDS = 2.0
"""Seconds between two requests."""

LOCK_SECONDS = 20.0
"""Seconds to wait for other runs that look for the experiment."""


class MLflow:
    """A run of MLflow; a run that resumes continues it."""

    def __init__(self, start: Start) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ["MLFLOW_TRACKING_URI"] = (start.runs / "mlruns").as_uri()
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = (
                "true"  # MLflow prefers a database, which needs more packages
            )
        mlflow: Any = importlib.import_module("mlflow")
        self._entities: Any = importlib.import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        self._metrics: list[Any] = []
        self._sent = time.monotonic()
        self._steps: dict[str, int] = {}
        if start.earlier:
            self.id = start.earlier
            self._client.update_run(self.id, status="RUNNING")
            latest = self._client.get_run(self.id).data.metrics
            self._steps = {tag: self._last_step(tag) for tag in latest}
            return
        run = self._client.create_run(
            self._experiment(start),
            run_name=start.name,
            tags={"workload": str(start.config["workload"]), "reducer": str(start.config["reducer"])},
        )
        self.id = run.info.run_id
        params = [self._entities.Param(name, str(value)) for name, value in start.config.items()]
        for first in range(0, len(params), 100):
            self._client.log_batch(self.id, params=params[first : first + 100])

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log figures, together with those of other steps; MLflow would keep a repeated step twice."""
        now = int(time.time() * 1000)
        self._metrics += [
            self._entities.Metric(tag, float(value), now, step)
            for tag, value in values.items()
            if step > self._steps.get(tag, -1)
        ]
        if time.monotonic() - self._sent > SECONDS or len(self._metrics) > BATCH:
            self._send()

    def histogram(self, name: str, counts: Sequence[int], edges: Sequence[float], step: int) -> None:
        """Store a histogram as a JSON file among the artefacts, because MLflow has no histograms."""
        content = {"counts": list(counts), "edges": list(edges), "step": step}
        self._client.log_dict(self.id, content, f"histograms/{name}/{step:08d}.json")

    def result(self, result: Mapping[str, Any]) -> None:
        """Store the result as the artefact `result.json`, and its final figures as metrics `final/NAME`."""
        self._client.log_dict(self.id, dict(result), "result.json")
        figures = {f"final/{name}": value for name, value in result["final"].items()}
        others = flat({name: value for name, value in result.items() if name != "final"})
        figures |= {
            f"result/{name}": value for name, value in others.items() if isinstance(value, int | float)
        }
        self.scalars({name: value for name, value in figures.items() if value is not None}, 0)

    def close(self, *, is_finished: bool) -> None:
        """Send what is left; a run that is not finished is shown as killed, and may resume."""
        self._send()
        self._client.set_terminated(self.id, "FINISHED" if is_finished else "KILLED")

    def _send(self) -> None:
        for first in range(0, len(self._metrics), BATCH):
            self._client.log_batch(self.id, metrics=self._metrics[first : first + BATCH])
        self._metrics.clear()
        self._sent = time.monotonic()

    def _last_step(self, tag: str) -> int:
        return max(each.step for each in self._client.get_metric_history(self.id, tag))

    def _experiment(self, start: Start) -> str:
        """Find or create the experiment; runs that start at the same time must not create it twice."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "sage"
        with locked(start.runs / ".mlflow.lock", wait=LOCK_SECONDS):
            found = self._client.get_experiment_by_name(name)
            return str(found.experiment_id if found else self._client.create_experiment(name))


TRACKER = MLflow
