"""Two-way compression: the mean is encoded too, by servers, before it is sent back (`--reducer topk+server`).

Every rank is the server of a share of ⌈N/W⌉ elements, the last ones of fewer. All ranks send it their codes
of the share. It decodes them, takes the mean, adds what earlier steps did not send back, encodes the result
by the same rule, and sends the code to all ranks:

    s = r + mean_i D(c_i),   c = C(s),   r ← s − D(c)

This is how BytePS compresses (its guide on gradient compression, https://github.com/bytedance/byteps), and,
for scaled signs, dist-EF-SGD (Zheng et al., NeurIPS 2019, Algorithm 2) at a constant learning rate. Each rank
sends about two encoded vectors, whatever the number of ranks; with an all-gather of codes it receives W − 1.
"""
# N = elements of the vector, S = of a share, K = elements selected, W = ranks

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from sage.comm.alone import Alone
from sage.comm.packing import divide
from sage.comm.wire import Wire
from sage.reduction.composed import Composed
from sage.reduction.hybrid import Hybrid
from sage.reduction.layout import Layout
from sage.reduction.quantise import Parts, Quantiser
from sage.reduction.reducer import Reduced, Reducer, Sparsifier
from sage.reduction.share_codes import share_codes
from sage.reduction.two_way import cut
from sage.registry import Option, served_options
from sage.timing import phase


class Served(Composed):
    """A reducer whose servers encode the mean by the same rule, with a residual of their own.

    A server is a reducer like the ranks', over its share of the vector: it has its own thresholds and random
    numbers, and its k is that of the share. Without error feedback a server has no residual either.

    `sent`, and with it the density, is what a rank sent to the servers; what these send back may be fewer
    elements, or more: the selections of all ranks differ, and a server's is made of their mean. The memories
    `none`, `residual` and `momentum` go with it. `union` clears only what the rank itself has sent.

    Payload bytes per rank: the codes of the W shares, and 8 for each length of a part of them (values and
    int32 indices have one length); the code of one share, and 8 for the length of each of its parts; if
    elements are selected, 8 for their number.

    Raises:
        TypeError: if the reducer does not take an option.
        ValueError: if an option is out of range.
    """

    conserves = False  # the servers' residuals reach a later mean without passing through a rank
    served_type: ClassVar[type[Reducer]]
    served_N: Tensor
    """The server's residual; 0 outside of this rank's share."""
    fitted: Tensor
    """World size for whose shares the server's state was made; 0 before the first step."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.own, self.server = self.served_type(**given), self.served_type(**given)
        self.precision, self.sub_batches = self.own.precision, self.own.sub_batches
        self.decides_by = self.own.decides_by
        self.register_buffer("fitted", torch.zeros((), dtype=torch.int64))
        self._place: tuple[int, int] | None = None

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        """Options of the reducer, without those of its own exchange."""
        return served_options(cls.served_type)

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        self.own.bind(layout)
        self.server.bind(layout)
        half = copy.deepcopy(self.server)
        half.bind(layout.within(0, -(-layout.numel // 2)))
        for name, x in half.state_dict().items():
            if layout.numel > 1 and x.shape != self.server.state_dict()[name].shape:
                raise ValueError(
                    f"{self.served_type.__name__} + server: its state {name} is as long as the vector, and a "
                    "server has a share of it: use other options, or the reducer without +server"
                )
        self.register_buffer("served_N", torch.zeros(layout.numel))

    def begin_epoch(self, epoch: int, lr: float, wire: Wire) -> None:
        self.own.begin_epoch(epoch, lr, wire)
        self.server.begin_epoch(epoch, lr, Alone())

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        start, stop = self._fit(wire, grad_N.numel(), grad_N.device)
        lengths = divide(grad_N.numel(), wire.world_size)
        shares = cut([b - a for a, b in self.layout.groups], wire.world_size)
        own, server = share_codes(self.own), share_codes(self.server)
        with phase("select"):
            codes, at_K = own.encode(grad_N, residual_N, wire.world_size, wire)
        received = _to_servers(codes, wire, alike=own.alike)
        counts = None
        if at_K is not None:
            (counts_W,) = wire.gather(sizes=torch.tensor(at_K.numel(), device=grad_N.device))
            counts = counts_W.tolist()
        with phase("scatter"):
            mean_S = own.mean(received, shares[wire.rank], torch.zeros_like(self.served_N[start:stop]))
        with phase("select"):
            left_S = None if residual_N is None else self.served_N[start:stop]
            (code,), back_K = server.encode(mean_S, left_S, 1, self._alone)
            if left_S is not None:  # a hybrid's NaN becomes that of a whole group, which may be more than k
                left_S.nan_to_num_(0.0, 0.0, 0.0)
        rows = wire.gather_streams(**code)
        with phase("scatter"):
            for row, sizes, out_S in zip(rows, shares, grad_N.split(lengths), strict=True):
                own.mean([dict(zip(code, row, strict=True))], sizes, out_S)
        if back_K is not None:
            _learn(self.server, [back_K.numel()], grad_N[start:stop], self._alone)
        if counts is None:
            return Reduced(grad_N)
        _learn(self.own, counts, grad_N, wire)
        return Reduced(grad_N, at_K, sum(counts) / (len(counts) * max(1, grad_N.numel())))

    def _fit(self, wire: Wire, n: int, device: torch.device) -> tuple[int, int]:
        """Bind the server to this rank's share, if it is not; return (start, stop) of the share."""
        lengths = divide(n, wire.world_size)
        start = sum(lengths[: wire.rank])
        stop, place = start + lengths[wire.rank], (wire.world_size, wire.rank)
        if self._place != place or not int(self.fitted):
            state = {name: x.clone() for name, x in self.server.state_dict().items()}
            self.server.bind(self.layout.within(start, stop))
            if int(self.fitted):  # resumed: what the server has learned stays
                self.server.load_state_dict(state)
            self.server.to(device)
            if int(self.fitted) not in (0, wire.world_size):
                wire.sum(self.served_N, kind="state")  # the shares were others
            self.served_N[:start] = 0
            self.served_N[stop:] = 0
            self.fitted.fill_(wire.world_size)
            # A server's random numbers are not those by which any rank has rounded.
            self._alone = Alone(stream=wire.world_size + wire.rank)
            self._place = place
        return start, stop

    def report(self) -> dict[str, float]:
        return self.own.report()


