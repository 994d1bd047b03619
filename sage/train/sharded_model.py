"""A model whose parameters FSDP2's `fully_shard` divides between neighbouring ranks."""
# S = ranks that share a replica

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from sage.comm.subgroup import SubgroupWire
from sage.comm.wire import Wire
from sage.mount.fsdp_collectives import ShardGather, ShardScatter
from sage.reduction.shard_exchange import ShardOptions
from sage.reduction.shard_unit import ShardUnit

MIB = 2**20


class ShardedModel:
    """A model that is sharded over the ranks of a wire, and this rank's part of its parameters.

    The parameters of a unit are gathered, and their gradient is reduced, together. A module is a unit if its
    parameters, without those of units within it, have at least `unit_mb` MiB; `root` is the last unit.

    A parameter is divided by its first dimension; of R rows, each rank has ⌈R/S⌉, the last ones fewer or
    none. Between forward and backward it is not divided again.

    Args:
        model: The model; its parameters are replaced by FSDP2's.
        root: A module that contains the model, and whose forward pass computes the loss.
        unit_mb: Minimum size of a unit, in MiB.
        within: Communicates between the ranks that share a replica; FSDP2's collectives are counted in its
            ledger as `shards`.
        levels: Wires within a node and between nodes, if the reduce-scatter has two levels.
        options: Formats of FSDP2's collectives.
        device: The device of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        root: nn.Module,
        *,
        unit_mb: float,
        within: SubgroupWire,
        levels: Sequence[Wire] = (),
        options: ShardOptions | None = None,
        device: torch.device,
    ) -> None:
        # About a view that a later operation changes in place: FSDP2 would not gather parameters again before
        # backward. Here it never has to.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        assert within.group is not None
        self._model, self._within, self._device = model, within, device
        self._mesh = DeviceMesh.from_group(within.group, device.type)
        options = options or ShardOptions()
        self._modules: list[FSDPModule] = []
        for module in [*units(model, unit_mb * MIB), root]:
            fsdp_module = fully_shard(module, mesh=self._mesh, reshard_after_forward=False)
            assert isinstance(fsdp_module, FSDPModule)
            self._modules.append(fsdp_module)
        self.root = root
        # Initialised with the root, before a unit runs on its own in an evaluation.
        self._modules[-1]._get_fsdp_state()._lazy_init()
        self.units = [
            (module, group)
            for module in self._modules
            for group in module._get_fsdp_state()._fsdp_param_groups
        ]
        """Each unit that has parameters, with FSDP2's group of them."""
        self._exchanges = [ShardUnit(options, within, levels, number) for number in range(len(self.units))]
        self._saved: list[Any] = []
        for (unit, _), exchange in zip(self.units, self._exchanges, strict=True):
            unit.set_custom_all_gather(ShardGather(exchange.gather))
            unit.set_custom_reduce_scatter(ShardScatter(exchange.scatter))
            # A unit that a forward pass does not use is reduced as zeros.
            unit.set_reduce_scatter_unused_params(True, recurse=False)
        sharded = dict(model.named_parameters())
        self.names = {p: name for name, p in sharded.items()}
        with torch.no_grad():
            self.local = {
                name: nn.Parameter(_local(p), requires_grad=p.requires_grad) for name, p in sharded.items()
            }
        """This rank's part of each parameter by name, in the memory of FSDP2's own."""
        self._shapes = {id(self.local[name]): p.shape for name, p in sharded.items()}
        with self.gathered():  # so that FSDP2 knows every unit, used or not, before the first backward pass
            pass

    def sync(self, is_on: bool) -> None:
        """Whether the next backward pass reduces the gradient; otherwise it is kept for a later one."""
        self._modules[-1].set_requires_gradient_sync(is_on)

    def begin_step(self, loss_scale: float, *, may_skip: bool) -> None:
        """Convert the state of FSDP2's collectives to this loss scale; keep it if `put_back` may follow."""
        self._saved = [exchange.save() for exchange in self._exchanges] if may_skip else []
        for exchange in self._exchanges:
            exchange.scatter.set_loss_scale(loss_scale)

    def put_back(self) -> None:
        """Restore the state of FSDP2's collectives as before `begin_step`."""
        for exchange, saved in zip(self._exchanges, self._saved, strict=True):
            exchange.put_back(saved)

    def state_dict(self) -> dict[str, Any]:
        """State of FSDP2's collectives on this rank, by number of the unit; empty if they are `exact`."""
        return {str(i): state for i, each in enumerate(self._exchanges) if (state := each.state_dict())}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; a collective call."""
        for i, exchange in enumerate(self._exchanges):
            exchange.load_state_dict(saved.get(str(i), {}), self._device)

    def forget(self) -> None:
        """Begin the state of FSDP2's collectives anew, as after the parameters were replaced."""
        for exchange in self._exchanges:
            exchange.forget()

    def drop_gradients(self) -> None:
        """Forget the gradients that FSDP2 has written."""
        for _, group in self.units:
            for p in group.fsdp_params:
                p.sharded_param.grad = None

    def take_unreduced(self) -> list[Tensor]:
        """Return the gradients of backward passes that were not reduced, and forget them."""
        gradients = []
        for _, group in self.units:
            for p in group.fsdp_params:
                gradients += [p.unsharded_param.grad] if p.unsharded_param.grad is not None else []
                p.unsharded_param.grad = None
        return gradients

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep all parameters gathered, so that forward passes need no communication; a collective call."""
        for module in self._modules:
            module.unshard()
        try:
            yield
        finally:
            for module in self._modules:
                module.reshard()

    # Checkpoints hold whole tensors, so that rank 0's file of the shared state is complete.

    def whole(self, shared: dict[str, Any], trained: Sequence[Tensor]) -> dict[str, Any]:
        """Return the shared state of a checkpoint with whole tensors; a collective call."""

        def joined(x: Tensor) -> Tensor:
            return self._joined(_local(x), x.shape) if isinstance(x, DTensor) else x

        def of_optimizer(x: Any, shape: torch.Size) -> Any:
            return self._joined(x, shape) if isinstance(x, Tensor) and x.dim() else x

        return self._converted(shared, trained, lambda _, x: joined(x), of_optimizer)

    def part(self, shared: dict[str, Any], trained: Sequence[Tensor]) -> dict[str, Any]:
        """Return this rank's part of what `whole` returned; tensors of other shapes stay as they are."""
        sharded = {name: x for name, x in self._model.state_dict().items() if isinstance(x, DTensor)}

        def divided(name: str, x: Any) -> Any:
            part = sharded.get(name)
            if part is None or not isinstance(x, Tensor) or x.shape != part.shape:
                return x
            rows = self._split(x.to(part.device)).view_as(_local(part))
            return DTensor.from_local(
                rows, self._mesh, [Shard(0)], run_check=False, shape=part.shape, stride=part.stride()
            )

        def of_optimizer(x: Any, shape: torch.Size) -> Any:
            return self._split(x) if isinstance(x, Tensor) and x.dim() and x.shape == shape else x

        return self._converted(shared, trained, divided, of_optimizer)

    def _converted(
        self,
        shared: dict[str, Any],
        trained: Sequence[Tensor],
        of_model: Callable[[str, Any], Any],
        of_optimizer: Callable[[Any, torch.Size], Any],
    ) -> dict[str, Any]:
        average, optimizer = shared["average"], shared["optimizer"]
        means = {name: of_model(name, x) for name, x in average["means"].items()}
        shapes = [self._shapes[id(p)] for p in trained]
        state = {
            index: {name: of_optimizer(x, shapes[index]) for name, x in state.items()}
            for index, state in optimizer["state"].items()
        }
        return {
            **shared,
            "model": {name: of_model(name, x) for name, x in shared["model"].items()},
            "average": {**average, "means": means},
            "optimizer": {**optimizer, "state": state},
        }

    def _joined(self, part: Tensor, shape: torch.Size) -> Tensor:
        num = self._within.world_size
        if num == 1:
            return part
        padded = part.new_zeros(math.ceil(shape[0] / num), *shape[1:])
        if part.numel():
            padded[: part.shape[0]] = part
        (rows_SR,) = self._within.gather(state=padded)
        return rows_SR.flatten(0, 1)[: shape[0]].clone()

    def _split(self, whole: Tensor) -> Tensor:
        most = math.ceil(whole.shape[0] / self._within.world_size)
        return whole[self._within.rank * most : (self._within.rank + 1) * most].clone()


