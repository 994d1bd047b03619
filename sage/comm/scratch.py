"""Memory that is reused in every step: new memory costs a page fault for every 4 KiB."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch:
    """Buffers by name, each of which grows to the largest requested size.

    On a GPU every tensor is new, since PyTorch's allocator reuses memory itself, by stream.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """A tensor of this shape with any contents; its memory is that of the last one of this name.

        Args:
            name: Name of the buffer.
            shape: Shape of the tensor.
            like: A tensor of its dtype and device.
        """
        if like.device.type != "cpu":
            return like.new_empty(shape)
        num = math.prod(shape)
        buffer = self._buffers.get((name, like.dtype))
        if buffer is None or buffer.numel() < num:
            self._buffers[name, like.dtype] = buffer = like.new_empty(num)
        return buffer[:num].view(shape)
