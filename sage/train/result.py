"""Builds the content of `result.json` of a finished run."""

from typing import Any

import torch

from sage.train.training import TrainingState


def result(training: TrainingState) -> dict[str, Any]:
    """Return the content of `result.json`; a collective call, as step times are the slowest rank's."""
    own_S = torch.tensor(training.metrics.step_seconds, dtype=torch.float64, device=training.device)
    share = torch.tensor(training.metrics.loader_share, dtype=torch.float64, device=training.device)
    seconds_WS, share_W = training.wire.gather(metrics=own_S, shares=share)
    config = training.config
    return {
        "workload": config.workload,
        "reducer": config.reducer,
        "reducer_options": config.reducer_options,
        "world_size": training.wire.world_size,
        "seed": config.seed,
        "parameters": training.mount.num_elements,
        "steps": training.step,
        "epochs": training.step / training.steps_per_epoch,
        "seconds": training.seconds,
        **training.metrics.result(
            seconds_WS.cpu(), float(share_W.max()), metric=training.task.metric, better=training.better
        ),
    }
