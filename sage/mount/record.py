"""A run folder of a script's own, which `sage report` compares with others."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from sage import storage
from sage.comm.ledger import Ledger
from sage.records.manifest import manifest
from sage.records.record import Recorder

KEPT = 50_000
"""At most so many steps are kept one by one; beyond, every second one is dropped, and so on."""
WARM_UP = 0.1
"""Share of the first steps (at most ten) that step times leave out, as `sage run` does."""


class StepLog:
    """What each step of a mount took and sent, in bounded memory."""

    def __init__(self) -> None:
        self._steps: list[dict[str, Any]] = []
        self._every = 1
        self._last = time.perf_counter()
        self.count = 0
        self.seconds = 0.0
        self.payload: Counter[str] = Counter()
        self.wire_sent = 0
        self.wire_received = 0
        self.density = 0.0
        """The sum over steps of the density that each step had."""

    def add(
        self, booked: Ledger, density: float, reports: Sequence[tuple[int, Mapping[str, float]]] = ()
    ) -> None:
        """Count one step, by what the ledger has booked in it.

        Args:
            booked: In this step.
            density: That the step had.
            reports: The elements of each flat gradient, and what its reducer reports.
        """
        report: Mapping[str, float] = reports[0][1] if len(reports) == 1 else {}
        if len(reports) > 1 and all("density_asked" in told for _, told in reports):
            asked = sum(size * told["density_asked"] for size, told in reports)
            report = {"density_asked": asked / max(1, sum(size for size, _ in reports))}
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self.seconds += seconds
        self.payload.update(booked.payload)
        self.wire_sent += booked.sent
        self.wire_received += booked.received
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
                    "bytes": dict(booked.payload),
                    "wire_sent": booked.sent,
                    "wire_received": booked.received,
                }
            )
        self.count += 1
        if len(self._steps) > KEPT:
            self._steps = self._steps[::2]
            self._every *= 2

    def since(self, step: int) -> list[dict[str, Any]]:
        """The records of the steps from this one on that were kept."""
        return [each for each in self._steps if each["step"] >= step]

    def result(self) -> dict[str, Any]:
        """The measured figures of `result.json`."""
        seconds_S = numpy.array([each["seconds"] for each in self._steps])
        seconds_S = seconds_S[min(10, int(WARM_UP * len(seconds_S))) :]
        quantiles = numpy.percentile(seconds_S, (50, 95, 99)).tolist() if len(seconds_S) else [None] * 3
        asked = [each["density_asked"] for each in self._steps if each["density_asked"] is not None]
        steps = max(1, self.count)
        return {
            "steps": self.count,
            "seconds": self.seconds,
            "steps_per_second": 1 / float(seconds_S.mean()) if len(seconds_S) else None,
            "step_seconds": dict(zip(("p50", "p95", "p99"), quantiles, strict=True)),
            "payload_per_step": {kind: size / steps for kind, size in self.payload.items()},
            "wire_sent_per_step": self.wire_sent / steps,
            "wire_received_per_step": self.wire_received / steps,
            "density_asked": float(numpy.mean(asked)) if asked else None,
            "density_had": self.density / steps,
        }


class RunFolder:
    """A run folder that a mount writes, on rank 0 alone.

    Args:
        folder: Where; an earlier record of a mount there is replaced.
        config: What the run is, as `config.json` says it.

    Raises:
        ValueError: where `sage run` has written the folder.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder, self._config = folder, dict(config)
        self._written = 0
        self._best: float | None = None
        try:
            if "mount" not in storage.read_json(folder / "config.json", storage.CONFIG):
                raise ValueError(f"{folder} is the folder of a `sage run`: give mount.record another")
        except FileNotFoundError:
            if (folder / "metrics.jsonl").exists():
                raise ValueError(f"{folder} holds the records of something else: give another") from None
        self._recorder = Recorder(folder)
        self._recorder.rewind(0)
        storage.write_json(folder / "config.json", self._config, storage.CONFIG)
        storage.write_json(folder / "manifest.json", manifest(self._config, {}), storage.MANIFEST)

    def write(
        self, log: StepLog, metrics: Mapping[str, float], metric: str, better: str, parameters: int
    ) -> None:
        """Add the steps since the last call and an evaluation, and bring `result.json` up to date."""
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
            "parameters": parameters,
            "epochs": float(log.count),
            "metric": metric,
            "better": better,
            "final": measured,
            "best": self._best,
            **log.result(),
        }
        storage.write_json(self.folder / "result.json", result, storage.RESULT)
