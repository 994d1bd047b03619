"""Finds the built-in workloads by name."""

from pathlib import Path


def workloads() -> dict[str, Path]:
    """Return the TOML files of the built-in workloads, by name."""
    folder = Path(__file__).parents[1] / "jobs" / "workloads"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}
