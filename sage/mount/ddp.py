"""The mount for DistributedDataParallel: buckets are reduced beside backward, as their gradients come.

The buckets are our own, cut once when the hook is mounted, and by the rule by which DDP cuts its own from the
second step on. DDP only brings the gradients, in buckets that it cuts anew after the first step, so that
neither this nor a restart moves any state.
"""
# N = elements of a bucket's flat gradient

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from sage.comm.guest import GuestWire
from sage.comm.wire import Wire
from sage.memory import MemoryOptions
from sage.mount.base import Method, Mount, check_dense, maker
from sage.mount.flat import Flat
from sage.reduce import Memory

Named = Sequence[tuple[str, nn.Parameter]]


@dataclass(eq=False)
class _Bucket:
    """Parameters whose gradients are reduced together."""

    flat: Flat
    parameters: list[nn.Parameter]
    """In the flat gradient's order."""
    missing: set[Tensor] = field(default_factory=set)
    """Those whose gradients this backward has not brought yet."""


@dataclass(eq=False)
class _Delivery:
    """One bucket of DDP's: gradients to be replaced by their means, which the future then tells."""

    future: Future[Tensor]
    buffer: Tensor
    gradients: list[tuple[Tensor, Tensor]]
    is_first: bool
    is_last: bool
    ready: torch.Event | None
    """On a GPU, when backward has written the gradients."""


class DdpMount(Mount):
    """A reducer beneath DistributedDataParallel. Made by `sage.ddp_hook`."""

    def __init__(self, model: DistributedDataParallel, buckets: list[_Bucket], wire: Wire) -> None:
        super().__init__(wire, [bucket.flat for bucket in buckets])
        self._buckets = buckets
        self._bucket_of: dict[Tensor, _Bucket] = {p: bucket for bucket in buckets for p in bucket.parameters}
        self._finds_unused = model.find_unused_parameters
        device = buckets[0].flat.grad_N.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # Reducers wait for each other's ranks, so they run beside backward, on a thread of their own.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sage-mount")
        self._failure: BaseException | None = None
        # Of this backward, known to the worker alone:
        self._deliveries: list[_Delivery] = []
        self._arrived: dict[Tensor, Tensor] = {}
        model.register_comm_hook(None, self._hook)

    def begin_step(self, lr: float) -> None:
        self._worker.submit(super().begin_step, lr).result()

    def begin_epoch(self, epoch: int, lr: float) -> None:
        self._worker.submit(super().begin_epoch, epoch, lr).result()

    def close(self) -> None:
        self._worker.shutdown()
        super().close()

    # On the thread that runs backward.

    def _hook(self, state: object, bucket: dist.GradBucket) -> Future[Tensor]:
        if bucket.index() == 0:
            # DDP's own end of backward is queued later than this; so ours is put off twice.
            queue = Variable._execution_engine.queue_callback
            queue(lambda: queue(self._end_backward))
        buffer = bucket.buffer()
        delivery = _Delivery(
            Future(devices=[buffer.device] if self._stream else None),
            buffer,
            list(zip(bucket.parameters(), bucket.gradients(), strict=True)),
            is_first=bucket.index() == 0,
            is_last=bucket.is_last(),
            ready=torch.cuda.current_stream(buffer.device).record_event() if self._stream else None,
        )
        self._worker.submit(self._take, delivery)
        return delivery.future

    def _end_backward(self) -> None:
        """The last of backward: DDP has waited for all futures, and written every `.grad`."""
        if self._failure is not None:
            raise self._failure
        if self._finds_unused:
            self._give_to_unused()

    def _give_to_unused(self) -> None:
        """DDP leaves the `.grad` of what no rank has used as it is; but its residual may have been sent."""
        for bucket in self._buckets:
            for parameter, mean in zip(bucket.parameters, bucket.flat.views().values(), strict=True):
                if bool(mean.any()):
                    if parameter.grad is None:
                        parameter.grad = torch.empty_like(parameter)
                    parameter.grad.copy_(mean)

    # On the worker.

    @torch.no_grad()
    def _take(self, delivery: _Delivery) -> None:
        """Reduce the buckets whose gradients are complete with this delivery, in one order on all ranks."""
        self._deliveries.append(delivery)
        with torch.cuda.stream(self._stream):
            try:
                if self._failure is None:
                    self._unpack(delivery)
            except BaseException as error:
                self._failure = error  # which backward raises, once nobody waits any more
            for one in self._deliveries[:]:
                if self._failure is not None or self._is_done(one):
                    self._deliveries.remove(one)
                    one.future.set_result(one.buffer)

    def _unpack(self, delivery: _Delivery) -> None:
        if self._stream is not None and delivery.ready is not None:
            self._stream.wait_event(delivery.ready)
        if delivery.is_first:
            for bucket in self._buckets:
                bucket.missing = set(bucket.parameters)
        for parameter, gradient in delivery.gradients:
            self._arrived[parameter] = gradient
            self._bucket_of[parameter].missing.discard(parameter)
        for bucket in self._buckets:
            if not bucket.missing and bucket.parameters[0] in self._arrived:
                self._reduce(bucket)
        assert not delivery.is_last or not self._arrived, "DDP's last bucket has come, but not all gradients"

    def _reduce(self, bucket: _Bucket) -> None:
        gradients = [self._arrived.pop(parameter) for parameter in bucket.parameters]
        bucket.flat.fit(gradients[0])
        views = bucket.flat.views().values()
        for view, gradient in zip(views, gradients, strict=True):
            view.copy_(gradient)
        bucket.flat(self.wire)
        for view, gradient in zip(views, gradients, strict=True):
            gradient.copy_(view)

    def _is_done(self, delivery: _Delivery) -> bool:
        return not any(parameter in self._arrived for parameter, _ in delivery.gradients)


