"""Communicators for ranks that are processes, over torch.distributed, with a failure monitor per rank."""
# W = world size, N = elements of a vector, S = bytes of a packed buffer

import re
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from sage import ops
from sage.comm import point_to_point, torch_names
from sage.comm.address import check_interfaces, choose_interface
from sage.comm.agreement import Facts, RanksDiffer
from sage.comm.failure_monitor import FailureMonitor
from sage.comm.ledger import ring_all_reduce
from sage.comm.packing import add, describe, divide, num_bytes
from sage.comm.rendezvous import Place
from sage.comm.store import join_store
from sage.comm.transport import Pending, WireError
from sage.comm.wire import Wire
from sage.output.text import clean_text

T = TypeVar("T")


MAX_TIMEOUT = 2e6
"""Maximum timeout in seconds; gloo stores timeouts as milliseconds in 32 bits."""
NO_FACTS: Facts = {}


class GroupWire(Wire):
    """Base class: collectives over process groups, which the subclasses provide.

    Args:
        place: This rank, and the rendezvous address.
        device: Device of the gradients; determines the backend.
        timeout: Seconds after which a collective that has not completed is an error on every rank.
    """

    _monitor: FailureMonitor
    _control: dist.ProcessGroup
    """Gloo group for control messages; they run concurrently with the gradients and need separate threads."""
    _group: dist.ProcessGroup | None = None
    """Group for all other collectives; None: the default group."""

    def __init__(self, place: Place, *, device: torch.device, timeout: float, guard: bool) -> None:
        super().__init__(place.rank, place.world_size, guard=guard)
        if not 0 < timeout <= MAX_TIMEOUT:
            raise ValueError(
                f"timeout is {timeout:g} s; allowed is more than 0 and at most {MAX_TIMEOUT:,.0f} s (23 days)"
            )
        self._timeout = timedelta(seconds=timeout)
        # Texts and sums for the records are CPU tensors, also if the gradients are on a GPU.
        self._backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        self._inside = "outside any collective"
        check_interfaces(nccl=device.type == "cuda")

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group of the gradients' collectives, for DistributedDataParallel; None: the default group."""
        return self._group

    def start_sum(self, x_N: Tensor, kind: str = "values") -> "StartedSum":
        """Start the sum over ranks of a gradient, in place, without waiting for it.

        The ledger counts its bytes as those of `sum`; its time is not in `Ledger.seconds`.
        """
        size = num_bytes(x_N)
        call = describe("sum", **{kind: x_N})
        if self.guard:
            self._compare(call)
        traffic = ring_all_reduce(size, self.world_size)
        self.ledger.add("sum", {kind: size}, traffic, in_node=self.is_in_node)
        group = self._group or dist.group.WORLD
        assert group is not None
        # Not `dist.all_reduce`: its checks and its logging cost as much as starting the collective.
        work = self._attempt(call, lambda: group.allreduce([x_N]))
        return StartedSum(work.get_future(), lambda: self._attempt(call, work.wait))

    def close(self) -> None:
        if self.guard:
            self._compare("close()")
        self._attempt("the final barrier", lambda: dist.barrier(self._control))
        self._monitor.stop()
        # The store closes when rank 0 leaves, so rank 0 must wait until no monitor polls the store.
        self._attempt("the final barrier", lambda: dist.barrier(self._control))
        self._leave()

    def announce_exit(self, reason: str) -> None:
        """Post why this rank is about to exit, for the other ranks; called for the first error of a run."""
        self._monitor.announce_exit(reason)

    def _leave(self) -> None:
        raise NotImplementedError

    def _attempt(self, call: str, run: Callable[[], T]) -> T:
        self._inside = f"in {call}"
        start = time.perf_counter()
        try:
            return run()
        except (RuntimeError, ValueError) as error:
            waited = time.perf_counter() - start
            raise WireError(
                f"rank {self.rank}: {call} failed after {waited:.1f} s: {first_line(error)}. "
                + self._monitor.query_ranks()
            ) from error
        finally:
            self._inside = "outside any collective"

    def _sum(self, x_N: Tensor) -> None:
        dist.all_reduce(x_N, group=self._group)

    def _sum_halves(self, x_N: Tensor) -> None:
        # A sum of two is rounded once in any case. Gloo adds float16 numbers one by one, at half the speed.
        is_same = self.world_size <= 2 and x_N.dtype != torch.float16
        if x_N.device.type != "cpu" or is_same:
            return self._sum(x_N)
        sizes = divide(x_N.numel(), self.world_size)
        pieces = x_N.split(sizes)
        own_S = pieces[self.rank]
        rows_WS = self.scratch.take("sum_halves", (self.world_size, own_S.numel()), x_N)
        self._exchange(x_N, rows_WS.view(-1), sizes, [own_S.numel()] * self.world_size, x_N.nbytes)
        ops.sum_casts(rows_WS, own_S)
        self._gather_pieces([pieces])

    def _begin_sum(self, call: str, x_N: Tensor) -> Pending:
        group = self._control if x_N.device.type == "cpu" else self._group
        work = self._attempt(call, lambda: dist.all_reduce(x_N, group=group, async_op=True))
        assert work is not None
        return _Sum(lambda: self._attempt(call, work.wait), x_N)

    def _gather(self, x_S: Tensor) -> Tensor:
        out_WS = x_S.new_empty(self.world_size, x_S.numel())
        if x_S.device.type == "cpu" and x_S.nbytes >= point_to_point.ALONG_A_RING:
            out_WS[self.rank].copy_(x_S)
            self._gather_pieces([list(out_WS)])
        else:
            torch_names.all_gather(out_WS.view(-1), x_S, self._group)
        return out_WS

    def _gather_in_place(self, all_rows: Sequence[Tensor]) -> None:
        if all_rows[0].device.type == "cpu":
            return self._gather_pieces([list(rows_WK) for rows_WK in all_rows])
        for rows_WK in all_rows:
            torch_names.all_gather(rows_WK.view(-1), rows_WK[self.rank].view(-1), self._group)

    def _gather_on_host(self, x_S: Tensor) -> Tensor:
        out_WS = x_S.new_empty(self.world_size * x_S.numel())
        torch_names.all_gather(out_WS, x_S, self._control)
        return out_WS.view(self.world_size, x_S.numel())

    def _gather_ragged(self, x_S: Tensor, sizes: Sequence[int]) -> Tensor:
        out_S = x_S.new_empty(sum(sizes))
        pieces = out_S.split(list(sizes))
        pieces[self.rank].copy_(x_S)
        self._fill(pieces)
        return out_S

    def _fill(self, pieces: Sequence[Tensor]) -> None:
        if pieces[0].device.type == "cpu":
            self._gather_pieces([pieces])
        else:
            self._broadcast_from_each(pieces)

    def _gather_pieces(self, vectors: Sequence[Sequence[Tensor]]) -> None:
        point_to_point.ring_gather(vectors, self.rank, self._group)

    def _broadcast_from_each(self, pieces: Sequence[Tensor]) -> None:
        """Broadcast piece r from rank r, all at the same time and in place."""
        under_way = [
            dist.broadcast(piece, group=self._group, group_src=root, async_op=True)
            for root, piece in enumerate(pieces)
        ]
        for work in under_way:
            assert work is not None
            work.wait()

    def _broadcast(self, x_N: Tensor, root: int) -> None:
        dist.broadcast(x_N, group=self._group, group_src=root)

    def _gather_to(self, x_N: Tensor, root: int) -> Tensor:
        x_N = x_N.contiguous()
        out_WN = x_N.new_empty(self.world_size if self.rank == root else 0, *x_N.shape)
        rows = list(out_WN) if self.rank == root else None
        dist.gather(x_N, rows, group=self._group, group_dst=root)
        return out_WN

    def _reduce_scatter(self, x_WN: Tensor) -> Tensor:
        if x_WN.device.type == "cpu":
            # Gloo's own is a full all-reduce with twice the traffic; this adds in the order of ThreadWire.
            return add(self._all_to_all(x_WN))
        out_N = torch.empty_like(x_WN[0], memory_format=torch.contiguous_format)
        torch_names.reduce_scatter(out_N.view(-1), x_WN.reshape(-1), self._group)
        return out_N

    def _all_to_all(self, x_WN: Tensor) -> Tensor:
        out_WN = torch.empty_like(x_WN, memory_format=torch.contiguous_format)
        sizes = [out_WN[0].numel()] * self.world_size
        self._exchange(x_WN.contiguous().view(-1), out_WN.view(-1), sizes, sizes, x_WN.nbytes)
        return out_WN

    def _all_to_all_ragged(self, x_S: Tensor, sizes: Sequence[Sequence[int]], out_S: Tensor) -> Tensor:
        self._exchange(x_S, out_S, sizes[self.rank], [row[self.rank] for row in sizes], max(map(sum, sizes)))
        return out_S

    def _exchange(
        self, x_S: Tensor, out_S: Tensor, sent: Sequence[int], received: Sequence[int], longest: int
    ) -> None:
        """All-to-all of the pieces of a vector: `sent` elements to each rank, and `received` from each.

        `longest` is the number of bytes of the longest vector, the same on all ranks.
        """
        if x_S.device.type == "cpu" and longest >= point_to_point.in_pairs(self.world_size):
            pieces, into = x_S.split(list(sent)), out_S.split(list(received))
            point_to_point.exchange_in_pairs(pieces, into, self.rank, self._group)
        else:
            dist.all_to_all_single(out_S, x_S, list(received), list(sent), group=self._group)


