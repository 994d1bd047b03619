"""Loads recorded gradients from a trace or .npy vectors, or records those of a run folder now."""

from pathlib import Path

from sage import storage
from sage.bench import npy
from sage.bench.gradients import Gradients
from sage.bench.trace import is_run, record_run
from sage.bench.trace import load as load_trace


def load(path: Path) -> Gradients:
    """Load a trace, a .npy vector, or a folder of .npy vectors.

    Raises:
        ValueError: there is no such file, or it is neither.
    """
    is_folder = storage.is_there(path) and path.is_dir()
    return npy.read(path) if path.suffix == ".npy" or is_folder else load_trace(path)


def load_or_record(path: Path, *, steps: int, elements: int) -> Gradients:
    """Load what `load` loads; of a run folder, record the steps after its newest checkpoint.

    Args:
        steps: number of steps to record of a run folder.
        elements: maximum number of elements to keep of its gradients.

    Raises:
        ValueError: there is no such file, or it is none of these.
    """
    return record_run(path, steps=steps, elements=elements) if is_run(path) else load(path)
