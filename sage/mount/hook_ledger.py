"""Counts the bytes and times of any other communication hook, for the same tables as SAGE's own."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from sage.comm.ledger import (
    Ledger,
    direct_exchange,
    ring_all_gather,
    ring_all_reduce,
    star_gather,
    tree_broadcast,
)
from sage.mount.record import StepLog
from sage.mount.traffic import Traffic, of_step

Hook = Callable[[Any, dist.GradBucket], Future[Tensor]]


@dataclass
class _Step:
    """The buckets of one backward."""

    ledger: Ledger = field(default_factory=Ledger)
    dense_bytes: int = 0
    numel: int = 0
    pending: int = 0
    """Buckets that the hook has been called with and that are not reduced yet."""
    thread_in_hook: int | None = None
    """The thread that is in the hook now."""
    backward_threads: set[int] = field(default_factory=set)
    """The threads that have called the hook: those of backward."""
    last_bucket_at: float | None = None
    """When the hook was called with the last bucket."""
    hook_seconds: float = 0.0
    is_over: bool = False


class HookLedger:
    """A communication hook that calls another one and counts what it passes to collectives.

    Bytes are counted as `sage.comm.ledger` counts those of SAGE's own reducers: the inputs of this rank's
    collectives, and the traffic of the collectives' algorithms. Collectives that the hook begins in a
    callback of a future are counted too. Register it where the other hook would be:

        hook = sage.ledger(powerSGD_hook)
        model.register_comm_hook(state, hook)

    Args:
        hook: The hook, as `DistributedDataParallel.register_comm_hook` takes it.
        group: The process group of its collectives; by default the hook's state if that is a group, else
            the state's `process_group`, else the default group.
    """

    def __init__(self, hook: Hook, group: dist.ProcessGroup | None = None) -> None:
        self._hook = hook
        name = getattr(hook, "__qualname__", type(hook).__name__)
        self.__name__ = self.__qualname__ = name  # DDP logs the name
        self.name: str = name
        """The other hook's name."""
        self.last_step = Traffic()
        """Traffic of the last step."""
        self.total = Traffic()
        """Traffic of all steps."""
        self.hook_seconds = 0.0
        """Seconds that the hook's calls took on the thread of backward, in the last step."""
        self.exposed_seconds = 0.0
        """Seconds from the last bucket's gradient until all buckets were reduced, in the last step."""
        self._group = group
        self._is_counting = False
        self._lock = threading.Lock()  # callbacks of futures run on the backend's threads
        self._step = _Step()
        self._log = StepLog()

    def __call__(self, state: Any, bucket: dist.GradBucket) -> Future[Tensor]:
        """Call the hook on a bucket and count its collectives."""
        if not self._is_counting:
            self._group = self._group or _group_of(state)
            self._group.register_pre_hook(id(self), self._count)
            self._is_counting = True
        start = time.perf_counter()
        with self._lock:
            if self._step.is_over:
                self._step = _Step()
            step = self._step
            step.pending += 1
            step.dense_bytes += bucket.buffer().nbytes
            step.numel += bucket.buffer().numel()
            step.thread_in_hook = threading.get_ident()
            step.backward_threads.add(step.thread_in_hook)
            if bucket.is_last():
                step.last_bucket_at = start
        try:
            result = self._hook(state, bucket)
        finally:
            with self._lock:
                step.hook_seconds += time.perf_counter() - start
                step.thread_in_hook = None

        def done(future: Future[Tensor]) -> Tensor:
            self._finish(step)
            reduced: Tensor | list[Tensor] = future.value()
            return reduced[0] if isinstance(reduced, list) else reduced

        return result.then(done)

    def record(
        self,
        folder: str | Path,
        *,
        workload: str,
        seed: int = 0,
        metric: str | None = None,
        better: Literal["max", "min"] | None = None,
        **metrics: float,
    ) -> None:
        """Write a run folder for `sage report`, as `sage.mount.base.Mount.record` does.

        Args:
            folder: Path such as `runs/mine-powersgd`.
            workload: Runs with the same workload and number of ranks are compared.
            seed: Seed of this run.
            metric: Name of the headline metric; by default the first one given.
            better: Whether the largest or smallest value is best; by default by the metric's name.
            metrics: Measured values by name.

        Raises:
            ValueError: if no metric is given, or the folder was written by `sage run`.
            OSError: if the folder cannot be written.
        """
        group = self._group
        if group is None:
            raise ValueError("the hook was not called yet: call record after a backward")
        config: dict[str, Any] = {
            "workload": workload,
            "task": "own",
            "model": workload,
            "mount": type(self).__name__,
            "reducer": self.name,
            "reducer_options": {},
            "memory": None,
            "world_size": group.size(),
            "seed": seed,
        }
        self._log.record(
            Path(folder),
            config,
            metrics,
            metric=metric,
            better=better,
            parameters=self._step.numel,
            memory={},  # what a foreign hook keeps is not known
            is_writer=group.rank() == 0,
        )

    def close(self) -> None:
        """Stop counting. The hook can still be called."""
        if self._group is not None and self._is_counting:
            self._group.unregister_pre_hook(id(self))

    def _count(self, call: Any) -> None:
        """Count a collective if it is the hook's; torch calls this before each one of the group."""
        thread = threading.get_ident()
        # A hook's callbacks run on threads of the backend, which Python has not started, until their bucket
        # is reduced. The script's own collectives come from other threads.
        is_callback = isinstance(threading.current_thread(), threading._DummyThread)
        with self._lock:
            step = self._step
            if thread == step.thread_in_hook or (
                is_callback and step.pending and thread not in step.backward_threads
            ):
                assert self._group is not None
                op, size = call.name.name.lower(), sum(x.nbytes for x in call.input_tensors)
                payload, traffic = counted(op, size, self._group.rank(), call.root, self._group.size())
                step.ledger.add(op, {"values": payload}, traffic)

    def _finish(self, step: "_Step") -> None:
        """One bucket is reduced."""
        now = time.perf_counter()
        with self._lock:
            step.pending -= 1
            if step.pending or step.last_bucket_at is None or step.is_over:
                return
            step.is_over = True
            self.exposed_seconds = now - step.last_bucket_at
            self.hook_seconds = step.hook_seconds
            self.last_step = of_step(step.ledger, step.dense_bytes, skipped=False)
            self.total += self.last_step
            self._log.add(step.ledger, 1.0)


