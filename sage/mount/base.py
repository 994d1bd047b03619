"""Base class of the mounts: wire and ledger, state by parameter, traffic, run records and checks."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from sage import registry
from sage.comm.replicas import Replicas
from sage.comm.wire import Wire
from sage.mount import loss_scale as scales
from sage.mount import optimizers, other_ranks, state
from sage.mount.backward_mark import BackwardMark
from sage.mount.flat import Flat
from sage.mount.memory_use import memory_of
from sage.mount.parameters import Named
from sage.mount.record import StepLog
from sage.mount.shards import is_sharded
from sage.mount.step import Step
from sage.mount.traffic import Traffic, of_step
from sage.reduction.reducer import Reducer

Method = str | Reducer | Callable[..., Reducer]
"""A reducer: its name, an unbound instance, or a callable that creates one."""


class Mount:
    """A reducer attached to a model of the user's own script.

    Args:
        model: The model as the script passed it.
        wire: Communicator to the other ranks.
        flats: The flat gradients that are reduced.
        named: The parameters in them, by name.
    """

    def __init__(self, model: nn.Module, wire: Wire, flats: Sequence[Flat], named: Named) -> None:
        self.wire = wire
        """The communicator; its `ledger` counts every byte."""
        self.last_step = Traffic()
        """Traffic of the last step."""
        self.total = Traffic()
        """Traffic of all steps since mounting."""
        self._model, self._flats, self._named = model, flats, named
        self._lr: float | None = None
        self._loss_scale: float | None = None
        self._ledger_before = wire.ledger.copy()
        self._log = StepLog()
        self._description: dict[str, Any] = {
            "reducer": type(flats[0].feedback.reducer).__name__.lower(),
            "reducer_options": {},
        }
        self._unreduced = BackwardMark()
        self._hooks = [p.register_post_accumulate_grad_hook(self._unreduced.set) for p in named.values()]
        optimizers.register(self)
        scales.watch()

    # The interface for scripts.

    @property
    def density(self) -> float:
        """Share of the compressed elements that the last step sent, averaged over ranks.

        It is 1.0 for methods that send every element in fewer bits; see `last_step.compression` for those.
        """
        sizes = [flat.compressed.numel for flat in self._flats]
        sent = sum(flat.density * size for flat, size in zip(self._flats, sizes, strict=True))
        return sent / max(1, sum(sizes))

    def begin_step(self, lr: float | None = None, *, loss_scale: float | None = None) -> None:
        """Set what the next step needs to know, before its backward.

        Args:
            lr: The learning rate; needed for the option `lr_ratio`.
            loss_scale: The factor by which the script multiplies the loss; not needed with torch's
                `GradScaler`, whose scale is found.

        Raises:
            ValueError: if the loss scale is not a finite number above 0.
        """
        self._lr = lr
        self._loss_scale = None if loss_scale is None else scales.checked(loss_scale)

    def begin_epoch(self, epoch: int, lr: float) -> None:
        """Notify reducers with a schedule that an epoch begins; call it on every rank."""
        for flat in self._flats:
            flat.begin_epoch(epoch, lr, self.wire)

    def state_dict(self) -> state.State:
        """State of this rank by parameter name, to be saved with the model; it differs between ranks."""
        return {name: part for flat in self._flats for name, part in state.by_parameter(flat).items()}

    def load_state_dict(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what `state_dict` returned on this rank.

        Raises:
            ValueError: if it belongs to other parameters or to another reducer.
        """
        names = {span.name for flat in self._flats for span in flat.own.compressed.spans}
        if names != saved.keys():
            missing, beyond = sorted(names - saved.keys()), sorted(saved.keys() - names)
            raise ValueError(
                f"the state has other parameters: {missing or 'none'} missing, {beyond or 'none'} unknown; "
                "give the mount the model and the min_compress that it was saved with"
            )
        for flat in self._flats:
            state.restore(flat, saved)

    def state_dict_by_rank(self, ranks_before: int | None = None) -> dict[str, state.State]:
        """State of this rank under a name of its own, for torch.distributed.checkpoint.

        `dcp.save` writes tensors that several ranks have under one name only once. To load, pass what this
        returns to `dcp.load`, and then to `load_state_dict_by_rank` (docs/how-to/combine-a-mount.md).

        Args:
            ranks_before: To load: the number of ranks that saved the state (with FSDP2, of replicas); returns
                empty tensors for the states that this rank needs of theirs. None: returns this rank's state.

        Raises:
            ValueError: if the number is not positive, or differs from this one with `hierarchy="node"`.
        """
        own, ranks = self.state_dict(), self._by_rank()
        return ranks.to_save(own) if ranks_before is None else ranks.to_load(own, ranks_before)

    def load_state_dict_by_rank(self, saved: Mapping[str, state.State]) -> None:
        """Restore what `state_dict_by_rank` returned for this rank, after it was filled.

        With another number of ranks, residuals are shared out as `sage run --continue-from` does: their sum
        over the ranks stays the same.

        Raises:
            ValueError: if a state that this rank needs is missing, or belongs to other parameters or to
                another reducer.
        """
        self.load_state_dict(self._by_rank().combined(saved))

    def record(
        self,
        folder: str | Path,
        *,
        workload: str | None = None,
        seed: int = 0,
        metric: str | None = None,
        better: Literal["max", "min"] | None = None,
        **metrics: float,
    ) -> None:
        """Write a run folder for `sage report`: the steps since mounting, and these metrics as an evaluation.

        It may be called repeatedly, for example after each epoch: each call adds the steps since the last one
        and another evaluation. Any rank may call it; only rank 0 writes.

        Args:
            folder: Path such as `runs/mine-topk`; a record that a mount wrote there in an earlier process is
                replaced.
            workload: Runs with the same workload and number of ranks are compared; by default the model's
                class.
            seed: Seed of this run; runs that differ only in it are averaged in the report.
            metric: Name of the headline metric; by default the first one given.
            better: Whether the largest (`max`) or smallest (`min`) value is best; by default `min` if the
                name contains loss, error or perplexity.
            metrics: Measured values by name.

        Raises:
            ValueError: if no metric is given, or the folder was written by `sage run`.
            OSError: if the folder cannot be written.
        """
        name = type(getattr(self._model, "module", self._model)).__name__
        config = {
            "workload": workload or name,
            "task": "own",
            "model": name,
            "mount": type(self).__name__,
            **self._description,
            "memory": self._flats[0].feedback.memory,
            "world_size": self.wire.world_size,
            "seed": seed,
        }
        self._log.record(
            Path(folder),
            config,
            metrics,
            metric=metric,
            better=better,
            parameters=sum(flat.layout.numel for flat in self._flats),
            memory=memory_of(self._flats[0].grad_N.device, self._flats),
            is_writer=self.wire.rank == 0,
        )

    def describe(self, reducer: Method, options: Mapping[str, Any], **settings: Any) -> None:
        """Set the method's description for `record`; called by the functions that mount."""
        if isinstance(reducer, str):
            resolved = registry.check_options("reducers", reducer, dict(options))
            self._description = {"reducer": reducer, "reducer_options": resolved}
        else:
            self._description["reducer_options"] = {name: repr(value) for name, value in options.items()}
        self._description |= {name: value for name, value in settings.items() if value is not None}

    def check_replicas(self) -> None:
        """Check that all ranks have bitwise identical parameters. Call it on every rank.

        Raises:
            sage.comm.replicas.ReplicasDiffer: if not; names the ranks and the first parameter that differs.
        """
        named = [(name, p.to_local() if is_sharded(p) else p) for name, p in self._model.named_parameters()]
        Replicas(self.wire, named).check(f"after step {self.total.steps}")

    def close(self) -> None:
        """Wait for every rank, then release the wire and the model. It is optional at the end of a script."""
        optimizers.unregister(self)
        for hook in self._hooks:
            hook.remove()
        self.wire.close()
        if (levels := self._flats[0].levels) is not None:
            levels.close()

    def _by_rank(self) -> other_ranks.ByRank:
        on_levels = self._flats[0].levels is not None
        place = self._flats[0].place if on_levels else ""
        return other_ranks.ByRank(self.wire.rank, self.wire.world_size, place, is_fixed=on_levels)

    # Used before an optimiser's step.

    def mounted(self) -> Named:
        """The parameters whose gradients are reduced, by name."""
        return self._named

    def model_parameters(self) -> Named:
        """The model's current parameters that require a gradient, by name."""
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def check(self) -> None:
        """Check that the reduced parameters are the model's; called automatically at every step.

        Raises:
            ValueError: if a parameter was frozen, unfrozen, replaced, added or removed since mounting.
        """
        raise NotImplementedError

    def check_reduced(self, optimizer: Optimizer) -> None:
        """Check that the gradients of the last backward were reduced; called before an optimiser's step.

        Raises:
            ValueError: if they were not.
        """
        if self._unreduced.is_set:
            raise ValueError(
                "the optimiser would use gradients that were not reduced: "
                f"{self._how_to_reduce} between the last backward and optimizer.step()"
            )

    def check_no_copy(self, parameters: Sequence[nn.Parameter]) -> None:
        """Check that an optimiser does not train a copy of the model; called before its step.

        Raises:
            ValueError: if it does.
        """

    _how_to_reduce = "call mount.reduce()"

    # One step.

    def _begin_step(self, scale: scales.LossScale | None) -> Step:
        factor = self._loss_scale or scales.factor_of(scale)
        return Step(self.wire, self._lr, is_only=len(self._flats) == 1, loss_scale=factor)

    def _end_step(self, step: Step) -> None:
        step.end()
        self._lr = self._loss_scale = None
        self._unreduced.clear()
        dense_bytes = sum(flat.grad_N.nbytes for flat in self._flats)
        ledger = self.wire.ledger.since(self._ledger_before)
        self.last_step = of_step(ledger, dense_bytes, skipped=step.skipped)
        if step.skipped:
            self._log.add(ledger, 0.0)
        else:
            reports = [(flat.compressed.numel, flat.feedback.reducer.report()) for flat in self._flats]
            self._log.add(ledger, self.density, reports, [flat.seconds for flat in self._flats])
        self.total += self.last_step
        self._ledger_before = self.wire.ledger.copy()


def maker(reducer: Method, options: Mapping[str, Any]) -> Callable[[], Reducer]:
    """Return a function that creates a new reducer for each flat gradient.

    Raises:
        ValueError: if the reducer or an option is unknown.
    """
    if isinstance(reducer, str):
        make = registry.load("reducers", reducer)
        checked = registry.check_options("reducers", reducer, dict(options))
        return lambda: make(**checked)
    if isinstance(reducer, Reducer):
        if options:
            raise ValueError(
                f"options {', '.join(options)} are given with an instance of a reducer: pass them to its "
                "constructor, or pass the reducer's name"
            )
        return lambda: copy.deepcopy(reducer)
    if not callable(reducer):
        raise ValueError(
            f"the reducer {reducer!r}: expected a name such as 'topk', a Reducer, or a callable for one"
        )
    return lambda: reducer(**options)
