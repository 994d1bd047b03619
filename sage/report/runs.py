"""Finds and reads run folders: configuration, manifest, records and result.

A damaged run is left out of the report and named there in one line.
"""
# S = recorded steps of a run

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from sage import storage
from sage.config import NOT_HASHED, annotations
from sage.output.text import clean_text
from sage.output.units import printable
from sage.records.record import Record, read_metrics
from sage.report.run_summary import Figures, of_records, of_result
from sage.report.steps import Steps

EXACT = "exact"
"""The reducer that serves as the baseline."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """The contents of a run folder."""

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    is_finished: bool
    figures: Figures
    """The figures of the result; for an unfinished run, those that rank 0's records allow."""
    steps: Steps
    epochs: list[Record]
    events: list[Record]
    failure: str
    """The error in failure.json; "" if there is none."""

    @property
    def status(self) -> str:
        """`finished`, or the last step and event, and how often the run was resumed."""
        words = ["finished" if self.is_finished else f"unfinished at step {self.figures.steps}"]
        events = [record["event"] for record in self.events]
        if not self.is_finished and self.failure:
            words.append("failed")
        elif not self.is_finished and events and events[-1] != "resumed":
            words.append(events[-1])
        if resumed := events.count("resumed"):
            words.append(f"resumed {resumed}×")
        return clean_text(", ".join(words))

    @property
    def reason(self) -> str:
        """Why the run is not finished, as far as its folder shows."""
        if self.failure:
            return clean_text(self.failure)
        if self.events:
            last = self.events[-1]
            when = f" on {last['time']}" if "time" in last else ""
            return clean_text(f"{last['event']} at step {last['step']}{when}")
        return "no reason recorded: still running, or killed"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that the result depends on, the reducer's options first; all values are hashable."""
        options = self.config.get("reducer_options", {})
        return {name: _hashable(value) for name, value in options.items()} | self.common

    @cached_property
    def common(self) -> dict[str, Any]:
        """The settings without the reducer's options; options of model and data have dotted names."""
        aside = {name for name, annotation in annotations().items() if NOT_HASHED in get_args(annotation)}
        options = {k: v for k, v in self.config.items() if k not in aside and k != "reducer_options"}
        return {name: _hashable(value) for name, value in _flat(options)}


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], dict[Path, str]]:
    """Read all runs under the paths; return them, and the reason for each folder that cannot be read.

    Symbolic links to folders are followed. A run that is found twice is read once.

    Raises:
        ValueError: if a path is not a folder, or no run is under any of them.
    """
    folders: set[Path] = set()
    unreadable: dict[Path, str] = {}
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder; give run folders, or folders that contain some")
        folders |= _run_folders(path.resolve(), unreadable, set())
    if not folders and not unreadable:
        raise ValueError(
            f"no runs under {', '.join(map(str, paths))}; `sage run` writes a run folder, "
            "runs/<workload>-<reducer>-<hash>, and contains a metrics.jsonl"
        )
    runs = []
    for folder in sorted(folders):
        try:
            runs.append(_read_run(folder))
        except (ValueError, OSError) as error:
            unreadable[folder] = clean_text(str(error))
        except Exception as error:  # content of a form that no check covers
            unreadable[folder] = printable(f"is damaged: {type(error).__name__}: {error}; {storage.RERUN}")
    return runs, unreadable


def _run_folders(folder: Path, unreadable: dict[Path, str], seen: set[tuple[int, int]]) -> set[Path]:
    """Return the run folders in a folder and below it, each by its real path."""
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            return set()
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            names = {entry.name: _is_folder(entry) for entry in entries}
    except OSError as error:
        unreadable[folder] = f"cannot be read: {error.strerror or error}"
        return set()
    is_run = "metrics.jsonl" in names or ("config.json" in names and names.keys() & _BESIDE_CONFIG)
    runs = {folder.resolve()} if is_run else set()
    for name, is_folder in names.items():
        if is_folder and not name.startswith(".") and not (is_run and name in storage.NO_RUNS):
            runs |= _run_folders(folder / name, unreadable, seen)
    return runs


_BESIDE_CONFIG = {"manifest.json", "result.json", "failure.json"}
"""A folder with a config.json and one of these is a run, even if its metrics are missing."""


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _read_run(folder: Path) -> Run:
    config = _required(folder / "config.json", storage.CONFIG)
    for name in ("task", "seed", "world_size"):
        if name not in config:
            raise storage.Damaged(
                folder / "config.json",
                f"is damaged: a run's configuration needs the key {name!r}",
                storage.CONFIG.remedy,
            )
    manifest = _required(folder / "manifest.json", storage.MANIFEST)
    records = _records(folder)
    steps = Steps.of([record for record in records if record["kind"] == "step"])
    epochs = [record for record in records if record["kind"] == "epoch"]
    try:
        result = storage.read_json(folder / "result.json", storage.RESULT)
    except FileNotFoundError:
        result = None
    figures = of_records(config, steps, epochs) if result is None else of_result(result, epochs)
    return Run(
        folder=folder,
        config=config,
        manifest=manifest,
        is_finished=result is not None,
        figures=figures,
        steps=steps,
        epochs=epochs,
        events=[record for record in records if record["kind"] == "event"],
        failure=_failure(folder) if result is None else "",
    )


def _failure(folder: Path) -> str:
    try:
        reason: str = storage.read_json(folder / "failure.json", storage.FAILURE)["error"]
    except FileNotFoundError:
        return ""
    except storage.Unreadable as error:
        return str(error)
    return reason


def _required(path: Path, kind: storage.Kind) -> dict[str, Any]:
    try:
        return storage.read_json(path, kind)
    except FileNotFoundError as cause:
        raise ValueError(f"{path.name} is missing") from cause


def _records(folder: Path) -> list[Record]:
    """Read metrics.jsonl.

    All lines are parsed at once, which is several times faster than one by one. If that fails, they are read
    one by one, so that the error names the line.
    """
    try:
        content = storage.read_bytes(folder / "metrics.jsonl")
    except FileNotFoundError as cause:
        raise ValueError(
            "metrics.jsonl is missing: the run started, but its records have been deleted"
        ) from cause
    # A crash can leave the last line incomplete; it is ignored.
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    records: list[Record] = []
    try:
        records = json.loads(b"[" + b",".join(lines) + b"]")
        is_whole = len(records) == len(lines) and not any(
            "format" in record or storage.METRICS.fault(record) for record in records
        )
    except (ValueError, RecursionError, AttributeError, TypeError):
        is_whole = False
    return records if is_whole else read_metrics(folder)


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            part = name.removesuffix("_options")
            yield from ((f"{part}.{option}", given) for option, given in value.items())
        else:
            yield name, value


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple((name, _hashable(item)) for name, item in sorted(value.items()))
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