def units(model: nn.Module, unit_bytes: float) -> list[nn.Module]:
    """Return the modules below the model that are units, inner ones first.

    A module that shares a parameter with one outside it is not a unit, and neither is a container without its
    own forward pass.
    """
    uses = Counter(p for _, p in model.named_parameters(remove_duplicate=False))
    inner: list[nn.Module] = []

    def visit(module: nn.Module) -> int:
        """Number of bytes of a module's parameters that are in no unit yet."""
        rest = sum(visit(child) for child in module.children())
        rest += sum(p.nbytes for p in module.parameters(recurse=False))
        inside = Counter(p for _, p in module.named_parameters(remove_duplicate=False))
        is_closed = all(uses[p] == count for p, count in inside.items())
        has_forward = not isinstance(module, nn.ModuleList | nn.ModuleDict)
        if module is model or rest < unit_bytes or not is_closed or not has_forward:
            return rest
        inner.append(module)
        return 0

    visit(model)
    return inner


def num_reduced(model: nn.Module, unit_bytes: float) -> int:
    """Number of units, the last one included, that have a parameter that requires a gradient."""
    seen: set[nn.Parameter] = set()
    count = 0
    for module in [*units(model, unit_bytes), model]:
        parameters = {p for p in module.parameters() if p.requires_grad} - seen
        count += bool(parameters)
        seen |= parameters
    return count


def _local(x: Tensor) -> Tensor:
    """This rank's rows of a tensor."""
    assert isinstance(x, DTensor)
    return x.to_local()
