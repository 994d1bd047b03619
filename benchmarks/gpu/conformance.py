"""Section `reducers`: the invariants of every reducer with its vectors on the device, on 2 and 4 threads.

The harness computes on the CPU; the reducer, its residual and its gradient are on the device.
"""
# N = elements of the flat vector

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.gpu.device import Device
from benchmarks.gpu.rows import Rows
from sage import registry
from sage.comm.wire import Wire
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.reducer import Reduced, Reducer
from sage.testing.conformance import INVARIANTS
from sage.testing.harness import SHAPES, Case, Shapes

WORLD_SIZES = (2, 4)


class Moved(nn.Module):
    """An `ErrorFeedback` on a device, with its input and output on the CPU."""

    def __init__(self, feedback: ErrorFeedback, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.feedback = feedback.to(device)

    @property
    def reducer(self) -> Reducer:
        """The reducer."""
        return self.feedback.reducer

    @property
    def residual_N(self) -> Tensor | None:
        """Return a copy of the residual."""
        return None if self.feedback.residual_N is None else self.feedback.residual_N.cpu()

    def forward(self, grad_N: Tensor, wire: Wire) -> Reduced:
        """Reduce on the device."""
        reduced = self.feedback(grad_N.to(self._device), wire)
        if reduced.mean_N.device.type != self._device.type:
            raise AssertionError(f"the mean is on {reduced.mean_N.device}, the gradient on {self._device}")
        sent = None if reduced.sent is None else reduced.sent.cpu()
        union_M = None if reduced.union_M is None else reduced.union_M.cpu()
        return Reduced(reduced.mean_N.cpu(), sent, reduced.density, union_M)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the state of the error feedback."""
        return self.feedback.state_dict(*args, **kwargs)

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        """Load the state into the error feedback."""
        return self.feedback.load_state_dict(state, *args, **kwargs)


@dataclass(frozen=True)
class OnDevice(Case):
    """A case whose reducer is on a device."""

    device: torch.device = torch.device("cpu")

    def fresh(self, shapes: Shapes = SHAPES) -> ErrorFeedback:
        """Return a new reducer with error feedback, on the device."""
        return cast(ErrorFeedback, Moved(super().fresh(shapes), self.device))


def check(name: str, world_size: int, device: Device) -> None:
    """Check every invariant of one reducer, and that it leaves the device's generator unchanged."""
    make = registry.load("reducers", name)
    case = OnDevice(make, registry.check_options("reducers", name, {}), world_size, device=device.torch)
    before = None if device.rehearsal else torch.cuda.get_rng_state()
    invariants = INVARIANTS[:4] if device.rehearsal else INVARIANTS
    for invariant in invariants:
        try:
            invariant(case)
        except Exception as error:
            raise AssertionError(f"{invariant.__name__}: {type(error).__name__}: {error}") from error
    if before is not None and not torch.equal(before, torch.cuda.get_rng_state()):
        raise AssertionError("the generator of the GPU has changed")


def run(rows: Rows, device: Device) -> None:
    """Check every reducer; in a rehearsal only some."""
    torch.set_num_threads(1)
    names = (
        ("topk", "onebit", "qsgd", "powersgd", "exdyna") if device.rehearsal else registry.names("reducers")
    )
    world_sizes = WORLD_SIZES[:1] if device.rehearsal else WORLD_SIZES
    rows.while_in_time(
        [(f"{name}, W = {w}", partial(check, name, w, device)) for w in world_sizes for name in names]
    )
