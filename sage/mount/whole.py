"""The mount for any training loop: the whole model's gradient is reduced after backward."""
# N = elements of the flat gradient

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from sage.comm.levels import Levels
from sage.comm.packing import pack
from sage.comm.wire import Wire
from sage.mount.agreement import check_same, setup_lines
from sage.mount.base import Method, Mount, maker
from sage.mount.copies import Copies
from sage.mount.levels import Hierarchy, attach
from sage.mount.optimizers import check_free
from sage.mount.parameters import (
    check_memory,
    check_plain,
    check_unchanged,
    only_kind,
    trainable,
)
from sage.mount.signature import not_a_hook
from sage.mount.whole_model import WholeModel
from sage.reduction.error_feedback import MemoryOptions
from sage.reduction.reducer import Memory


class ModelMount(Mount):
    """The whole model's gradient, reduced where the script calls `reduce()`; created by `sage.reduce_model`.

    Call `reduce()` between the last backward and the optimiser's step. Any `zero_grad()` may be used; the
    mount's own avoids copying the gradients.
    """

    def __init__(self, model: nn.Module, whole: WholeModel, wire: Wire) -> None:
        named = {span.name: p for span, p in zip(whole.layout.spans, whole.parameters_in_order, strict=True)}
        super().__init__(model, wire, [whole], named)
        self._whole = whole
        self._squares: Tensor | None = None
        self._left: tuple[int, int] | None = None
        """Address and version of the gradient after `reduce()`; None after an optimiser's step."""
        self._was_idle = False
        """Whether nothing had written the gradient between mounting or zeroing and the last `reduce()`."""
        self._unscaled: frozenset[int] = frozenset()
        """The `id` of each optimiser for which a scaler had unscaled gradients before the last `reduce()`."""
        self._copies = Copies(model, named)

    def zero_grad(self) -> None:
        """Set the gradient to zero, before the next backward."""
        self._whole.forget()
        self._unreduced.clear()

    def close(self) -> None:
        self._copies.forget()
        super().close()

    def check(self) -> None:
        check_unchanged(self._named, self._model)

    def observe(self, squares: Mapping[str, Tensor]) -> None:
        """Pass the squares of the samples' gradient contributions to a reducer that needs them (`variance`).

        Args:
            squares: Σ_z (∂f_z/B)² of each parameter, by its name and in its shape, over the samples z of this
                rank's batch of B, or over its parts; before `reduce()`. With a loss scale, of the scaled
                loss.

        Raises:
            ValueError: if those of a parameter are missing or have another shape.
        """
        spans = self._whole.compressed.spans
        for span in spans:
            shape = tuple(squares[span.name].shape) if span.name in squares else "none"
            if shape != span.shape:
                raise ValueError(f"squares of {span.name} have shape {shape}; expected {span.shape}")
        square_C = torch.cat([squares[span.name].reshape(-1) for span in spans])
        self._squares = square_C.to(self._whole.grad_C)

    def reduce(self) -> None:
        """Replace every `.grad` by the mean over ranks of what was sent.

        If a gradient is not finite on any rank, nothing is reduced, no state changes, and every `.grad`
        becomes NaN on all ranks: `torch.amp.GradScaler` then skips the step on all of them.

        Raises:
            ValueError: if a parameter was frozen, unfrozen, replaced, added or removed since mounting, or if
                the gradients have been reduced already.
        """
        self.check()
        with torch.no_grad():
            self._whole.collect()
            self._check_new()
            scale = self._unreduced.loss_scale
            self._unscaled = frozenset() if scale is None else scale.unscaled()
            step = self._begin_step(scale)
            step.reduce(self._whole, squares_C=self._squares)
            self._squares = None
            self._end_step(step)
            self._left = self._version()

    def _check_new(self) -> None:
        """Refuse to reduce a mean again: the residual would be sent twice.

        Every write to the gradient, or to a view of it, increments torch's version counter.
        """
        if not self._unreduced.is_set and self._version() == self._left:
            raise ValueError(
                "the gradients have already been reduced: call mount.reduce() once between backward and "
                "optimizer.step(), and after further backward passes"
            )
        self._was_idle = not self._unreduced.is_set and not bool(self._whole.grad_N.any())

    def _version(self) -> tuple[int, int]:
        return self._whole.grad_N.data_ptr(), self._whole.grad_N._version

    def check_reduced(self, optimizer: Optimizer) -> None:
        super().check_reduced(optimizer)
        if id(optimizer) in self._unscaled:
            raise ValueError(
                "the gradients were divided by the loss scale before they were reduced, so that an overflow "
                "on one rank is not known to the others: call mount.reduce() between backward and "
                "scaler.unscale_(optimizer)"
            )
        self._left = None

    def check_no_copy(self, parameters: Sequence[nn.Parameter]) -> None:
        if not self._was_idle:
            return
        for p in parameters:
            name = self._copies.name_of(p) if p.grad is not None else None
            if name is not None:
                raise ValueError(
                    f"the optimiser has a deepcopy of the parameter {name!r}, but the reducer is mounted on "
                    "the original, whose gradient no backward has computed: mount the reducer on the model "
                    "that is trained, or create the optimiser from the mounted model's parameters()"
                )


