"""What every optimiser that communicates offers a script besides torch's interface: traffic and records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sage.comm.replicas import Replicas
from sage.comm.wire import Wire
from sage.mount.memory_use import memory_of
from sage.mount.record import StepLog
from sage.mount.traffic import Traffic, of_step
from sage.reduction.layout import Layout


class Recorded(torch.optim.Optimizer):
    """Counts the bytes of each step, writes run folders and compares replicas."""

    name: str = ""
    """The name in `sage run --optimizer` and in records."""
    parameters: list[nn.Parameter]
    """The parameters of all groups; the flat vectors have their order."""
    layout: Layout
    """Position of each parameter in a flat vector of N elements."""
    num_steps: Tensor
    """Number of steps taken."""
    own: dict[str, Tensor]
    """State of this rank, by name."""

    def begin_record(self, wire: Wire, settings: Mapping[str, Any]) -> None:
        """Count from here on."""
        self.settings = dict(settings)
        """Options of the whole optimiser."""
        self.wire = wire
        """The communicator; its `ledger` counts every byte."""
        self.last_step = Traffic()
        """Traffic of the last step."""
        self.total = Traffic()
        """Traffic of all steps."""
        self._ledger_before = wire.ledger.copy()
        self._log = StepLog()

    @property
    def density(self) -> float:
        """Share of the elements that the last step sent."""
        return 1.0

    def count_step(self, *, skipped: bool) -> None:
        """Count the bytes since the last call as those of one step."""
        ledger = self.wire.ledger.since(self._ledger_before)
        self.last_step = of_step(ledger, 4 * self.layout.numel, skipped=skipped)
        self.total += self.last_step
        self._log.add(ledger, 0.0 if skipped else self.density)
        self._ledger_before = self.wire.ledger.copy()

    def record(
        self,
        folder: str | Path,
        *,
        workload: str,
        seed: int = 0,
        metric: str | None = None,
        better: Literal["max", "min"] | None = None,
        **metrics: float,
    ) -> None:
        """Write a run folder for `sage report`, as `sage.mount.base.Mount.record` does.

        Args:
            folder: Path such as `runs/mine-onebit-adam`.
            workload: Runs with the same workload and number of ranks are compared.
            seed: Seed of this run.
            metric: Name of the headline metric; by default the first one given.
            better: Whether the largest or smallest value is best; by default by the metric's name.
            metrics: Measured values by name.

        Raises:
            ValueError: if no metric is given, or the folder was written by `sage run`.
            OSError: if the folder cannot be written.
        """
        config = {
            "workload": workload,
            "task": "own",
            "model": workload,
            "mount": type(self).__name__,
            "reducer": self.name,
            "reducer_options": self.settings,
            "memory": None,
            "world_size": self.wire.world_size,
            "seed": seed,
        }
        self._log.record(
            Path(folder),
            config,
            metrics,
            metric=metric,
            better=better,
            parameters=self.layout.numel,
            memory=memory_of(self.parameters[0].device, (), self.own.values()),
            is_writer=self.wire.rank == 0,
        )

    def check_replicas(self) -> None:
        """Check that all ranks have bitwise identical parameters. Call it on every rank.

        Raises:
            sage.comm.replicas.ReplicasDiffer: if not; names the ranks and the first parameter that differs.
        """
        named = [(span.name, p) for span, p in zip(self.layout.spans, self.parameters, strict=True)]
        Replicas(self.wire, named).check(f"after step {int(self.num_steps)}")

    def close(self) -> None:
        """Wait for every rank, then release the wire. It is optional at the end of a script."""
        self.wire.close()
