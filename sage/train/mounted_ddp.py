"""`--mount ddp`: DistributedDataParallel reduces each bucket during backward, through its communication hook.

A bucket is reduced as the whole gradient is under `--mount whole`, with a reducer and error feedback of its
own. Reducers wait for the other ranks, so they run on a separate thread, one bucket after another. A
reducer that is only an all-reduce (`Reducer.is_all_reduce`) needs no thread: its all-reduce is started
where the gradients arrive.

Whether to skip a step is known only at the end of backward, when buckets have been reduced already. If steps
may be skipped, each bucket's state is therefore copied before its reduction, and the ranks vote once, after
the last bucket (4 bytes). After a vote to skip, all state is as before the step, to the bit.
"""
# N = elements of a bucket

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from sage.comm.process import GroupWire, StartedSum
from sage.data.dataset import Batch, moved
from sage.mount.fixed_buckets import FixedBuckets
from sage.mount.origins import in_whole_order, origins
from sage.mount.parameters import check_dense, only_kind, trainable
from sage.mount.reduction_seconds import ReductionSeconds, fields_of_sum
from sage.reduction.reducer import Reduced
from sage.timing import Phases
from sage.train.backward import LossModule, Pass
from sage.train.ddp_bucket import DdpBucket
from sage.train.levels import levels_of
from sage.train.mount_limits import check_buckets, check_reducer
from sage.train.mounted import Parts, StepGradient
from sage.train.mounted_buckets import MountedBuckets


