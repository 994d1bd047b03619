"""Builds the state of a checkpoint, and resumes training from a checkpoint of the same or of another run.

A run that resumes from its own checkpoint is bitwise identical to an uninterrupted one. A checkpoint of
another run (`--continue-from`) may have a different world size: the shared state is loaded unchanged, and the
per-rank state is redistributed.
"""
# W = ranks that wrote the checkpoint

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sage import storage
from sage.config import Config, recorded
from sage.mount.estimates import has_estimates
from sage.output.text import clean_text
from sage.train import checkpoint
from sage.train.optim import floating
from sage.train.other_ranks import leave_round, taken_over
from sage.train.schedules import count_steps
from sage.train.training import TrainingState

SAME = [
    *("model", "model_options", "reducer", "memory", "min_compress"),
    *("optimizer", "adamw_names", "mount", "shards", "hierarchy", "ranks_per_node", "outer_by_lr"),
    *("fragments", "fragment_order", "fragment_sync_delay", "fragment_update_alpha"),
]
"""Settings that a run must share with the run that it continues from."""

State = dict[str, Any]


def shared_state(training: TrainingState) -> State:
    """Return the state that all ranks have in common; a collective call."""
    state = {
        "step": training.step,
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "average": training.average.state_dict(),
        "loss_scale": training.loss_scale.state_dict(),
        "seconds": training.seconds,
    }
    return training.mount.gathered(state, _trained(training))


def own_state(training: TrainingState) -> State:
    """Return the state of this rank; with local updates, that of its optimiser too."""
    exchanging = training.exchanging
    inner = {"optimizer": training.optimizer.state_dict(), "loss_scale": training.loss_scale.state_dict()}
    return {
        **training.mount.state_dict(),
        **({} if exchanging is None else {"optimizer": exchanging.own_state_dict()}),
        **({"inner": inner} if training.mount.is_local else {}),
        "task": training.task.state_dict(),
        "buffers": dict(training.model.named_buffers()),
        "random": checkpoint.rng_state(),
        "tally": training.metrics.state_dict(),
    }


def _trained(training: TrainingState) -> list[Tensor]:
    """The optimiser's parameters, in the order of its state."""
    return [p for group in training.optimizer.param_groups for p in group["params"]]


def from_own(training: TrainingState) -> bool:
    """Resume from the newest valid checkpoint of this run; return False if there is none."""
    newest = _newest(training, training.checkpoints)
    if newest is None:
        return False
    rank, ranks = training.wire.rank, newest.world_size
    are_others = training.config.quorum is not None and ranks != training.wire.world_size
    shared, mine = checkpoint.load(newest.path, rank % ranks if are_others else rank)
    remedy = "remove it to resume from the one before, or use --fresh"
    with _fitting(f"checkpoint {newest.path} does not fit this run ({remedy})"):
        if are_others:
            mine["feedback"] = _feedback(training, newest, mine)
            leave_round(mine)
        _restore_shared(training, shared)
        _restore_own(training, mine)
        _check_progress(training, newest.step, shared, mine["tally"])
        training.step, training.seconds = shared["step"], shared["seconds"]
        training.task.load_state_dict(mine["task"])
        training.metrics.load_state_dict(mine["tally"])
        checkpoint.set_rng_state(mine["random"])
    return True