def ddp_hook(
    model: DistributedDataParallel,
    reducer: Method,
    *,
    memory: Memory | None = None,
    memory_options: MemoryOptions | None = None,
    grouping: str | None = None,
    min_compress: int = 0,
    timeout: float = 300.0,
    guard: bool = False,
    **options: Any,
) -> DdpMount:
    """Mount a reducer beneath DistributedDataParallel, before the first backward.

    Each bucket of `bucket_cap_mb` has a reducer of its own, so `grouping="model"` means a bucket.

    Args:
        model: Wrapped already; without another communication hook.
        reducer: A reducer's name, with its options as further keywords; or a reducer, or what makes one.
        memory: Error feedback; by default what the reducer asks for.
        memory_options: Its β, γ and so on, as of `sage.memory.ErrorFeedback`.
        grouping: The unit over which the reducer decides; by default what it asks for.
        min_compress: Tensors of fewer elements go dense, unless the reducer takes them too.
        timeout: Seconds after which a collective that has not come back is an error on every rank.
        guard: Compare every collective between the ranks before it is made.

    Raises:
        ValueError: for a model, reducer or option that does not fit; says what would.
        WireError: where not all ranks come within the time-out; later, from `backward()`, where one is lost.
    """
    named = _checked(model)
    make = maker(reducer, options)
    device = named[0][1].device
    first = dist._DEFAULT_FIRST_BUCKET_BYTES if model.bucket_bytes_cap_default else model.bucket_bytes_cap

    def bucket(names: Named) -> _Bucket:
        flat = Flat(
            [(name, p.shape) for name, p in names],
            make(),
            dtype=names[0][1].dtype,
            device=device,
            memory=memory,
            memory_options=memory_options,
            grouping=grouping,
            min_compress=min_compress,
        )
        of = dict(names)
        return _Bucket(flat, [of[span.name] for span in flat.layout.spans])

    buckets = [bucket(names) for names in cut(named, first, model.bucket_bytes_cap)]
    wire = GuestWire(model.process_group, device=device, timeout=timeout, guard=guard)
    return DdpMount(model, buckets, wire)


def cut(named: Named, first: int, cap: int) -> list[Named]:
    """Parameters in buckets, the last parameter's bucket first, as DDP cuts them from the second step on.

    DDP goes by the order in which gradients come, this by the reverse of that in which the model has the
    parameters: in most models the same. A bucket is closed once it has `first` bytes, the later ones `cap`.
    Parameters of one bucket are of one dtype, and in the model's order.
    """
    closed: list[Named] = []
    begun: dict[torch.dtype, list[tuple[str, nn.Parameter]]] = {}
    room: dict[torch.dtype, int] = {}
    for name, p in reversed(named):
        begun.setdefault(p.dtype, []).append((name, p))
        room[p.dtype] = room.get(p.dtype, first) - p.nbytes
        if room[p.dtype] <= 0:
            closed.append(begun.pop(p.dtype)[::-1])
            room[p.dtype] = cap
    return [*closed, *(bucket[::-1] for bucket in begun.values())]


def _checked(model: DistributedDataParallel) -> Named:
    """The model's parameters, by name."""
    if not isinstance(model, DistributedDataParallel):
        raise ValueError(
            f"ddp_hook takes a model wrapped in DistributedDataParallel, not a {type(model).__name__}: "
            "wrap it first, or use sage.reduce_model for a plain model, sage.fsdp_hook for one of FSDP2"
        )
    if model.skip_all_reduce_unused_params:
        raise ValueError(
            "skip_all_reduce_unused_params=True keeps whole buckets back, whose residuals would wait: "
            "leave it out"
        )
    check_dense(model.module)
    ignored = set(model.parameters_to_ignore)
    named = [
        (name, p) for name, p in model.module.named_parameters() if p.requires_grad and name not in ignored
    ]
    devices = sorted({str(p.device) for _, p in named})
    if len(devices) > 1:
        raise ValueError(f"the model lies on {', '.join(devices)}: expected one device a rank")
    return named
