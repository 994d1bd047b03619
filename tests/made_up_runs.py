"""Writes synthetic run folders for the tests of reports, and reads the reports."""

import json
import math
from pathlib import Path
from typing import Any

from sage.config import Config
from sage.records.manifest import manifest
from sage.records.record import recorder
from sage.report.groups import Group, grouped
from sage.report.runs import read_runs
from sage.storage import write_json


def pretend(
    runs: Path,
    reducer: str = "exact",
    *,
    steps: int = 40,
    steps_per_epoch: int = 10,
    stop: int | None = None,
    diverges: bool = False,
    profile: bool = False,
    miss: float = 1.1,
    workload: str = "digits",
    world_size: int = 4,
    seed: int = 0,
    seconds: float = 0.02,
    **options: Any,
) -> Path:
    """Write the files of a run without training: losses and times are artificial, traffic is consistent."""
    density = options.get("density", 1.0)
    config = Config(
        workload=workload,
        task="classify",
        model="resnet",
        data="digits",
        reducer=reducer,
        reducer_options=options,
        world_size=world_size,
        seed=seed,
        runs=runs,
        profile=profile,
    )
    folder = config.folder
    record = recorder(folder, rank=0)
    write_json(folder / "config.json", config.to_dict())
    write_json(folder / "manifest.json", manifest(config.to_dict(), {}))
    had = density if reducer == "exact" else miss * density
    values = int(1_000_000 * 4 * had)
    payload = {"values": values} | ({"indices": values} if reducer != "exact" else {})
    wire = (world_size - 1) * sum(payload.values()) if reducer != "exact" else int(1.5 * values)
    accuracies = []
    metrics: dict[str, float] = {}
    for step in range(steps if stop is None else stop):
        noise = 0.2 * math.sin(17 * step + seed)
        loss = math.inf if diverges and step > 12 else 2.3 * math.exp(-3 * step / steps) + 0.1 * (1 + noise)
        record.step(
            step=step,
            epoch=step // steps_per_epoch,
            loss=loss,
            lr=0.1,
            density_asked=density,
            density_had=had * (1 + 0.05 * noise),
            residual_norm=1.0,
            gradient_norm=1.0,
            seconds=seconds,
            bytes=payload,
            wire_sent=wire,
            wire_received=wire,
            **({"phases": {"forward": 0.004, "backward": 0.008, "select": 0.003}} if profile else {}),
        )
        if (step + 1) % steps_per_epoch == 0:
            accuracies.append(
                math.nan
                if diverges
                else 0.9 + 0.05 * had**0.3 - 0.6 * math.exp(-4 * step / steps) + 0.01 * noise
            )
            metrics = {"accuracy": accuracies[-1], "loss": loss}
            epoch = (step + 1) / steps_per_epoch
            record.epoch(epoch=epoch, step=step + 1, train_loss=loss, metrics=metrics, seconds=0.1)
    if stop is not None:
        record.event("stopped", step=stop)
        record.close()
        return folder
    result = {
        "metric": "accuracy",
        "better": "max",
        "parameters": 1_000_000,
        "steps": steps,
        "epochs": steps / steps_per_epoch,
        "final": metrics,
        "best": max(accuracies),
        "seconds": steps * seconds,
        "steps_per_second": 1 / seconds,
        "step_seconds": {"p50": seconds, "p95": 1.2 * seconds, "p99": 1.5 * seconds},
        "payload_per_step": payload,
        "wire_sent_per_step": wire,
        "wire_received_per_step": wire,
        "density_asked": density,
        "density_had": had,
    }
    record.finish(result)
    return folder


def read(*paths: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of all runs by label."""
    runs, unreadable = read_runs(paths)
    assert not unreadable
    return {row.label: row.values for group in grouped(runs) for row in group.rows}


def written(folder: Path, *kinds: str) -> list[str]:
    return [(folder / f"report.{kind}").read_text(encoding="utf-8") for kind in kinds]


def the_group(runs: Path) -> Group:
    """Return the only group of the runs; all of them must be readable."""
    found, unreadable = read_runs([runs])
    assert not unreadable
    (group,) = grouped(found)
    return group


def change(folder: Path, name: str, **values: Any) -> None:
    """Change some keys of a run's file; None removes a key."""
    path = folder / name
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
