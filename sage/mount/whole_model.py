"""The gradients of a whole model as views of one flat vector."""
# N = elements of the flat gradient

import torch
from torch import Tensor, nn

from sage.comm.levels import Levels
from sage.mount.flat import Flat
from sage.mount.origins import in_whole_order
from sage.mount.parameters import (
    only_kind,
    real_shape,
    trainable,
)
from sage.reduction.error_feedback import MemoryOptions
from sage.reduction.reducer import Memory, Reducer


class WholeModel(Flat):
    """All gradients of a model as views of one flat vector, with a reducer over it.

    Backward accumulates directly into the vector, so nothing is copied before or after the reduction. The
    vector contains no frozen parameters; unused parameters contribute zeros. Complex parameters come first
    and are always compressed, because a complex view of the vector must start at an even element.

    Args:
        model: The model; the `.grad` of each parameter is replaced by a view.
        reducer: The method, not yet bound.
        memory: Error feedback; by default the reducer's own.
        memory_options: Options of the error feedback (β, γ, …); see
            `sage.reduction.error_feedback.ErrorFeedback`.
        grouping: Unit of the reducer's decisions; by default the reducer's own.
        min_compress: Tensors with fewer elements are sent dense, unless the reducer handles them too.
        levels: Reduce on two levels, over these wires; None: directly between all ranks.

    Raises:
        ValueError: if no parameter requires a gradient, or their dtypes or devices differ.
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
        levels: Levels | None = None,
    ) -> None:
        named = trainable(model)
        dtype, device = only_kind(named)
        complex_ones = {name for name, p in named.items() if p.is_complex()}
        in_order = in_whole_order(named)
        super().__init__(
            [(name, real_shape(named[name])) for name in in_order],
            reducer,
            dtype=dtype,
            device=device,
            memory=memory,
            memory_options=memory_options,
            grouping=grouping,
            min_compress=min_compress,
            always=complex_ones,
            levels=levels,
        )
        self.parameters_in_order = [named[span.name] for span in self.layout.spans]
        self._lay()
        for parameter, view in zip(self.parameters_in_order, self._places, strict=True):
            parameter.grad = view.detach()

    def zero_(self) -> None:
        """Set the gradient to zero, before the next backward."""
        self.grad_N.zero_()

    def collect(self) -> None:
        """Copy gradients that are not views of the vector into it, and make all gradients views again.

        `zero_grad()` of an optimiser or a model sets gradients to None, and the next backward allocates new
        ones; `model.half()` or `.to()` moves gradients to new memory. A parameter without a gradient
        contributes zeros.

        Raises:
            ValueError: if the shape of a parameter has changed, or the parameters now differ in dtype or
                device.
        """
        spans, parameters = self.layout.spans, self.parameters_in_order
        for span, p in zip(spans, parameters, strict=True):
            if real_shape(p) != span.shape:
                raise ValueError(
                    f"the parameter {span.name!r} has the shape {tuple(p.shape)}; its shape has changed "
                    "after mounting: mount the reducer again"
                )
        kind = only_kind({span.name: p for span, p in zip(spans, parameters, strict=True)})
        if kind != (self.grad_N.dtype, self.grad_N.device):
            self._allocate(*kind)
            self._lay()
        misplaced = [
            (p, place, self._apart(p.grad))
            for p, place in zip(parameters, self._places, strict=True)
            if not _is_at(p.grad, place)
        ]
        for p, place, grad in misplaced:
            if grad is None:
                place.zero_()
            else:
                place.copy_(grad)
            p.grad = place.detach()

    def _apart(self, grad: Tensor | None) -> Tensor | None:
        """Return a gradient as a dense tensor that shares no memory with the vector, before it is written."""
        if grad is None or grad.layout != torch.strided:
            return None if grad is None else grad.to_dense()
        memory = self.grad_N.untyped_storage().data_ptr()
        return grad.clone() if grad.untyped_storage().data_ptr() == memory else grad

    def forget(self) -> None:
        """Set the flat gradient to zero, and set each `.grad` that is not a view of it to None."""
        self.zero_()
        for p, place in zip(self.parameters_in_order, self._places, strict=True):
            if not _is_at(p.grad, place):
                p.grad = None

    def _lay(self) -> None:
        """Make the view of the vector for each parameter's gradient, in the parameter's shape and dtype.

        `.grad` is an alias of the view, because `model.half()` moves the tensor in `.grad` to other memory.
        """
        self._places = [
            torch.view_as_complex(view) if p.is_complex() else view
            for p, view in zip(self.parameters_in_order, self.views().values(), strict=True)
        ]


def _is_at(grad: Tensor | None, place: Tensor) -> bool:
    """Whether a gradient has the same memory, strides, dtype and device as a view of the vector."""
    return (
        grad is not None
        and grad.layout == torch.strided
        and grad.data_ptr() == place.data_ptr()
        and grad.stride() == place.stride()
        and (grad.dtype, grad.device) == (place.dtype, place.device)
    )