class MountedDdp(MountedBuckets[DdpBucket]):
    """A model in DistributedDataParallel, whose buckets are reduced during backward.

    Args:
        parts: The parts of the run.
        wire: The communicator of `parts`, whose ranks are processes.

    Raises:
        ValueError: The reducer or an option needs the whole gradient, and there are several buckets.
    """

    wire: GroupWire

    def __init__(self, parts: Parts, wire: GroupWire) -> None:
        super().__init__(parts)
        config, self.wire = parts.config, wire
        check_reducer(config, parts.reducer, "DistributedDataParallel")
        check_dense(parts.model)
        named = trainable(parts.model)
        only_kind(named)
        self._names = {p: name for name, p in named.items()}
        in_order = [named[name] for name in in_whole_order(named)]
        self._ddp = FixedBuckets(
            LossModule(parts.model, parts.task),
            in_order,
            bucket_mb=config.bucket_mb,
            group=wire.group,
            reduce=self._receive,
        )
        check_buckets(config, parts.reducer, len(self._ddp.parameters), sum(p.nbytes for p in in_order))
        places = origins(named, parts.reducer, config.min_compress)
        levels = levels_of(config, wire, self.device)
        self._buckets = [
            DdpBucket(config, {self._names[p]: p for p in parameters}, parts.reducer, places, levels)
            for parameters in self._ddp.parameters
        ]
        self.flats = [bucket.flat for bucket in self._buckets]
        self._pass = Pass(config, self._ddp, self.device, parts.loss_scale)
        self._runs_direct = (
            parts.reducer.is_all_reduce(wire.world_size, self.device)
            and self.flats[0].feedback.memory == "none"
            and levels is None
        )
        # Reducers wait for the other ranks, so they run on a separate thread during backward.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sage-ddp")
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._phases = Phases(self.device)
        self._lr, self._sampled = 0.0, False
        self._begin()

    def _begin(self) -> None:
        self._failure: BaseException | None = None
        self._num_received = 0
        self._received_at = 0.0
        """When the last bucket arrived, at the end of backward's computation."""
        self._ready_at: list[float] = []
        """When the mean of each bucket was ready."""
        self._started: list[StartedSum] = []
        self._coded: list[ReductionSeconds] = []
        """Of the buckets whose all-reduce was started here."""
        self._samples: list[Tensor] = []
        self._reduced = []

    def compute(self, batches: list[Batch], lr: float, *, sampled: bool) -> StepGradient:
        self._begin()
        self._lr, self._sampled = lr, sampled
        for p in self._names:
            p.grad = None
        *first, last = batches
        loss = torch.zeros((), device=self.device)
        with self._ddp.no_sync() if first else nullcontext():
            for batch in first:
                loss += self._pass(moved(batch, self.device), self.config.accumulate)
        loss += self._pass(moved(last, self.device), self.config.accumulate)
        self._end_backward()
        if self._is_skipped():
            return StepGradient(loss=loss, skipped=True)
        self._reduced = [self._result_of(bucket) for bucket in self._buckets]
        for bucket in self._buckets:
            bucket.set_gradients()
        return StepGradient(loss=loss, skipped=False, sample=torch.cat(self._samples) if sampled else None)

    def _end_backward(self) -> None:
        """Raise the errors of other threads, after DDP has waited for every bucket."""
        if self._failure is not None:
            raise self._failure
        for started in self._started:
            started.wait()
        if self.spans.is_on and self._ready_at:
            self.spans.add("step", "wait", self._received_at, max(self._received_at, *self._ready_at))
        if self._num_received < len(self._buckets):
            name = next(name for p, name in self._names.items() if p.grad is None)
            raise ValueError(
                f"the parameter {name!r} has no gradient in this step, and DistributedDataParallel waits for "
                "the gradients of all parameters: use --mount whole, or freeze the parameter"
            )

    def _result_of(self, bucket: DdpBucket) -> Reduced:
        return bucket.reduced if bucket.reduced is not None else Reduced(bucket.flat.grad_N)

    # On the thread that runs backward:

    def _receive(self, grad_bucket: dist.GradBucket) -> Future[Tensor]:
        """DDP's hook: start the reduction of a bucket."""
        bucket = self._buckets[grad_bucket.index()]
        self._num_received += 1
        self._received_at = time.perf_counter()
        try:
            received = bucket.receive(grad_bucket)
            if self._runs_direct:
                return self._start(bucket, received)
        except BaseException as error:  # raised when backward has ended: DDP would replace it
            self._failure = self._failure or error
            failed: Future[Tensor] = Future()
            failed.set_result(grad_bucket.buffer())
            return failed
        buffer = grad_bucket.buffer()
        future: Future[Tensor] = Future(devices=[buffer.device] if self._stream else None)
        ready = torch.cuda.current_stream(buffer.device).record_event() if self._stream else None
        self._worker.submit(self._reduce, bucket, received, buffer, future, ready)
        return future

    @torch.no_grad()
    def _start(self, bucket: DdpBucket, received: list[Tensor]) -> Future[Tensor]:
        """Start the all-reduce of a bucket's gradient, without waiting for it."""
        self._prepare(bucket, received)
        grad_N = bucket.flat.grad_N
        start, traced, row = time.perf_counter(), self.spans.is_on, f"all-reduce {len(self._started)}"
        reduction = bucket.flat.feedback.reducer.as_all_reduce(grad_N, self.wire.world_size)
        encoded = time.perf_counter()
        started = self.wire.start_sum(reduction.share_N)
        self._started.append(started)

        def finish(done: Future[list[Tensor]]) -> Tensor:
            summed = time.perf_counter()
            with suppress(RuntimeError):  # the error of a failed sum, which `_end_backward` raises again
                done.value()
                reduction.finish()
            end = time.perf_counter()
            if traced:
                self.spans.add(row, f"sum of {grad_N.numel()} elements", encoded, summed)
            self._coded.append(ReductionSeconds(encoded - start, end - summed))
            self._ready_at.append(end)
            return grad_N

        return started.future.then(finish)

    # On the worker thread:

    @torch.no_grad()
    def _reduce(
        self,
        bucket: DdpBucket,
        received: list[Tensor],
        buffer: Tensor,
        future: Future[Tensor],
        ready: torch.Event | None,
    ) -> None:
        """Reduce a bucket; the buffer that DDP reads then holds the mean."""
        with torch.cuda.stream(self._stream):
            try:
                if self._failure is None:
                    if self._stream is not None and ready is not None:
                        self._stream.wait_event(ready)
                    with ExitStack() as timing:
                        if self.config.profile:
                            timing.enter_context(self._phases.running())
                        if self.spans.is_on:
                            timing.enter_context(self.spans.running("reduction"))
                            timing.enter_context(self.spans.span(f"bucket of {buffer.numel()} elements"))
                        self._prepare(bucket, received)
                        bucket.reduce(self.wire, self._lr)
            except BaseException as error:
                self._failure = error
            self._ready_at.append(time.perf_counter())
            future.set_result(buffer)

    def _prepare(self, bucket: DdpBucket, received: list[Tensor]) -> None:
        bucket.load(received)
        scale = float(self.loss_scale.scale) if self.loss_scale.enabled else None
        bucket.prepare(scale, self.wire, checked=self.may_skip)
        if self._sampled:
            self._samples.append(self._sample(bucket.flat.grad_N))

    # Further parts of the interface.

    def is_finite_here(self, batches: list[Batch]) -> bool:
        for p in self._names:
            p.grad = None
        with self._ddp.no_sync():
            for batch in batches:
                self._pass(moved(batch, self.device), self.config.accumulate)
        return all(bool(p.grad.isfinite().all()) for p in self._names if p.grad is not None)

    def seconds(self) -> dict[str, float]:
        """Encoding and decoding, summed over buckets, and the time that communication delayed the step."""
        if not self._reduced or self._stream is not None:
            return {}
        spent = self._coded if self._runs_direct else [flat.seconds for flat in self.flats]
        return {**fields_of_sum(spent), "exposed_seconds": max(self._ready_at) - self._received_at}

    def take_phases(self) -> dict[str, float]:
        return self._phases.take()

    def close(self) -> None:
        self._worker.shutdown()
