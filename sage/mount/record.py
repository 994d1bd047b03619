"""Run folder of a user's own script, which `sage report` compares with others."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from sage import storage
from sage.comm.ledger import Ledger
from sage.mount.reduction_seconds import ReductionSeconds, fields_of_sum
from sage.records.manifest import manifest
from sage.records.record import Recorder

KEPT = 50_000
"""Maximum number of steps stored individually; beyond it, every second stored step is dropped."""
WARM_UP = 0.1
"""Share of the first steps (at most ten) excluded from step times, as in `sage run`."""


class StepLog:
    """Duration and traffic of a mount's steps, in bounded memory."""

    def __init__(self) -> None:
        self._steps: list[dict[str, Any]] = []
        self._every = 1
        self._last = time.perf_counter()
        self.count = 0
        self.seconds = 0.0
        self.payload: Counter[str] = Counter()
        self.wire_sent = 0
        self.wire_received = 0
        self.in_node: Counter[str] = Counter()
        """Bytes of the collectives within a node, by the name of their field; empty without two levels."""
        self.density = 0.0
        """Sum over steps of the achieved density."""
        self._folders: dict[Path, RunFolder] = {}

    def add(
        self,
        ledger: Ledger,
        density: float,
        reports: Sequence[tuple[int, Mapping[str, float]]] = (),
        spent: Sequence[ReductionSeconds | None] = (),
    ) -> None:
        """Add one step.

        Args:
            ledger: The ledger of this step.
            density: Achieved density of the step.
            reports: Number of elements of each flat gradient, and its reducer's report.
            spent: The seconds of each one's reduction.
        """
        report: Mapping[str, float] = reports[0][1] if len(reports) == 1 else {}
        if len(reports) > 1 and all("density_asked" in scalars for _, scalars in reports):
            target = sum(size * scalars["density_asked"] for size, scalars in reports)
            report = {"density_asked": target / max(1, sum(size for size, _ in reports))}
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self.seconds += seconds
        self.payload.update(ledger.payload)
        self.wire_sent += ledger.sent
        self.wire_received += ledger.received
        in_node = {
            "wire_sent_in_node": ledger.sent_in_node,
            "wire_received_in_node": ledger.received_in_node,
        }
        in_node = in_node if any(in_node.values()) else {}
        self.in_node.update(in_node)
        self.density += density
        if self.count % self._every == 0:
            self._steps.append(
                {
                    "step": self.count,
                    "epoch": 0,
                    "density_asked": None,
                    "density_had": density,
                    **report,
                    "seconds": seconds,
                    **fields_of_sum(spent),
                    "bytes": dict(ledger.payload),
                    "wire_sent": ledger.sent,
                    "wire_received": ledger.received,
                    **in_node,
                }
            )
        self.count += 1
        if len(self._steps) > KEPT:
            self._steps = self._steps[::2]
            self._every *= 2

    def since(self, step: int) -> list[dict[str, Any]]:
        """Stored records of the steps from this one on."""
        return [record for record in self._steps if record["step"] >= step]

    def record(
        self,
        folder: Path,
        config: Mapping[str, Any],
        metrics: Mapping[str, float],
        *,
        metric: str | None,
        better: str | None,
        parameters: int,
        memory: Mapping[str, int],
        is_writer: bool,
    ) -> None:
        """Write the steps since the last call, and the metrics as an evaluation, to a run folder.

        Args:
            folder: Path of the run folder; created by the first call.
            config: Description of the run.
            metrics: Measured values by name.
            metric: Name of the headline metric; None: the first one.
            better: `max` or `min`; None: `min` if the name contains loss, error or perplexity.
            parameters: Number of elements that are reduced.
            memory: `state_bytes` and `peak_bytes` of this rank, if known.
            is_writer: Whether this rank writes; the others only check the arguments.

        Raises:
            ValueError: if no metric is given, or the folder was written by `sage run`.
            OSError: if the folder cannot be written.
        """
        if not metrics:
            raise ValueError(
                'record needs at least one metric by name, as in mount.record("runs/mine", accuracy=0.9)'
            )
        headline = metric or next(iter(metrics))
        if headline not in metrics:
            raise ValueError(f"metric={headline!r} was not given; allowed are {', '.join(metrics)}")
        if not is_writer:
            return
        if folder not in self._folders:
            self._folders[folder] = RunFolder(folder, config)
        falls = any(word in headline.lower() for word in ("loss", "error", "perplexity"))
        better = better or ("min" if falls else "max")
        self._folders[folder].write(self, metrics, headline, better, {"parameters": parameters, **memory})

    def result(self) -> dict[str, Any]:
        """The measured values of `result.json`."""
        seconds_S = numpy.array([record["seconds"] for record in self._steps])
        seconds_S = seconds_S[min(10, int(WARM_UP * len(seconds_S))) :]
        quantiles = numpy.percentile(seconds_S, (50, 95, 99)).tolist() if len(seconds_S) else [None] * 3
        targets = [record["density_asked"] for record in self._steps if record["density_asked"] is not None]
        steps = max(1, self.count)
        return {
            "steps": self.count,
            "seconds": self.seconds,
            "steps_per_second": 1 / float(seconds_S.mean()) if len(seconds_S) else None,
            "step_seconds": dict(zip(("p50", "p95", "p99"), quantiles, strict=True)),
            "payload_per_step": {kind: size / steps for kind, size in self.payload.items()},
            "wire_sent_per_step": self.wire_sent / steps,
            "wire_received_per_step": self.wire_received / steps,
            **{f"{name}_per_step": total / steps for name, total in self.in_node.items()},
            "density_asked": float(numpy.mean(targets)) if targets else None,
            "density_had": self.density / steps,
        }