class ProcessWire(GroupWire):
    """A wire whose ranks are processes of a torch.distributed group: gloo on CPUs, nccl on GPUs.

    Args:
        place: This rank, and the rendezvous address.
        device: Device of the gradients; determines the backend.
        timeout: Seconds within which all ranks must join, and after which a collective that has not
            completed is an error on every rank.
        facts: Values that must be the same on all ranks, by name (`sage.comm.agreement`).

    Raises:
        WireError: if not all ranks join within the timeout; the message gives the address and the reason.
        RanksDiffer: on every rank, if the facts differ.
    """

    def __init__(
        self,
        place: Place,
        *,
        device: torch.device,
        timeout: float = 300.0,
        guard: bool = False,
        facts: Facts = NO_FACTS,
    ) -> None:
        super().__init__(place, device=device, timeout=timeout, guard=guard)
        choose_interface(place.hostip, place.port)
        try:
            messages = join_store(place, timeout=timeout, facts=facts)
            self._control = self._join(place, messages.group_store())
        except RanksDiffer:
            raise
        except (RuntimeError, ValueError) as error:
            raise WireError(
                f"rank {place.rank} of {place.world_size} could not join the other ranks at "
                f"{clean_text(place.hostip, 100)}:{place.port} within {timeout:g} s ({place.source}): "
                f"{first_line(error)}. Check that all ranks were started with the same hostip, port "
                "and world_size, and that the port is open on rank 0's host"
            ) from error
        self._monitor = FailureMonitor(place, messages.clone(), lambda: self._inside)

    def _join(self, place: Place, store: dist.Store) -> dist.ProcessGroup:
        """Create the default group and the group for control messages; return the latter."""
        dist.init_process_group(
            self._backend,
            store=store,
            rank=place.rank,
            world_size=place.world_size,
            timeout=self._timeout,
        )
        control = dist.new_group(backend="gloo", timeout=self._timeout)
        assert isinstance(control, dist.ProcessGroup)
        return control

    def _leave(self) -> None:
        dist.destroy_process_group()


class StartedSum:
    """A sum of a gradient under way.

    Args:
        future: Is done when the sum is, or has failed.
        finish: Waits for the sum.
    """

    def __init__(self, future: "Future[list[Tensor]]", finish: Callable[[], object]) -> None:
        self.future, self._finish = future, finish

    def wait(self) -> None:
        """Wait for the sum.

        Raises:
            WireError: if it failed.
        """
        self._finish()


class _Sum:
    """An asynchronous sum on the control group."""

    def __init__(self, finish: Callable[[], object], x_N: Tensor) -> None:
        self._finish, self._x_N = finish, x_N

    def wait(self) -> Tensor:
        self._finish()
        return self._x_N


def first_line(error: BaseException) -> str:
    """Return the first line of a torch.distributed error, without its prefixes and its suggested causes."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^(\[[^]]*\]:? ?)+| This is typically.*$", "", lines[0]).strip().rstrip(".?")
