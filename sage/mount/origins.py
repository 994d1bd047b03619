"""Where each parameter is in the vector of the whole model, whatever part of it a mount reduces."""

from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor

from sage.mount.parameters import real_shape
from sage.reduction.layout import Origin
from sage.reduction.reducer import Reducer

Shapes = Sequence[tuple[str, torch.Size]]
"""Tensors by name, in order."""


def in_whole_order(named: Mapping[str, Tensor]) -> list[str]:
    """Names of parameters in the order of `sage.mount.whole_model`: complex ones first, then the model's."""
    return sorted(named, key=lambda name: not named[name].is_complex())


def divide(
    shapes: Shapes, reducer: Reducer, min_compress: int, always: Container[str]
) -> tuple[Shapes, Shapes]:
    """Divide tensors into those that the reducer handles and those that are sent dense.

    Args:
        shapes: The tensors.
        reducer: The method.
        min_compress: Tensors with fewer elements are sent dense, unless the reducer handles them too.
        always: Names of tensors that are compressed even if they are small.
    """
    least = min_compress if reducer.spares_small else 0
    is_large = {name: shape.numel() >= least or name in always for name, shape in shapes}
    return [x for x in shapes if is_large[x[0]]], [x for x in shapes if not is_large[x[0]]]


def origins(named: Mapping[str, Tensor], reducer: Reducer, min_compress: int) -> dict[str, Origin]:
    """Where each of these parameters is in the flat vector of `sage.mount.whole_model`.

    Args:
        named: The model's parameters that are reduced, in its order; those of a sharded model with the shapes
            that they have before sharding.
        reducer: The method.
        min_compress: As in `divide`.
    """
    shapes = [(name, torch.Size(real_shape(named[name]))) for name in in_whole_order(named)]
    always = {name for name, p in named.items() if p.is_complex()}
    large, small = divide(shapes, reducer, min_compress, always)
    found: dict[str, Origin] = {}
    position = 0
    for number, (name, shape) in enumerate([*large, *small]):
        found[name] = Origin(position, number)
        position += shape.numel()
    return found


def of_shard(origin: Origin, shape: torch.Size, index: int) -> Origin:
    """Where the shard with this index is, of a parameter whose rows are divided into shards of this shape."""
    return Origin(origin.position + index * shape.numel(), origin.number)
