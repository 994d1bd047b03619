"""The base class of optimisers whose ranks exchange what they step with, instead of the gradient.

A reducer is mounted between backward and the optimiser, so that it sees gradients. Some methods compress
another quantity: a momentum, or a change of the parameters. They are optimisers that communicate: each rank
passes its own gradient, and `step()` is a collective call.
"""
# N = elements of all parameters, W = ranks

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from sage.comm.attached import AttachedWire
from sage.comm.wire import Wire
from sage.mount.agreement import check_same
from sage.mount.optimizers import check_free
from sage.mount.whole import copy_from_first
from sage.optim.gradients import num_not_finite, own_gradients
from sage.optim.parameters import check_parameters
from sage.optim.recorded import Recorded
from sage.reduction.layout import Layout


class ReducingOptimizer(Recorded):
    """A torch optimizer that communicates in `step()`; the gradients must be this rank's own.

    Without a `wire`, it is created in a script that has called `init_process_group`: the parameters of the
    group's first rank are copied to all ranks. The model must have no wrapper that reduces gradients, such as
    DistributedDataParallel. Buffers are not copied. A parameter without a gradient counts as one whose
    gradient is 0.

    A subclass creates its state in `__init__`, by `new_shared` and `new_own`, and defines `update`. State
    that is equal on all ranks is in `state` and in `state_dict()`, by parameter. State that differs between
    ranks, such as the error of a compression, is in `own` and in `own_state_dict()`.

    Args:
        params: The parameters, or groups of them, or named parameters, as `torch.optim` takes them; float32.
        defaults: Options that a group may have its own values of.
        settings: Options of the whole optimiser.
        group: The ranks that train the model together; by default all.
        timeout: Seconds after which a collective that has not completed is an error on every rank.
        guard: Whether the ranks compare their calls before each collective.
        wire: A communicator. The caller then checks that the gradients of all ranks are finite and the
            parameters equal.

    Raises:
        ValueError: if a parameter is not a dense float32 tensor, or ranks have different parameters or
            options.
        sage.comm.transport.WireError: if not all ranks arrive within the timeout.
    """

    own_is_averaged = False
    """Whether other numbers of ranks continue with the mean of the states of all ranks; otherwise with 0."""
    _step_supports_amp_scaling = True  # torch.amp.GradScaler then calls step() on all ranks, also to skip it

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        settings: Mapping[str, Any],
        group: dist.ProcessGroup | None = None,
        timeout: float = 300.0,
        guard: bool = False,
        wire: Wire | None = None,
    ) -> None:
        self._is_built = False
        super().__init__(params, defaults)
        self._is_built = True
        self.parameters: list[nn.Parameter] = [p for each in self.param_groups for p in each["params"]]
        """The parameters of all groups; the flat vectors have their order."""
        names = [name for each in self.param_groups for name in each.get("param_names", ())]
        if len(set(names)) != len(self.parameters):
            names = [f"parameter {number}" for number in range(len(self.parameters))]
        named = dict(zip(names, self.parameters, strict=True))
        self.device = check_parameters(named)
        self.layout = Layout.of((name, p.shape) for name, p in named.items())
        """Position of each parameter in a flat vector of N elements."""
        self._checks = wire is None
        if wire is None:
            check_free(named)
            wire = AttachedWire(group, device=self.device, timeout=timeout, guard=guard)
            check_same(wire, self._lines(settings))
            with torch.no_grad():
                for p in self.parameters:
                    copy_from_first(p, wire)
        self.begin_record(wire, settings)
        self.num_steps = torch.zeros((), dtype=torch.int64)
        """Number of steps taken; the same tensor is `step` in the state of each parameter."""
        self.own: dict[str, Tensor] = {}
        """State of this rank, by name."""
        for p in self.parameters:
            self.state[p]["step"] = self.num_steps

    # What a subclass defines and uses.

    @abstractmethod
    def update(self, gradients: list[Tensor]) -> None:
        """Take one step; the collective calls are in here. `num_steps` already counts it.

        Args:
            gradients: This rank's gradient of each of `parameters`, finite on all ranks; not to be modified.
        """

    def new_shared(self, name: str) -> Tensor:
        """Return a flat vector (N) of zeros, whose parts are `name` in the state of each parameter."""
        x_N = self.new_vector(self.layout.numel)
        for p, part in zip(self.parameters, self.views(x_N), strict=True):
            self.state[p][name] = part
        return x_N

    def new_own(self, name: str, numel: int) -> Tensor:
        """Return a vector of zeros that is state of this rank."""
        self.own[name] = self.new_vector(numel)
        return self.own[name]

    def new_vector(self, numel: int) -> Tensor:
        """Return a vector of zeros on the parameters' device."""
        return torch.zeros(numel, device=self.device)

    def views(self, x_N: Tensor) -> list[Tensor]:
        """The parts of a flat vector in the shapes of the parameters, sharing its memory."""
        return [x_N[span.start : span.stop].view(span.shape) for span in self.layout.spans]

    def options(self) -> list[dict[str, Any]]:
        """For each parameter, its group with the options that it has now, such as `lr`."""
        return [group for group in self.param_groups for _ in group["params"]]

    def mean(self, gradients: list[Tensor]) -> Tensor:
        """The mean over ranks as a flat vector (N), by one dense all-reduce of 4 bytes an element."""
        return self.wire.mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))

    # The interface of torch.optim.

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, a collective call; the closure, if there is one, computes loss and gradient again.

        Under `torch.amp.GradScaler`, a step in which the gradient of any rank is not finite is skipped on all
        ranks, and changes no state.

        Raises:
            ValueError: without a GradScaler, if the gradient of any rank is not finite; on all ranks.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = own_gradients(self.parameters, scale=getattr(self, "grad_scale", None))
        skipped = self._checks and self._is_skipped(gradients)
        if not skipped:
            self.num_steps += 1
            self.update(gradients)
        self.count_step(skipped=skipped)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse another group after the constructor: the flat vectors are laid out.

        Raises:
            ValueError: if the optimiser has been created.
        """
        if self._is_built:
            raise ValueError(
                f"{type(self).__name__} takes no further parameters after it was created: create a new one "
                "from all parameters"
            )
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned on any rank; the state of this rank is reset.

        The state dictionary is the same on all ranks, and of use for any number of ranks. To continue to the
        bit, call `load_own_state_dict` afterwards.

        Raises:
            ValueError: if it is that of other parameters or of another optimiser.
        """
        states = state_dict["state"]
        # Numbers in torch's own state dictionary, names in that of torch.distributed.checkpoint.
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        for key, p, span in zip(keys, self.parameters, self.layout.spans, strict=False):
            shapes = {name: list(x.shape) for name, x in self.state[p].items()}
            given = {name: list(torch.as_tensor(x).shape) for name, x in states.get(key, {}).items()}
            if given != shapes:
                raise ValueError(
                    f"the state of {span.name} has the shapes {given}; expected {shapes}: load the state of "
                    f"{type(self).__name__} for the same parameters in the same order"
                )
        kept = self.state
        super().load_state_dict(dict(state_dict))
        loaded, self.state = self.state, kept
        with torch.no_grad():
            for p in self.parameters:
                for name, x in self.state[p].items():
                    x.copy_(torch.as_tensor(loaded[p][name]))
        self.reset_own()

    # State of this rank.

    def own_state_dict(self) -> dict[str, Any]:
        """Return a copy of the state of this rank, which differs between ranks; save it once per rank."""
        copies = {name: x.clone() for name, x in self.own.items()}  # which `load_state_dict` does not reset
        return {"rank": self.wire.rank, "world_size": self.wire.world_size, **copies}

    @torch.no_grad()
    def load_own_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `own_state_dict()` returned on this rank, after `load_state_dict`.

        Raises:
            ValueError: if it is that of another rank, number of ranks, or optimiser.
        """
        place = {"rank": self.wire.rank, "world_size": self.wire.world_size}
        expected = {**place, **{name: list(x.shape) for name, x in self.own.items()}}
        given = {name: list(x.shape) if isinstance(x, Tensor) else x for name, x in state.items()}
        if given != expected:
            raise ValueError(
                f"the state of a rank is {given}; expected {expected}: load that of the same rank, or, with "
                "another number of ranks, none, so that the rank's state begins at 0"
            )
        for name, x in self.own.items():
            x.copy_(state[name])

    def averaged_own_state(self, states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the mean of what `own_state_dict()` returned on all ranks, as the state of this rank."""
        sums = {name: torch.zeros_like(x) for name, x in self.own.items()}
        count = 0
        for state in states:
            count += 1
            for name, x in sums.items():
                x += state[name].to(x.device)
        means = {name: x / max(1, count) for name, x in sums.items()}
        return {"rank": self.wire.rank, "world_size": self.wire.world_size, **means}

    @torch.no_grad()
    def reset_own(self) -> None:
        """Set the state of this rank to its initial value, which is 0 unless a subclass has another."""
        for x in self.own.values():
            x.zero_()

    # Internal.

    def _lines(self, settings: Mapping[str, Any]) -> list[str]:
        """Lines that must be equal on all ranks: the optimiser with its options, and each parameter."""
        lines = [f"{type(self).__name__}({dict(settings)})"]
        for group in self.param_groups:
            lines.append(str({name: x for name, x in group.items() if name not in ("params", "param_names")}))
        return lines + [f"{span.name} {list(span.shape)}" for span in self.layout.spans]

    def _is_skipped(self, gradients: list[Tensor]) -> bool:
        number = num_not_finite(gradients, self.wire)
        if number and not hasattr(self, "found_inf"):  # GradScaler sets it, and `grad_scale`
            raise ValueError(
                f"the gradient of {number} of {self.wire.world_size} ranks is not finite at step "
                f"{int(self.num_steps) + 1}, and nothing was changed: lower the learning rate, or use "
                "torch.amp.GradScaler, with which such steps are skipped"
            )
        return number > 0