@not_a_hook
def reduce_model(
    model: nn.Module,
    reducer: Method,
    *,
    group: dist.ProcessGroup | None = None,
    memory: Memory | None = None,
    memory_options: MemoryOptions | None = None,
    grouping: str | None = None,
    min_compress: int = 0,
    hierarchy: Hierarchy = "flat",
    ranks_per_node: int | None = None,
    timeout: float = 300.0,
    guard: bool = False,
    **options: Any,
) -> ModelMount:
    """Mount a reducer on a plain model, in a script that has called `init_process_group`.

    The parameters and buffers of the group's first rank are copied to all ranks.

    Args:
        model: The model, without any wrapper.
        reducer: A reducer's name, with its options as further keywords; or a reducer, or a callable that
            creates one.
        group: The ranks that train the model together; by default all.
        memory, memory_options, grouping, min_compress, timeout, guard: As in `sage.ddp_hook`.
        hierarchy: `flat`: the reducer runs between all ranks; `node`: gradients are averaged within each node
            first, and the reducer runs between nodes, on each rank's part (docs/explanation/hierarchy.md).
        ranks_per_node: Number of neighbouring ranks that count as a node; by default those of one host do.

    Raises:
        ValueError: if the model, reducer or an option does not fit; the message says what would.
        WireError: if not all ranks arrive within the timeout.
    """
    make = maker(reducer, options)
    check_plain(model)
    named = trainable(model)
    check_free(named)
    check_memory(model)

    def made(levels: Levels | None) -> WholeModel:
        return WholeModel(
            model,
            make(),
            memory=memory,
            memory_options=memory_options,
            grouping=grouping,
            min_compress=min_compress,
            levels=levels,
        )

    wire, whole = attach(
        made,
        group,
        hierarchy=hierarchy,
        ranks_per_node=ranks_per_node,
        device=only_kind(named)[1],
        timeout=timeout,
        guard=guard,
    )
    check_same(wire, setup_lines([whole], reducer, options))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            copy_from_first(tensor, wire)
    mount = ModelMount(model, whole, wire)
    mount.describe(
        reducer,
        options,
        memory_options=memory_options,
        grouping=grouping,
        min_compress=min_compress,
        hierarchy=None if hierarchy == "flat" else hierarchy,
        ranks_per_node=ranks_per_node,
    )
    return mount


def copy_from_first(x: Tensor, wire: Wire) -> None:
    """Set a tensor of any dtype to the first rank's."""
    if x.numel() == 0:
        return
    whole = x.detach().resolve_conj().resolve_neg().contiguous()
    wire.broadcast(pack([whole]), kind="state")  # as bytes, since a backend may not support the dtype
    if whole.data_ptr() != x.data_ptr():
        x.copy_(whole)