def from_another(training: TrainingState) -> str:
    """Start from the last checkpoint of the run in `continue_from`; return a text that describes it.

    The text is empty if `continue_from` is not set.

    Raises:
        ValueError: The folder has no valid checkpoint, or its run has another model, reducer, memory
            or optimiser.
    """
    folder = training.config.continue_from
    if folder is None:
        return ""
    wire = training.wire
    before = _read_config(folder, training.config)
    newest = _newest(training, folder / "checkpoints")
    if newest is None:
        raise ValueError(f"continue_from is {folder}, which has no complete checkpoint")
    path, ranks = newest.path, newest.world_size
    shared, nearest = checkpoint.load(path, wire.rank % ranks)
    with _fitting(f"continue_from is {folder}, whose state does not fit the options or the data of this run"):
        feedback = _feedback(training, newest, nearest)
        lost = leave_round(nearest) if ranks != wire.world_size else 0
        estimates = ranks != wire.world_size and has_estimates(feedback)
        _restore_shared(training, shared)
        mine = {**nearest, "feedback": feedback}
        mine.pop("shards", None)  # of the other run's units, and of few steps: it begins anew
        exchanging = training.exchanging
        if ranks != wire.world_size and exchanging is not None:  # its state is that of other ranks
            mine.pop("optimizer", None)
            if exchanging.own_is_averaged:
                every = (checkpoint.load_own(path, rank)["optimizer"] for rank in range(ranks))
                mine["optimizer"] = exchanging.averaged_own_state(every)
        _restore_own(training, mine)
    per_epoch, _ = count_steps(before, training.data)
    training.step = round(shared["step"] / per_epoch * training.steps_per_epoch)
    if training.step >= training.total_steps:
        raise ValueError(
            f"continue_from is {folder}, whose end is step {training.step} of this run, and this run has "
            f"{training.total_steps} steps in total: raise --epochs or --steps"
        )
    ranks_before = f"{ranks} {'rank' if ranks == 1 else 'ranks'}"
    if ranks == wire.world_size:
        return f"{path}, of {ranks_before} too"
    what = "the sum of their residuals is this run's"
    if estimates:
        what = "each rank starts from the mean of their estimates"
    if training.config.memory == "loco":
        what = "the error of the memory loco is 0 where not that of one rank is taken over"
    if exchanging is not None:
        what = "what the optimiser keeps for each rank begins anew"
        if exchanging.own_is_averaged:
            what = "the mean of what the optimiser keeps for each rank is this run's"
    if lost:
        what += f", and their last {lost} local steps are lost"
    return f"{path}, of {ranks_before}: {what}"


def _feedback(training: TrainingState, found: checkpoint.Found, nearest: State) -> State:
    wire = training.wire
    return taken_over(
        found,
        nearest["feedback"],
        rank=wire.rank,
        world_size=wire.world_size,
        shards=training.config.shards,
    )


def _newest(training: TrainingState, folder: Path) -> checkpoint.Found | None:
    """Find the newest valid checkpoint on rank 0 and broadcast it."""
    newest = checkpoint.newest(folder) if training.wire.rank == 0 else None
    text = f"{newest.step} {newest.world_size} {newest.path.name}" if newest else ""
    if not (text := training.wire.texts(text)[0]):
        return None
    step, world_size, name = text.split(" ", 2)
    return checkpoint.Found(folder / name, int(step), int(world_size))


