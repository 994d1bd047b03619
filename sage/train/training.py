"""The state of training on one rank: the parts of the run and its progress."""

from pathlib import Path
from typing import Any

from torch import nn

from sage.comm.transport import Pending
from sage.comm.wire import Wire
from sage.config import Config
from sage.data.dataset import Dataset
from sage.optim.base import ReducingOptimizer
from sage.records.progress import Display
from sage.records.record import Recorder
from sage.reduction.reducer import Reducer
from sage.tasks import Task
from sage.timing import Phases
from sage.train.choose_mount import attach
from sage.train.metrics import RunningMetrics
from sage.train.moments import moments_of
from sage.train.mounted import Parts
from sage.train.mounted_local import MountedLocal
from sage.train.mounted_unreduced import MountedUnreduced
from sage.train.optim import LossScale, RunningAverage
from sage.train.schedules import count_steps, optimizer
from sage.train.step_trace import StepTrace
from sage.train.stop import Stop


class TrainingState:
    """The state of training on one rank.

    The steps (`sage.train.step`) and the loop (`sage.train.loop`) update it; evaluation, checkpoints
    and results read it.

    Args:
        config: The run's configuration, with the options of its parts resolved.
        wire: Communicates with the other ranks.
        model, data, task, reducer: The parts from the registry; the model is already on its device.
        folder: The run folder; checkpoints are written below it.
        record: Receives the measurements.
        display: Shows the progress.
        stop: Checked after every step for a stop signal.
    """

    def __init__(
        self,
        config: Config,
        wire: Wire,
        *,
        model: nn.Module,
        data: Dataset,
        task: Task,
        reducer: Reducer,
        folder: Path,
        record: Recorder,
        display: Display,
        stop: Stop,
    ) -> None:
        self.config, self.wire, self.model, self.data, self.task = config, wire, model, data, task
        self.record, self.display, self.stop = record, display, stop
        self.checkpoints = folder / "checkpoints"
        self.device = next(model.parameters()).device
        self.steps_per_epoch, self.total_steps = count_steps(config, data)
        display.total = self.total_steps
        self.loss_scale = LossScale(enabled=config.amp == "fp16")
        self.trace = StepTrace(folder, wire.rank, self.device, steps=config.trace or 0)
        self.mount = attach(
            Parts(
                config=config,
                wire=wire,
                model=model,
                task=task,
                reducer=reducer,
                loss_scale=self.loss_scale,
                spans=self.trace.spans,
            )
        )
        self.optimizer = optimizer(config, model, list(self.mount.trained.parameters()), wire)
        if isinstance(self.mount, MountedUnreduced):
            self.mount.optimizer = self.exchanging
        if isinstance(self.mount, MountedLocal):
            self.mount.moments = moments_of(config, self.optimizer, wire)
        self.average = RunningAverage()
        self.phases = Phases(self.device)
        self.step = 0
        self.seconds = 0.0
        self.loader_seconds = 0.0
        """Time that this rank waited for the batches of the last step."""
        self.metrics = RunningMetrics()
        self.pending: tuple[Pending, dict[str, Any]] | None = None
        self.stopping = False

    @property
    def exchanging(self) -> ReducingOptimizer | None:
        """The optimiser, if it communicates itself."""
        return self.optimizer if isinstance(self.optimizer, ReducingOptimizer) else None

    @property
    def better(self) -> str:
        """Whether a larger (`max`) or a smaller (`min`) headline metric is better."""
        return self.task.better[self.task.metric]
