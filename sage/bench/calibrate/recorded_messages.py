"""The messages of a recorded run, whose records have bytes by kind and not by collective."""

from collections.abc import Mapping, Sequence
from statistics import median

import torch

from sage import registry
from sage.bench.calibrate.gradients import Gradients, gradients_of
from sage.bench.calibrate.messages import Sequenced, typical
from sage.bench.calibrate.reductions import LEAST, reductions
from sage.bench.loopback_wire import LoopbackWire
from sage.config import Config
from sage.data.dataset import data_root
from sage.mount import WholeModel
from sage.predict.calibration import Message
from sage.train.run import build_model

MOST_SECONDS = 10.0
"""The time for the reductions of one reducer."""

ENGINE = ("control", "state", "probe", "guard")
"""Kinds of bytes that are the engine's own."""


def drawn_gradients(config: Config) -> Gradients:
    """Return gradients drawn from N(0, 1) in the shapes of the run's model.

    Raises:
        ValueError: the data set or the model cannot be made.
        OSError: the files of the data set are missing or cannot be read.
    """
    cpu = torch.device("cpu")
    data = registry.load("datasets", config.data)(data_root(config.data_root), **config.data_options)
    mount = WholeModel(
        build_model(config, data, LoopbackWire(cpu), cpu), registry.load("reducers", "exact")()
    )
    generator = torch.Generator().manual_seed(config.seed)
    return gradients_of(mount, [torch.randn(mount.grad_N.numel(), generator=generator) for _ in range(2)])


def recorded_messages(config: Config, gradients: Gradients, steps: Sequence[Mapping[str, int]]) -> Sequenced:
    """Return the messages of a typical step of a run.

    The reducer reduces drawn gradients without a network, which gives the collectives and their shares of the
    bytes; then all messages are scaled to the bytes that the run recorded. Of a reducer that sends a fixed
    number of bytes, nothing is left to scale.

    Args:
        config: The run's configuration.
        gradients: Gradients in the shapes of its model.
        steps: Bytes by kind of the run's steps.

    Raises:
        ValueError: the reducer cannot reduce these gradients.
    """
    wire = LoopbackWire(torch.device("cpu"), config.world_size)
    messages = typical(reductions(wire, config, gradients, steps=LEAST, seconds=MOST_SECONDS).messages)
    simulated = sum(message.bytes for message in messages)
    recorded = median(sum(size for kind, size in step.items() if kind not in ENGINE) for step in steps)
    scale = recorded / simulated if simulated else 1.0
    return tuple(Message(message.collective, round(scale * message.bytes)) for message in messages)