@contextmanager
def _fitting(complaint: str) -> Iterator[None]:
    """Turn errors from loading a state into a one-line ValueError: the checkpoint does not fit this run.

    Raises:
        ValueError: A part refuses the state, for example because of a missing key or a different shape.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        reason = reason.replace("Error(s) in loading state_dict for ", "")
        raise ValueError(f"{complaint}: {clean_text(reason, 300)}") from error


def _read_config(folder: Path, config: Config) -> Config:
    """Read the configuration of the other run; refuse it if a part whose state is saved differs."""
    try:
        before = recorded(storage.read_json(folder / "config.json", storage.CONFIG))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"continue_from is {folder}, which is not a run folder: {error}") from error
    for part in SAME:
        was, now = getattr(before, part), getattr(config, part)
        if was != now:
            raise ValueError(
                f"continue_from is {folder}, whose {part} is {was!r}; this run's is {now!r}, so the saved "
                "state does not fit: use the same value"
            )
    if (before.local_steps is None) != (config.local_steps is None):
        raise ValueError(
            f"continue_from is {folder}, whose local_steps is {before.local_steps}; this run's is "
            f"{config.local_steps}: a run with local updates continues only another with local updates"
        )
    return before


@torch.no_grad()
def _restore_shared(training: TrainingState, shared: State) -> None:
    _check(storage.SHARED.fault(shared))
    means, count = shared["average"].get("means"), shared["average"].get("num_averaged")
    if type(count) is not int or count < 0 or bool(count) != bool(means):
        raise ValueError(f"the running average is that of {count!r} models")
    _check_shapes("the running average", means, dict(floating(training.model)), some=True)
    shared = training.mount.scattered(shared, _trained(training))
    training.model.load_state_dict(shared["model"])
    _restore_optimizer(training, shared["optimizer"])
    training.average.load_state_dict(shared["average"])
    training.loss_scale.load_state_dict(shared["loss_scale"])


@torch.no_grad()
def _restore_own(training: TrainingState, mine: State) -> None:
    _check(storage.OWN.fault(mine))
    buffers = dict(training.model.named_buffers())
    _check_shapes("the buffers", mine["buffers"], buffers)
    of_mount = ("feedback", "before", "shards", "local")
    training.mount.load_state_dict({name: mine[name] for name in of_mount if name in mine})
    if training.exchanging is not None and "optimizer" in mine:
        training.exchanging.load_own_state_dict(mine["optimizer"])
    for name, buffer in buffers.items():
        buffer.copy_(mine["buffers"][name])
    if training.mount.is_local:
        _restore_optimizer(training, mine["inner"]["optimizer"])
        training.loss_scale.load_state_dict(mine["inner"]["loss_scale"])


def _restore_optimizer(training: TrainingState, saved: State) -> None:
    """Restore the optimiser's state; refuse options and shapes that do not fit."""
    options = [dict(group) for group in training.optimizer.param_groups]
    training.optimizer.load_state_dict(saved)
    for before, after in zip(options, training.optimizer.param_groups, strict=True):
        _check_options(before, after)
    for parameter, state in training.optimizer.state.items():
        for name, value in state.items():
            shaped = isinstance(value, Tensor) and value.dim() and training.exchanging is None
            if shaped and value.shape != parameter.shape:
                raise ValueError(
                    f"the optimiser's {name} has shape {[*value.shape]}, not {[*parameter.shape]}"
                )


def _check_options(before: State, after: State) -> None:
    """Refuse optimiser options that are missing or of another type, because torch does not check them."""
    for name, value in before.items():
        if name not in after:
            raise ValueError(f"the optimiser's {name} is missing")
        if type(after[name]) is not type(value):
            raise ValueError(
                f"the optimiser's {name} is {type(after[name]).__name__}, not {type(value).__name__}"
            )


def _check_progress(training: TrainingState, step: int, shared: State, metrics: State) -> None:
    """Refuse a step that differs from the checkpoint's, and totals that are insufficient for the result."""
    if shared["step"] != step or not 0 <= step <= training.total_steps:
        raise ValueError(f"its step is {shared['step']}, not {step} of {training.total_steps}")
    seconds_S = metrics["step_seconds"]
    if not (isinstance(seconds_S, Tensor) and seconds_S.dtype == torch.float64 and seconds_S.dim() == 1):
        raise ValueError("'step_seconds' is not a list of numbers")
    if len(seconds_S) > step or (step and not len(seconds_S)):
        raise ValueError(f"it has the seconds of {len(seconds_S)} steps, not of {step}")
    if len(metrics["loss"]) != 2:
        raise ValueError("'loss' is not a sum and a count")
    metric = training.task.metric
    if any(metric not in evaluation for evaluation in metrics["evaluations"]):
        raise ValueError(f"an evaluation lacks the metric {metric!r}")
    if step == training.total_steps and not metrics["evaluations"]:
        raise ValueError("it has no evaluation of the last step")
    if step and (lacking := {"wire_sent", "wire_received", "density_had"} - metrics["totals"].keys()):
        raise ValueError(f"the totals lack {', '.join(sorted(lacking))}")


def _check(fault: str) -> None:
    if fault:
        raise ValueError(fault)


def _check_shapes(what: str, tensors: Any, wanted: Mapping[str, Tensor], *, some: bool = False) -> None:
    """Refuse tensors with other names or shapes, which `copy_` would silently broadcast.

    With `some`, an empty dictionary is allowed.
    """
    if some and tensors == {}:
        return
    if not isinstance(tensors, Mapping) or tensors.keys() != wanted.keys():
        raise ValueError(f"{what}: the names differ from the model's")
    for name, tensor in wanted.items():
        if not isinstance(tensors[name], Tensor) or tensors[name].shape != tensor.shape:
            raise ValueError(f"{what}: {name} is not a tensor of shape {[*tensor.shape]}")
