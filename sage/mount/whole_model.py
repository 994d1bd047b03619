"""All gradients of a model as views of one flat vector."""
# N = elements of the flat gradient

import torch
from torch import Tensor, nn

from sage.mount.flat import Flat
from sage.mount.parameters import (
    only_kind,
    real_shape,
    trainable,
)
from sage.reduction.error_feedback import MemoryOptions
from sage.reduction.reducer import Memory, Reducer


class WholeModel(Flat):
    """All gradients of a model as views of one flat vector, and a reducer over it.

    Backward accumulates straight into the vector, so nothing is copied before or after the reduction. Frozen
    parameters have no place in it; unused ones contribute zeros. Complex parameters come first and are
    always compressed: a complex view of the vector has to begin at an even element.

    Args:
        model: Its parameters' `.grad` are replaced by views.
        reducer: The method, not yet bound.
        memory: Error feedback; by default what the reducer asks for.
        memory_options: Its β, γ and so on, as of `sage.reduction.error_feedback.ErrorFeedback`.
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
        named = trainable(model)
        dtype, device = only_kind(named)
        complex_ones = {name for name, p in named.items() if p.is_complex()}
        in_order = sorted(named, key=lambda name: name not in complex_ones)
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
        )
        self.parameters_in_order = [named[span.name] for span in self.layout.spans]
        self._lay()
        for parameter, view in zip(self.parameters_in_order, self._places, strict=True):
            parameter.grad = view.detach()

    def zero_(self) -> None:
        """Set the gradient to zero, before the next backward."""
        self.grad_N.zero_()

    def collect(self) -> None:
        """Take the gradients that are no views of the vector into it, and make all of them views again.

        `zero_grad()` of an optimiser or a model sets gradients to None, and the next backward makes new ones;
        `model.half()` or `.to()` gives the old ones new memory. What has no gradient contributes zeros.

        Raises:
            ValueError: where a parameter's shape has changed, or parameters now differ in dtype or device.
        """
        spans, parameters = self.layout.spans, self.parameters_in_order
        for span, p in zip(spans, parameters, strict=True):
            if real_shape(p) != span.shape:
                raise ValueError(
                    f"the parameter {span.name!r} has the shape {tuple(p.shape)}, and had another when the "
                    "reducer was mounted: mount it again"
                )
        kind = only_kind({span.name: p for span, p in zip(spans, parameters, strict=True)})
        if kind != (self.grad_N.dtype, self.grad_N.device):
            self._allocate(*kind)
            self._lay()
        strays = [
            (p, place, self._apart(p.grad))
            for p, place in zip(parameters, self._places, strict=True)
            if not _is_at(p.grad, place)
        ]
        for p, place, grad in strays:
            if grad is None:
                place.zero_()
            else:
                place.copy_(grad)
            p.grad = place.detach()

    def _apart(self, grad: Tensor | None) -> Tensor | None:
        """A gradient as a dense tensor without memory of the vector, which is about to be written."""
        if grad is None or grad.layout != torch.strided:
            return None if grad is None else grad.to_dense()
        memory = self.grad_N.untyped_storage().data_ptr()
        return grad.clone() if grad.untyped_storage().data_ptr() == memory else grad

    def forget(self) -> None:
        """Set the gradient to zero, and to None what of it is no view of the vector."""
        self.zero_()
        for p, place in zip(self.parameters_in_order, self._places, strict=True):
            if not _is_at(p.grad, place):
                p.grad = None

    def _lay(self) -> None:
        """The place of each parameter's gradient in the vector, in its own shape and dtype.

        `.grad` is an alias of it: `model.half()` gives the tensor in `.grad` other memory.
        """
        self._places = [
            torch.view_as_complex(view) if p.is_complex() else view
            for p, view in zip(self.parameters_in_order, self.views().values(), strict=True)
        ]


def _is_at(grad: Tensor | None, place: Tensor) -> bool:
    """Whether a gradient lies at a place, though it may be another tensor object."""
    return (
        grad is not None
        and grad.layout == torch.strided
        and grad.data_ptr() == place.data_ptr()
        and grad.stride() == place.stride()
        and (grad.dtype, grad.device) == (place.dtype, place.device)
    )
