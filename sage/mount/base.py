"""What a script gets from every mount: the wire and its ledger, state by parameter, the epoch's begin."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from sage import registry
from sage.comm.wire import Wire
from sage.mount import state
from sage.mount.flat import Flat
from sage.reduce import Reducer

Method = str | Reducer | Callable[..., Reducer]
"""A reducer as a script says it: its name, one that is not bound yet, or what makes one."""


class Mount:
    """A reducer mounted on a model of a script's own."""

    def __init__(self, wire: Wire, flats: Sequence[Flat]) -> None:
        self.wire = wire
        """Its `ledger` has counted every byte."""
        self._flats = flats

    @property
    def density(self) -> float:
        """The share of the compressed elements that the last reduction has sent, averaged over ranks."""
        sizes = [flat.compressed.numel for flat in self._flats]
        sent = sum(flat.density * size for flat, size in zip(self._flats, sizes, strict=True))
        return sent / max(1, sum(sizes))

    def begin_step(self, lr: float) -> None:
        """Tell the memory of a step's learning rate, before its backward; `lr_ratio` asks for it."""
        for flat in self._flats:
            flat.feedback.begin_step(lr)

    def begin_epoch(self, epoch: int, lr: float) -> None:
        """Tell reducers with a schedule of an epoch, before its first step and on every rank."""
        for flat in self._flats:
            flat.feedback.reducer.begin_epoch(epoch, lr, self.wire)

    def state_dict(self) -> state.State:
        """What this rank has to save beside the model, by the name of the parameter; it differs by rank."""
        return {name: held for flat in self._flats for name, held in state.by_parameter(flat).items()}

    def load_state_dict(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on from what `state_dict` gave on this rank.

        Raises:
            ValueError: where it is of other parameters, or of another reducer.
        """
        own = {span.name for flat in self._flats for span in flat.compressed.spans}
        if own != saved.keys():
            missing, beyond = sorted(own - saved.keys()), sorted(saved.keys() - own)
            raise ValueError(
                f"the state is of other parameters: {missing or 'none'} missing, {beyond or 'none'} unknown; "
                "give the mount the model and the min_compress that it was saved with"
            )
        for flat in self._flats:
            state.restore(flat, saved)

    def close(self) -> None:
        """Wait for every rank, then let go of the wire. Need not be called before a script ends."""
        self.wire.close()


def maker(reducer: Method, options: Mapping[str, Any]) -> Callable[[], Reducer]:
    """What makes a new reducer for each flat gradient.

    Raises:
        ValueError: for a name or an option that there is not.
    """
    if isinstance(reducer, str):
        make = registry.load("reducers", reducer)
        checked = registry.check_options("reducers", reducer, dict(options))
        return lambda: make(**checked)
    if isinstance(reducer, Reducer):
        if options:
            raise ValueError(
                f"options {', '.join(options)} beside a reducer that is made already: give them to it, "
                "or say its name"
            )
        return lambda: copy.deepcopy(reducer)
    return lambda: reducer(**options)


def check_dense(model: nn.Module) -> None:
    """Refuse a model whose gradients are not all dense.

    Raises:
        ValueError: where it has a sparse embedding.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ValueError(
                f"{name or 'the model'} has sparse gradients, which are no part of a bucket: "
                "say sparse=False, or use sage.reduce_model, which makes them dense"
            )