class RunFolder:
    """A run folder that a mount writes, on rank 0 only.

    Args:
        folder: Path; an earlier record of a mount there is replaced.
        config: Description of the run, as in `config.json`.

    Raises:
        ValueError: if `sage run` has written the folder, or it has other records.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder, self._config = folder, dict(config)
        self._written = 0
        self._best: float | None = None
        try:
            if storage.read_json(folder / "config.json", storage.CONFIG).get("task") != "own":
                raise ValueError(f"{folder} is the folder of a `sage run`: choose another folder")
        except FileNotFoundError:
            if (folder / "metrics.jsonl").exists():
                raise ValueError(f"{folder} has other records: choose another folder") from None
        self._recorder = Recorder(folder)
        self._recorder.rewind(0)
        storage.write_json(folder / "config.json", self._config, storage.CONFIG)
        storage.write_json(folder / "manifest.json", manifest(self._config, {}), storage.MANIFEST)

    def write(
        self,
        log: StepLog,
        metrics: Mapping[str, float],
        metric: str,
        better: str,
        sizes: Mapping[str, int],
    ) -> None:
        """Add the steps since the last call and an evaluation, and update `result.json`.

        Args:
            sizes: `parameters`, and the bytes of memory.
        """
        for step in log.since(self._written):
            self._recorder.step(**step)
        self._written = log.count
        measured = {name: float(value) for name, value in metrics.items()}
        loss = measured.get("train_loss", measured.get("loss", float("nan")))
        self._recorder.epoch(
            epoch=float(log.count), step=log.count, train_loss=loss, metrics=measured, seconds=0.0
        )
        value = measured[metric]
        if not math.isnan(value):
            best = max if better == "max" else min
            self._best = value if self._best is None else best(self._best, value)
        result = {
            "workload": self._config["workload"],
            "reducer": self._config["reducer"],
            "reducer_options": self._config["reducer_options"],
            "world_size": self._config["world_size"],
            "seed": self._config["seed"],
            **sizes,
            "epochs": float(log.count),
            "metric": metric,
            "better": better,
            "final": measured,
            "best": self._best,
            **log.result(),
        }
        storage.write_json(self.folder / "result.json", result, storage.RESULT)
