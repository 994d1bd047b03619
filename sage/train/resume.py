"""What a checkpoint of a training holds, and how a training goes on from one: its own, or another run's.

A run goes on from its own to the bit. From another's (`--continue-from`) it may go on with another number of
ranks: what all ranks share is taken as it is, and what each rank had for itself is shared out anew.
"""
# W = ranks that wrote the checkpoint

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sage.config import Config
from sage.train import checkpoint
from sage.train.recipe import count_steps

if TYPE_CHECKING:
    from sage.train.loop import Training

SUMMED = ("residual_N", "velocity_N")
"""What ranks have not sent yet, of which none may be lost or doubled."""

State = dict[str, Any]


def shared_state(training: "Training") -> State:
    """What all ranks have in common."""
    return {
        "step": training.step,
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "average": training.average.state_dict(),
        "loss_scale": training.loss_scale.state_dict(),
        "seconds": training.seconds,
    }


def own_state(training: "Training") -> State:
    """What is this rank's own."""
    return {
        "feedback": training.mount.feedback.state_dict(),
        "before": training.before.state_dict(),
        "task": training.task.state_dict(),
        "buffers": dict(training.model.named_buffers()),
        "random": checkpoint.rng_state(),
        "tally": training.tally.state_dict(),
    }


def from_own(training: "Training") -> bool:
    """Go back to the run's own newest whole checkpoint; False where there is none."""
    path = _newest(training, training.checkpoints)
    if path is None:
        return False
    shared, mine = checkpoint.load(path, training.wire.rank)
    _restore_shared(training, shared)
    _restore_own(training, mine)
    training.step, training.seconds = shared["step"], shared["seconds"]
    training.task.load_state_dict(mine["task"])
    training.tally.load_state_dict(mine["tally"])
    checkpoint.set_rng_state(mine["random"])
    return True


def from_another(training: "Training") -> str:
    """Begin where the run of `continue_from` ends, and say how; "" where none is asked for.

    Raises:
        ValueError: where that is no run with a whole checkpoint, or one of other parts.
    """
    folder = training.config.continue_from
    if folder is None:
        return ""
    wire = training.wire
    before = _told(folder, training.config)
    path = _newest(training, folder / "checkpoints")
    if path is None:
        raise ValueError(f"continue_from is {folder}, which has no whole checkpoint to begin from")
    shared, nearest = checkpoint.load(path, wire.rank % before.world_size)
    # Each rank of before is taken over by somebody, and by nobody else.
    theirs = range(wire.rank, before.world_size, wire.world_size)
    taken_over = [checkpoint.load(path, rank)[1]["feedback"] for rank in theirs]
    try:
        _restore_shared(training, shared)
        _restore_own(training, {**nearest, "feedback": _shared_out(nearest["feedback"], taken_over)})
    except RuntimeError as error:
        raise ValueError(
            f"continue_from is {folder}, whose state does not fit the options or the data given here: {error}"
        ) from error
    per_epoch, _ = count_steps(before, training.data)
    training.step = round(shared["step"] / per_epoch * training.steps_per_epoch)
    if training.step >= training.total_steps:
        raise ValueError(
            f"continue_from is {folder}, which ends at step {training.step} as this run counts; this one has "
            f"{training.total_steps} in all: give it more --epochs or --steps"
        )
    ranks_before = f"{before.world_size} {'rank' if before.world_size == 1 else 'ranks'}"
    if before.world_size == wire.world_size:
        return f"{path}, of {ranks_before} too"
    return f"{path}, of {ranks_before}: the sum of their residuals is this run's"


def _newest(training: "Training", folder: Path) -> Path | None:
    """Where the newest whole checkpoint is: rank 0 looks, and all hear."""
    found = checkpoint.newest(folder) if training.wire.rank == 0 else None
    name = training.wire.texts(found.path.name if found else "")[0]
    return folder / name if name else None


def _told(folder: Path, config: Config) -> Config:
    """What the other run was; its model and its reducer must be this one's."""
    try:
        before = Config.from_dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError) as error:
        raise ValueError(f"continue_from is {folder}, which is no run's folder: {error}") from error
    for part in ("model", "model_options", "reducer", "memory", "min_compress", "optimizer"):
        was, now = getattr(before, part), getattr(config, part)
        if was != now:
            raise ValueError(
                f"continue_from is {folder}, whose {part} is {was!r}; here it is {now!r}, and what the one "
                "has saved does not fit the other"
            )
    return before


def _shared_out(nearest: State, taken_over: list[State]) -> State:
    """A rank's memory: as one rank's of before was, but of what was not sent the sum of all it takes over."""
    feedback = dict(nearest)
    for name in SUMMED:
        if isinstance(was := nearest.get(name), Tensor):
            feedback[name] = sum((theirs[name] for theirs in taken_over), torch.zeros_like(was))
    return feedback


@torch.no_grad()
def _restore_shared(training: "Training", shared: State) -> None:
    training.model.load_state_dict(shared["model"])
    training.optimizer.load_state_dict(shared["optimizer"])
    training.average.load_state_dict(shared["average"])
    training.loss_scale.load_state_dict(shared["loss_scale"])


@torch.no_grad()
def _restore_own(training: "Training", mine: State) -> None:
    training.mount.feedback.load_state_dict(mine["feedback"])
    training.before.load_state_dict(mine["before"])
    for name, buffer in training.model.named_buffers():
        buffer.copy_(mine["buffers"][name])