def _group_of(state: object) -> dist.ProcessGroup:
    of_state = state if isinstance(state, dist.ProcessGroup) else getattr(state, "process_group", None)
    group = of_state or dist.group.WORLD
    assert isinstance(group, dist.ProcessGroup)
    return group


def counted(op: str, size: int, rank: int, root: int, world_size: int) -> tuple[int, tuple[int, int]]:
    """Return the payload and the (sent, received) bytes of one rank in a collective of torch.

    Args:
        op: torch's name of the collective, such as `allreduce`.
        size: S, the bytes of this rank's input.
        rank: This rank.
        root: The root of the collectives that have one, else anything.
        world_size: W.
    """
    is_root = rank == root
    match op:
        case "allreduce":
            return size, ring_all_reduce(size, world_size)
        case "allgather":
            return size, ring_all_gather(size, world_size)
        case "alltoall" | "reduce_scatter":
            return size, direct_exchange(size, world_size)
        case "broadcast":
            return size if is_root else 0, tree_broadcast(size, rank, root, world_size)
        case "gather" | "reduce":
            return 0 if is_root else size, star_gather(size, rank, root, world_size)
        case "send":
            return size, (size, 0)
        case _:
            raise ValueError(f"sage.ledger cannot count the bytes of torch's {op}: please report this hook")


def ledger(hook: Hook, *, group: dist.ProcessGroup | None = None) -> HookLedger:
    """Wrap a communication hook of DistributedDataParallel so that its bytes and times are counted.

        hook = sage.ledger(default_hooks.bf16_compress_hook)
        model.register_comm_hook(None, hook)
        ...
        print(hook.last_step.compression, hook.exposed_seconds)
        hook.record("runs/mine-bf16", workload="mine", accuracy=0.9)

    Args:
        hook: A hook as `register_comm_hook` takes it, of torch or of any other package. Those that
            `sage.ddp_hook` registers count themselves.
        group: The process group of its collectives; by default the hook's state if that is a group, else
            the state's `process_group`, else the default group.

    Raises:
        ValueError: if it is not callable, or if torch's process groups do not report their collectives.
    """
    if not callable(hook):
        raise ValueError(f"the hook {hook!r}: expected a function of a state and a bucket")
    if not hasattr(dist.ProcessGroup, "register_pre_hook"):
        raise ValueError(f"torch {torch.__version__} does not report collectives: sage.ledger needs 2.14")
    return HookLedger(hook, group)