def _to_servers(codes: list[Parts], wire: Wire, *, alike: bool) -> list[Parts]:
    """Send each rank the code of its share; return the codes of this rank's share by sender."""
    kinds = list(codes[0])
    joined = {kind: torch.cat([code[kind] for code in codes]) for kind in kinds}
    received: list[Parts] = [{} for _ in codes]
    for together in [kinds] if alike else [[kind] for kind in kinds]:
        counts = [code[together[0]].numel() for code in codes]
        rows = wire.all_to_all_ragged(counts, **{kind: joined[kind] for kind in together})
        for parts, row in zip(received, rows, strict=True):
            parts |= dict(zip(together, row, strict=True))
    return received


def _learn(reducer: Reducer, counts: list[int], mean_N: Tensor, wire: Wire) -> None:
    sparsifier = reducer.sparsifier if isinstance(reducer, Hybrid) else reducer
    assert isinstance(sparsifier, Sparsifier)
    sparsifier.learn(counts, mean_N, wire)


@cache
def served(reducer: type[Reducer]) -> type[Served]:
    """Return a reducer whose servers encode the mean as `reducer` encodes the gradient.

    Raises:
        ValueError: if it is not a sparsifier, a quantiser or a hybrid, or its rule needs more than one mean.
    """
    parts: tuple[Any, ...] = (reducer,)
    if issubclass(reducer, Hybrid):
        parts = (reducer.sparsifier_type, reducer.quantiser_type)
    for part in parts:
        if not (isinstance(part, type) and issubclass(part, Sparsifier | Quantiser) and part.serves):
            raise ValueError(
                f"{part.__name__} + server: a server encodes the mean by the same rule, and {part.__name__} "
                "has none for it; expected a method that selects or encodes each step's elements by "
                "themselves, such as topk, dgc, qsgd or topk+terngrad"
            )
    return type(
        f"{reducer.__name__}Served",
        (Served,),
        {
            "__doc__": f"{reducer.__name__}, with the mean encoded again by servers.",
            "__module__": Served.__module__,
            "served_type": reducer,
            "memory": reducer.memory,
            "grouping": reducer.grouping,
            "later": reducer.later & set(served_options(reducer)),
            "rounds": reducer.rounds,
            "spares_small": reducer.spares_small,
        },
    )
