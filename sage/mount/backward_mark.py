"""What a mount knows about the gradients that backward has written since the last reduction."""

from torch import Tensor

from sage.mount.loss_scale import LossScale, current


class BackwardMark:
    """Whether backward has written a gradient since the last reduction, and of which loss scale it is."""

    is_set = False
    loss_scale: LossScale | None = None

    def set(self, parameter: Tensor) -> None:
        """Note that backward has written a parameter's gradient; a post-accumulate-grad hook."""
        self.is_set = True
        self.loss_scale = current()

    def clear(self) -> None:
        """Note that the gradients were reduced or set to zero."""
        self.is_set = False
        self.loss_scale = None
