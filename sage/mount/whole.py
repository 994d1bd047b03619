"""The mount for any loop: the whole model's gradient, reduced after backward."""
# N = elements of the flat gradient

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sage.comm.guest import GuestWire
from sage.memory import MemoryOptions
from sage.mount.base import Method, Mount, maker
from sage.mount.flat import Flat
from sage.reduce import Memory, Reducer


class WholeModel(Flat):
    """All gradients of a model as views of one flat vector, and a reducer over it.

    Backward accumulates straight into the vector, so nothing is copied before or after the reduction. Frozen
    parameters have no place in it; unused ones contribute zeros.

    Args:
        model: Its parameters' `.grad` are replaced; use `zero_()` here, never `zero_grad(set_to_none=True)`.
        reducer: The method, not yet bound.
        memory: Error feedback; by default what the reducer asks for.
        memory_options: Its β, γ and so on, as of `sage.memory.ErrorFeedback`.
        grouping: The unit over which the reducer decides; by default what it asks for.
        min_compress: Tensors of fewer elements go dense, unless the reducer takes them too.

    Raises:
        ValueError: where no parameter requires a gradient, or their dtypes or devices differ.
    """

    def __init__(
        self,
        model: nn.Module,
        reducer: Reducer,
        *,
        memory: Memory | None = None,
        memory_options: MemoryOptions | None = None,
        grouping: str | None = None,
        min_compress: int = 0,
    ) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not named:
            raise ValueError(
                "the model has no parameter that requires a gradient: there is nothing to reduce"
            )
        kinds = sorted({f"{p.dtype} on {p.device}" for p in named.values()})
        if len(kinds) > 1:
            raise ValueError(
                f"the model's parameters are {', '.join(kinds)}, and one flat gradient is of one kind: "
                "cast the model, or use sage.ddp_hook, which makes buckets of each kind"
            )
        first = next(iter(named.values()))
        super().__init__(
            [(name, p.shape) for name, p in named.items()],
            reducer,
            dtype=first.dtype,
            device=first.device,
            memory=memory,
            memory_options=memory_options,
            grouping=grouping,
            min_compress=min_compress,
        )
        self.parameters_in_order = [named[span.name] for span in self.layout.spans]
        for parameter, view in zip(self.parameters_in_order, self.views().values(), strict=True):
            parameter.grad = view

    def zero_(self) -> None:
        """Forget the gradient, before the next backward."""
        self.grad_N.zero_()


class ModelMount(Mount):
    """The whole model's gradient, reduced where the script says so.

    Made by `sage.reduce_model`. Use its `zero_grad()` in place of the optimiser's, and call `reduce()`
    between the last backward and the optimiser's step.
    """

    def __init__(self, whole: WholeModel, wire: GuestWire) -> None:
        super().__init__(wire, [whole])
        self._whole = whole

    def zero_grad(self) -> None:
        """Forget the gradient, before the next backward."""
        self._whole.zero_()

    def observe(self, squares: Mapping[str, Tensor]) -> None:
        """Tell a reducer that asks for it (`variance`) the squares of what each sample adds to the gradient.

        Args:
            squares: Σ_z (∂f_z/B)² of each parameter, by its name and in its shape, over the samples z of this
                rank's batch of B, or over its parts; before `reduce()`.

        Raises:
            ValueError: where those of a parameter are missing, or of another shape.
        """
        spans = self._whole.compressed.spans
        for span in spans:
            told = tuple(squares[span.name].shape) if span.name in squares else "none"
            if told != span.shape:
                raise ValueError(f"squares of {span.name}: {told}, where its shape is {span.shape}")
        square_C = torch.cat([squares[span.name].reshape(-1) for span in spans])
        self._whole.feedback.reducer.observe(square_C.to(self._whole.grad_C))

    def reduce(self) -> None:
        """Replace every `.grad` by the mean over ranks of what was sent."""
        with torch.no_grad():
            self._whole(self.wire)


def reduce_model(
    model: nn.Module,
    reducer: Method,
    *,
    group: dist.ProcessGroup | None = None,
    memory: Memory | None = None,
    memory_options: MemoryOptions | None = None,
    grouping: str | None = None,
    min_compress: int = 0,
    timeout: float = 300.0,
    guard: bool = False,
    **options: Any,
) -> ModelMount:
    """Mount a reducer on a plain model, in a script that has called `init_process_group`.

    All ranks begin with the group's first's parameters and buffers.

    Args:
        model: Not wrapped in anything.
        reducer: A reducer's name, with its options as further keywords; or a reducer, or what makes one.
        group: The ranks that train the model together; by default all.
        memory: Error feedback; by default what the reducer asks for.
        memory_options: Its β, γ and so on, as of `sage.memory.ErrorFeedback`.
        grouping: The unit over which the reducer decides; by default what it asks for.
        min_compress: Tensors of fewer elements go dense, unless the reducer takes them too.
        timeout: Seconds after which a collective that has not come back is an error on every rank.
        guard: Compare every collective between the ranks before it is made.

    Raises:
        ValueError: for a model, reducer or option that does not fit; says what would.
        WireError: where not all ranks come within the time-out.
    """
    make = maker(reducer, options)
    whole = WholeModel(
        model,
        make(),
        memory=memory,
        memory_options=memory_options,
        grouping=grouping,
        min_compress=min_compress,
    )
    wire = GuestWire(group, device=whole.grad_N.device, timeout=timeout, guard=guard)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(wire.broadcast(tensor.detach().contiguous(), kind="state"))
    return ModelMount(whole, wire)
