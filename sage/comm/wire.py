"""The communicator: every collective goes through a `Wire`, which counts, times and checks it.

The ranks of `ProcessWire` (sage/comm/process.py) are processes; it is the only interface to
torch.distributed. The ranks of `ThreadWire` (sage/comm/threads.py) are threads of one process, for tests in
milliseconds and for the simulation of W workers. Each part of the payload is passed under the name of its
kind,

    values_WK, indices_WK = wire.gather(values=values_K, indices=indices_K)

so that the ledger counts the bytes of each kind.
"""
# W = world size, N = elements of a vector, K = elements sent by one rank, S = bytes of a packed buffer

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sage.comm.ledger import (
    direct_exchange,
    ring_all_gather,
    ring_all_reduce,
    ring_ragged_gather,
    star_gather,
    tree_broadcast,
)
from sage.comm.packing import count_each, cut, describe, num_bytes, pack, pad_to, unpack
from sage.comm.transport import Pending, Transport

LARGE = 1 << 16
"""Bytes per rank from which `gather_rows` gathers in place, which takes one message per part and rank."""


class Wire(Transport):
    """Base class: collectives on tensors between W ranks, each of which is recorded in `ledger`."""

    # Collectives for reducers. Every rank must make the same calls in the same order.

    def mean(self, x_N: Tensor, kind: str = "values") -> Tensor:
        """Compute the mean over ranks, in place (all-reduce, then one division)."""
        return self.sum(x_N, kind).div_(self.world_size)

    def sum(self, x_N: Tensor, kind: str = "values") -> Tensor:
        """Compute the sum over ranks, in place (all-reduce); all ranks get bitwise identical results."""
        size = num_bytes(x_N)
        traffic = ring_all_reduce(size, self.world_size)
        self._collective(describe("sum", **{kind: x_N}), {kind: size}, traffic, lambda: self._sum(x_N))
        return x_N

    def sum_halves(self, x_N: Tensor, kind: str = "values") -> Tensor:
        """Compute the sum over ranks of float16 or bfloat16 numbers (1-D), in place, as `sum`.

        On CPUs every rank adds one piece of the vector: the pieces are exchanged (all-to-all), added in
        float32 in rank order, rounded once, and broadcast. The bytes are those of a ring all-reduce, whose
        sum is rounded at every hop. That is used on GPUs, where it is NCCL's, and for bfloat16 between two
        ranks, whose sum is rounded once in any case.
        """
        size = num_bytes(x_N)
        traffic = ring_all_reduce(size, self.world_size)
        call = describe("sum_halves", **{kind: x_N})
        self._collective(call, {kind: size}, traffic, lambda: self._sum_halves(x_N))
        return x_N

    def gather(self, **parts: Tensor) -> tuple[Tensor, ...]:
        """Gather the parts of every rank, stacked to (W, *shape). Shapes must be the same on all ranks."""
        payload = {kind: num_bytes(part) for kind, part in parts.items()}
        return self._gather_packed(describe("gather", **parts), list(parts.values()), payload)

    def gather_rows(self, lengths: Mapping[str, int] | None = None, /, **parts: Tensor) -> tuple[Tensor, ...]:
        """Gather 1-D parts as `gather`, without copies: the result is overwritten by the next such call.

        A part that is in the memory of `row_to_gather` is not copied either.

        Args:
            lengths: Number of elements to which each part is padded with zeros, the same on all ranks; by
                default the parts' own.
            **parts: The parts by kind.
        """
        rows = {}
        for kind, part in parts.items():
            length = part.numel() if lengths is None else lengths[kind]
            rows[kind] = self._rows_to_gather(kind, length, part)
            row_K = rows[kind][self.rank]
            if row_K.data_ptr() != part.data_ptr():
                row_K[: part.numel()] = part
            row_K[part.numel() :] = 0
        row = {kind: rows_WK[self.rank] for kind, rows_WK in rows.items()}
        payload = {kind: num_bytes(row_K) for kind, row_K in row.items()}
        call, size = describe("gather", **row), sum(payload.values())
        if size < LARGE:
            return self._gather_packed(call, list(row.values()), payload)
        traffic = ring_all_gather(size, self.world_size)
        self._collective(call, payload, traffic, lambda: self._gather_in_place(list(rows.values())))
        return tuple(rows.values())

    def row_to_gather(self, kind: str, length: int, like: Tensor) -> Tensor:
        """Memory for this rank's part of the next `gather_rows`: `length` elements of `like`'s dtype."""
        return self._rows_to_gather(kind, length, like)[self.rank]

    def _rows_to_gather(self, kind: str, length: int, like: Tensor) -> Tensor:
        return self.scratch.take(f"gather_rows {kind}", (self.world_size, length), like)

    def gather_uneven(self, **parts: Tensor) -> tuple[list[int], tuple[Tensor, ...]]:
        """Gather the 1-D parts of every rank, whose lengths may differ between ranks.

        The counts are exchanged first (`sizes`, 8 bytes), and shorter parts are padded to the longest
        (`padding`). Returns the W counts and, for each part, the concatenation in rank order.
        """
        counts = self._counts(parts)
        padded, payload = pad_to(parts, max(counts))
        stacked = self._gather_packed(describe("gather_uneven", **parts), padded, payload)
        return counts, cut(stacked, counts)

    def gather_ragged(self, **parts: Tensor) -> tuple[list[int], tuple[Tensor, ...]]:
        """Gather as `gather_uneven`, without padding.

        The result is bitwise identical to that of `gather_uneven`.
        """
        counts = self._counts(parts)
        rows = self._gather_each("gather_ragged", parts, [[count] * len(parts) for count in counts])
        return counts, tuple(torch.cat(part) for part in zip(*rows, strict=True))

    def gather_streams(self, **parts: Tensor) -> list[tuple[Tensor, ...]]:
        """Gather the 1-D parts of every rank, by rank; lengths may differ between parts and between ranks.

        The lengths are exchanged first (`sizes`, 8 bytes per part); there is no padding.
        """
        first = next(iter(parts.values()))
        own_P = torch.tensor([part.numel() for part in parts.values()], device=first.device)
        (lengths_WP,) = self.gather(sizes=own_P)
        return self._gather_each("gather_streams", parts, lengths_WP.tolist())

    def _gather_each(
        self, op: str, parts: Mapping[str, Tensor], lengths: Sequence[Sequence[int]]
    ) -> list[tuple[Tensor, ...]]:
        """Gather parts whose lengths all ranks know."""
        vectors = list(parts.values())
        items = [v.element_size() for v in vectors]
        sizes = [sum(n * item for n, item in zip(row, items, strict=True)) for row in lengths]
        traffic = ring_ragged_gather(sizes, self.rank)
        payload = {kind: num_bytes(part) for kind, part in parts.items()}
        packed_S = pack(vectors)
        joined_S = self._collective(
            describe(op, **parts), payload, traffic, lambda: self._gather_ragged(packed_S, sizes)
        )
        rows = []
        for row_S, row in zip(joined_S.split(sizes), lengths, strict=True):
            likes = [(v.dtype, torch.Size([n])) for v, n in zip(vectors, row, strict=True)]
            rows.append(tuple(x.view(-1) for x in unpack(row_S.unsqueeze(0), likes)))
        return rows

    def gather_within(self, capacity: int, **parts: Tensor) -> tuple[list[int], tuple[Tensor, ...]]:
        """Gather as `gather_uneven`, in a single collective; no rank may have more than `capacity` elements.

        Shorter parts are padded to `capacity`; the counts are part of the same message.
        """
        count = count_each(parts)
        assert count <= capacity
        padded, payload = pad_to(parts, capacity)
        own_count = torch.tensor(count, device=padded[0].device)
        call = describe("gather_within", **dict(zip(parts, padded, strict=True)))
        counts_W, *stacked = self._gather_packed(
            call, [own_count, *padded], {"sizes": num_bytes(own_count), **payload}
        )
        counts = counts_W.tolist()
        return counts, cut(stacked, counts)

    def broadcast(self, x_N: Tensor, root: int = 0, kind: str = "values") -> Tensor:
        """Broadcast the root's x_N to every rank, in place."""
        size = num_bytes(x_N)
        traffic = tree_broadcast(size, self.rank, root, self.world_size)
        payload = {kind: size if self.rank == root else 0}
        call = describe(f"broadcast from {root}", **{kind: x_N})
        self._collective(call, payload, traffic, lambda: self._broadcast(x_N, root))
        return x_N

    def gather_to(self, x_N: Tensor, root: int = 0, kind: str = "values") -> Tensor:
        """Gather the x_N of every rank directly to the root: (W, *shape) there, (0, *shape) elsewhere."""
        size = num_bytes(x_N)
        traffic = star_gather(size, self.rank, root, self.world_size)
        payload = {kind: 0 if self.rank == root else size}
        call = describe(f"gather_to {root}", **{kind: x_N})
        return self._collective(call, payload, traffic, lambda: self._gather_to(x_N, root))

    def reduce_scatter(self, x_WN: Tensor, kind: str = "values") -> Tensor:
        """Return row `rank` of the sum over ranks of x_WN."""
        size = num_bytes(x_WN)
        traffic = direct_exchange(size, self.world_size)
        call = describe("reduce_scatter", **{kind: x_WN})
        return self._collective(call, {kind: size}, traffic, lambda: self._reduce_scatter(x_WN))

    def all_to_all(self, x_WN: Tensor, kind: str = "values") -> Tensor:
        """Send row r to rank r; row r of the result is from rank r."""
        size = num_bytes(x_WN)
        traffic = direct_exchange(size, self.world_size)
        call = describe("all_to_all", **{kind: x_WN})
        return self._collective(call, {kind: size}, traffic, lambda: self._all_to_all(x_WN))

    def all_to_all_packed(self, **parts: Tensor) -> tuple[Tensor, ...]:
        """Exchange as `all_to_all` the rows of several parts (W, n) in one message."""
        rows_WS = torch.cat([part.contiguous().view(torch.uint8) for part in parts.values()], dim=1)
        received_WS = self._collective(
            describe("all_to_all", **parts),
            {kind: num_bytes(part) for kind, part in parts.items()},
            direct_exchange(rows_WS.numel(), self.world_size),
            lambda: self._all_to_all(rows_WS),
        )
        return unpack(received_WS, [(part.dtype, part.shape[1:]) for part in parts.values()])

    def all_to_all_others(self, pieces: Sequence[Tensor], lengths: Sequence[int], kind: str) -> Tensor:
        """Send one piece to each other rank; returns the others' pieces for this rank (W − 1, S), by sender.

        Nothing is padded, sent to oneself or copied: the result is overwritten by the next such call. It
        counts as `all_to_all` of W rows as long as the longest piece.

        Args:
            pieces: A vector for each rank, of which that for this rank is not used (it may be empty).
            lengths: Number of elements that each rank receives from each other rank, the same on all ranks.
            kind: As for `all_to_all`.
        """
        this_rank, size = self.rank, self.world_size
        like, item = pieces[this_rank], pieces[this_rank].element_size()
        counted_WS = like.new_empty((size, max(lengths)), device="meta")
        sizes = [[0 if a == b else length * item for b, length in enumerate(lengths)] for a in range(size)]
        sent = [piece for rank, piece in enumerate(pieces) if rank != this_rank]
        packed_S = pack(sent) if sent else pack([like[:0]])
        received_WS = self.scratch.take(f"all_to_all {kind}", (size - 1, lengths[this_rank]), like)
        received_S = received_WS.view(-1).view(torch.uint8)
        self._collective(
            describe("all_to_all", **{kind: counted_WS}),
            {kind: num_bytes(counted_WS)},
            direct_exchange(num_bytes(counted_WS), size),
            lambda: self._all_to_all_ragged(packed_S, sizes, received_S),
        )
        return received_WS

    def all_to_all_ragged(
        self, counts: Sequence[int], known: Sequence[Sequence[int]] | None = None, /, **parts: Tensor
    ) -> list[tuple[Tensor, ...]]:
        """Exchange as `all_to_all`, with rows of different lengths and no padding; return the rows by sender.

        Each part is 1-D and is split into W consecutive pieces, whose numbers of elements are `counts`. The
        counts are exchanged first (`sizes`, 8 bytes per rank), unless the ranks know those of all (`known`).
        """
        vectors = list(parts.values())
        assert count_each(parts) == sum(counts)
        if known is None:
            (counts_WW,) = self.gather(sizes=torch.tensor(counts, device=vectors[0].device))
            known = counts_WW.tolist()
        bytes_each = sum(v.element_size() for v in vectors)
        sizes = [[count * bytes_each for count in row] for row in known]
        received = [row[self.rank] for row in sizes]
        local = received[self.rank]
        pieces = zip(*(v.split(list(counts)) for v in vectors), strict=True)
        packed_S = torch.cat([pack(piece) for piece in pieces])
        received_S = self._collective(
            describe("all_to_all_ragged", **parts),
            {kind: num_bytes(part) for kind, part in parts.items()},
            (packed_S.numel() - local, sum(received) - local),
            lambda: self._all_to_all_ragged(packed_S, sizes, packed_S.new_empty(sum(received))),
        )
        rows = []
        for row_S, size in zip(received_S.split(received), received, strict=True):
            likes = [(v.dtype, torch.Size([size // bytes_each])) for v in vectors]
            rows.append(tuple(x.view(-1) for x in unpack(row_S.unsqueeze(0), likes)))
        return rows

    # Further methods for the engine.

    def begin_sum(self, x_N: Tensor, kind: str = "control") -> Pending:
        """Start an asynchronous sum of a vector, in place; `wait()` returns the result."""
        size = num_bytes(x_N)
        call = describe("begin_sum", **{kind: x_N})
        if self.guard:
            self._compare(call)
        traffic = ring_all_reduce(size, self.world_size)
        self.ledger.add("begin_sum", {kind: size}, traffic, in_node=self.is_in_node)
        return self._begin_sum(call, x_N)

    def texts(self, text: str) -> list[str]:
        """Gather the text of every rank, by rank. The call is also a barrier."""
        encoded = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)
        counts, (joined,) = self.gather_uneven(state=encoded)
        return [bytes(part[:-1].tolist()).decode() for part in joined.split(counts)]

    def mean_uncounted(self, x_N: Tensor) -> Tensor:
        """Compute the mean over ranks, in place, outside of the ledger, to measure the error of another."""
        self._attempt(describe("sum", uncounted=x_N), lambda: self._sum(x_N))
        return x_N.div_(self.world_size)

    def close(self) -> None:
        """Wait for every rank, then release the process group."""

    # Common parts of the collectives.

    def _counts(self, parts: Mapping[str, Tensor]) -> list[int]:
        own_count = torch.tensor(count_each(parts), device=next(iter(parts.values())).device)
        (counts_W,) = self.gather(sizes=own_count)
        counts: list[int] = counts_W.tolist()
        return counts

    def _gather_packed(self, call: str, parts: list[Tensor], payload: dict[str, int]) -> tuple[Tensor, ...]:
        packed_S = pack(parts)
        traffic = ring_all_gather(packed_S.numel(), self.world_size)
        gathered_WS = self._collective(call, payload, traffic, lambda: self._gather(packed_S))
        return unpack(gathered_WS, [(part.dtype, part.shape) for part in parts])
