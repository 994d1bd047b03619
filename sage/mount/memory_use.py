"""The memory of a rank: bytes of the state that a method keeps between steps, and the peak of the process."""

import resource
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

from sage.mount.flat import Flat


def num_state_bytes(flats: Iterable[Flat], further: Iterable[Tensor] = ()) -> int:
    """Bytes that a rank keeps between two steps because of its method.

    They are the buffers of the reducers and of their error feedback. Memory that a reduction uses only while
    it runs is not counted, and neither are the gradient, the model and the optimiser.

    Args:
        flats: The flat gradients.
        further: Further tensors of this kind, such as the errors of an optimiser that communicates.
    """
    buffers = [x for flat in flats for x in flat.feedback.buffers()]
    return sum(x.nbytes for x in {id(x): x for x in [*buffers, *further]}.values())


def peak_bytes(device: torch.device) -> int:
    """The largest memory so far: of this process in RAM, or of torch's tensors on a GPU.

    In RAM it is the maximum resident size of the process (`ru_maxrss`), with Python, torch and the data set;
    ranks that are threads of one process share it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_of(device: torch.device, flats: Iterable[Flat], further: Iterable[Tensor] = ()) -> dict[str, int]:
    """Return both by their names in `result.json`; for the arguments see `num_state_bytes`."""
    return {"state_bytes": num_state_bytes(flats, further), "peak_bytes": peak_bytes(device)}
