"""Builds the content of `result.json` of a finished run."""

from typing import Any

import torch

from sage.mount.memory_use import peak_bytes
from sage.train.training import TrainingState


def result(training: TrainingState) -> dict[str, Any]:
    """Return the content of `result.json`; a collective call, as step times are the slowest rank's."""
    own_S = torch.tensor(training.metrics.step_seconds, dtype=torch.float64, device=training.device)
    share = torch.tensor(training.metrics.loader_share, dtype=torch.float64, device=training.device)
    bytes_2 = torch.tensor(
        [training.mount.state_bytes(), peak_bytes(training.device)], device=training.device
    )
    seconds_WS, share_W, bytes_W2 = training.wire.gather(metrics=own_S, shares=share, memory=bytes_2)
    state, peak = bytes_W2.amax(0).tolist()
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
        "state_bytes": state,
        "peak_bytes": peak,
        **training.metrics.result(
            seconds_WS.cpu(), float(share_W.max()), metric=training.task.metric, better=training.better
        ),
    }
