"""The mount for DistributedDataParallel: buckets are reduced during backward as their gradients arrive.

The buckets are our own. They are formed once when the hook is mounted, by the rule that DDP uses from the
second step on. DDP rebuilds its buckets after the first step; ours do not change, so the state stays with its
elements, also after a restart.
"""
# N = elements of a bucket's flat gradient

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from sage.comm.attached import AttachedWire
from sage.comm.wire import Wire
from sage.mount.agreement import check_same, setup_lines
from sage.mount.base import Method, Mount, maker
from sage.mount.buckets import Bucket, Listed, cut, gradients_of
from sage.mount.flat import Flat
from sage.mount.loss_scale import LossScale, current
from sage.mount.origins import origins
from sage.mount.parameters import as_real, check_unchanged, ddp_parameters, real_dtype, real_shape
from sage.mount.signature import not_a_hook
from sage.mount.step import Step
from sage.mount.wrapped import AGAIN, HAS_HOOK, NO_JOIN, checked
from sage.reduction.error_feedback import MemoryOptions
from sage.reduction.reducer import Memory, Reducer


@dataclass(eq=False)
class _Delivery:
    """One DDP bucket: gradients to be replaced by their means, which the future then returns."""

    future: Future[Tensor]
    buffer: Tensor
    gradients: list[tuple[Tensor, Tensor]]
    is_first: bool
    is_last: bool
    loss_scale: LossScale | None
    ready: torch.Event | None
    """On a GPU, the event after backward has written the gradients."""


class DdpMount(Mount):
    """A reducer as the communication hook of DistributedDataParallel; created by the two hook functions.

    These are `sage.ddp_hook` and `sage.comm_hook`.
    """

    _how_to_reduce = "run the last backward outside no_sync(), through the wrapped model,"

    def __init__(self, model: DistributedDataParallel, buckets: list[Bucket], wire: Wire) -> None:
        named = {
            span.name: p
            for bucket in buckets
            for span, p in zip(bucket.flat.layout.spans, bucket.parameters, strict=True)
        }
        super().__init__(model, wire, [bucket.flat for bucket in buckets], named)
        self._ignored = frozenset(model.parameters_to_ignore)
        self._buckets = buckets
        self._bucket_of: dict[Tensor, Bucket] = {p: bucket for bucket in buckets for p in bucket.parameters}
        self._finds_unused = model.find_unused_parameters
        device = buckets[0].flat.grad_N.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # Reducers wait for the other ranks, so they run on a separate thread during backward.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sage-mount")
        self._failure: BaseException | None = None
        self._closed = False
        # State of this backward, used only by the worker:
        self._deliveries: list[_Delivery] = []
        self._arrived: dict[Tensor, Tensor] = {}
        self._step: Step | None = None
        self._hooks.append(model.register_forward_pre_hook(self._before_forward))
        setattr(model, "join_hook", _refuse_join)  # noqa: B010

    def model_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._inner().named_parameters() if p.requires_grad}

    def check(self) -> None:
        check_unchanged(self._named, self._inner(), ignored=self._ignored, again=AGAIN)

    def begin_epoch(self, epoch: int, lr: float) -> None:
        self._worker.submit(super().begin_epoch, epoch, lr).result()

    def close(self) -> None:
        self._closed = True
        self._worker.shutdown()
        super().close()

    def _inner(self) -> nn.Module:
        assert isinstance(self._model, DistributedDataParallel)
        module: nn.Module = self._model.module
        return module

    def _before_forward(self, module: nn.Module, arguments: object) -> None:
        if not torch.compiler.is_compiling():
            self.check()

    # On the thread that runs backward:

    def _hook(self, state: object, bucket: dist.GradBucket) -> Future[Tensor]:
        if self._closed:
            raise ValueError(f"the mount of this model is closed: {AGAIN}")
        if bucket.index() == 0:
            # DDP queues its own end of backward later than this, so ours is queued twice to run after it.
            queue = Variable._execution_engine.queue_callback
            queue(lambda: queue(self._end_backward))
        buffer = bucket.buffer()
        delivery = _Delivery(
            Future(devices=[buffer.device] if self._stream else None),
            buffer,
            list(zip(bucket.parameters(), gradients_of(bucket), strict=True)),
            is_first=bucket.index() == 0,
            is_last=bucket.is_last(),
            loss_scale=current(),
            ready=torch.cuda.current_stream(buffer.device).record_event() if self._stream else None,
        )
        self._worker.submit(self._take, delivery)
        return delivery.future

    def _end_backward(self) -> None:
        """End of backward: DDP has waited for all futures and written every `.grad`."""
        if self._failure is not None:
            raise self._failure
        assert self._step is not None
        if self._step.skipped:  # buckets reduced before this was known have returned their means
            for parameter in self._named.values():
                if parameter.grad is not None:
                    parameter.grad.fill_(math.nan)
        elif self._finds_unused:
            self._give_to_unused()
        self._unreduced.clear()

    def _give_to_unused(self) -> None:
        """Write the means of parameters that no rank used to their `.grad`, which DDP leaves unchanged.

        Their residuals may have been sent.
        """
        for bucket in self._buckets:
            for parameter, mean in zip(bucket.parameters, bucket.flat.views().values(), strict=True):
                if bool(mean.any()):
                    if parameter.grad is None:
                        parameter.grad = torch.empty_like(parameter)
                    as_real(parameter.grad).copy_(mean)

    # On the worker thread.

    @torch.no_grad()
    def _take(self, delivery: _Delivery) -> None:
        """Reduce the buckets that this delivery completes, in the same order on all ranks."""
        self._deliveries.append(delivery)
        with torch.cuda.stream(self._stream):
            try:
                if self._failure is None:
                    self._unpack(delivery)
            except BaseException as error:
                self._failure = error  # raised by backward once no future is pending
            for waiting in self._deliveries[:]:
                if self._failure is not None or self._is_done(waiting):
                    self._deliveries.remove(waiting)
                    waiting.future.set_result(waiting.buffer)

    def _unpack(self, delivery: _Delivery) -> None:
        if self._stream is not None and delivery.ready is not None:
            self._stream.wait_event(delivery.ready)
        if delivery.is_first:
            self._step = self._begin_step(delivery.loss_scale)
            for bucket in self._buckets:
                bucket.missing = set(bucket.parameters)
        for parameter, gradient in delivery.gradients:
            if parameter not in self._bucket_of:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)}, which DistributedDataParallel reduces, "
                    f"was frozen at mounting: {AGAIN}"
                )
            self._arrived[parameter] = gradient
            self._bucket_of[parameter].missing.discard(parameter)
        for bucket in self._buckets:
            if not bucket.missing and bucket.parameters[0] in self._arrived:
                self._reduce(bucket)
        if delivery.is_last:
            missing = {p for bucket in self._buckets for p in bucket.missing}
            if missing:
                names = [repr(name) for name, p in self._named.items() if p in missing]
                raise ValueError(
                    f"DistributedDataParallel has no gradient of {', '.join(names)}, which was unfrozen "
                    f"after wrapping: {AGAIN}"
                )
            assert self._step is not None
            self._end_step(self._step)

    def _reduce(self, bucket: Bucket) -> None:
        gradients = [self._arrived.pop(parameter) for parameter in bucket.parameters]
        bucket.flat.fit(gradients[0])
        views = bucket.flat.views().values()
        for view, gradient in zip(views, gradients, strict=True):
            view.copy_(gradient)
        assert self._step is not None
        self._step.reduce(bucket.flat)
        for view, gradient in zip(views, gradients, strict=True):
            gradient.copy_(view)

    def _is_done(self, delivery: _Delivery) -> bool:
        return not any(parameter in self._arrived for parameter, _ in delivery.gradients)


@not_a_hook
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
    """Mount a reducer as the communication hook of DistributedDataParallel, before the first backward.

    For frameworks that wrap the model themselves, use the pair from `sage.comm_hook`. Each bucket of
    `bucket_cap_mb` has its own reducer, so `grouping="model"` means a bucket.

    Args:
        model: The wrapped model, without another communication hook.
        reducer: A reducer's name, with its options as further keywords; or a reducer, or a callable that
            creates one.
        memory: Error feedback; by default the reducer's own.
        memory_options: Options of the error feedback (β, γ, …); see
            `sage.reduction.error_feedback.ErrorFeedback`.
        grouping: Unit of the reducer's decisions; by default the reducer's own.
        min_compress: Tensors with fewer elements are sent dense, unless the reducer handles them too.
        timeout: Seconds after which an incomplete collective is an error on every rank.
        guard: Compare every collective between the ranks before it runs.

    Raises:
        ValueError: if the model, reducer or an option does not fit; the message says what would.
        WireError: if not all ranks arrive within the timeout; later, from `backward()`, if a rank is lost.
    """
    make = maker(reducer, options)
    wrapped = checked(model)
    flat_options = {
        "memory": memory,
        "memory_options": memory_options,
        "grouping": grouping,
        "min_compress": min_compress,
    }
    if wrapped._comm_hooks:
        raise ValueError(HAS_HOOK)
    mount = mount_on(
        wrapped, make, requested=(reducer, options), timeout=timeout, guard=guard, **flat_options
    )
    try:
        wrapped.register_comm_hook(None, mount._hook)
    except RuntimeError as error:  # a built-in hook, which DDP does not list
        mount.close()
        raise ValueError(HAS_HOOK) from error
    return mount


def mount_on(
    model: DistributedDataParallel,
    make: Callable[[], Reducer],
    *,
    requested: tuple[Method, Mapping[str, Any]],
    timeout: float,
    guard: bool,
    **flat_options: Any,
) -> DdpMount:
    """Mount on a checked model, without registering the hook.

    Args:
        model: The wrapped model.
        make: Creates a reducer for each bucket.
        requested: The reducer and its options as the script gave them, to be compared between the ranks.
        timeout: Seconds after which an incomplete collective is an error.
        guard: Compare every collective between the ranks before it runs.
        flat_options: Options of `Flat`.
    """
    named = list(ddp_parameters(model, in_backward=True).items())
    device = named[0][1].device
    first = dist._DEFAULT_FIRST_BUCKET_BYTES if model.bucket_bytes_cap_default else model.bucket_bytes_cap

    places = origins(dict(named), make(), flat_options["min_compress"])

    def bucket(names: Listed) -> Bucket:
        flat = Flat(
            [(name, real_shape(p)) for name, p in names],
            make(),
            dtype=real_dtype(names[0][1]),
            device=device,
            always={name for name, p in names if p.is_complex()},
            origins=places,
            **flat_options,
        )
        of = dict(names)
        return Bucket(flat, [of[span.name] for span in flat.layout.spans])

    buckets = [bucket(names) for names in cut(named, first, model.bucket_bytes_cap)]
    wire = AttachedWire(model.process_group, device=device, timeout=timeout, guard=guard)
    check_same(wire, setup_lines([bucket.flat for bucket in buckets], *requested))
    mount = DdpMount(model, buckets, wire)
    settings = {name: value for name, value in flat_options.items() if name != "memory"}
    mount.describe(*requested, bucket_cap_bytes=model.bucket_bytes_cap, **settings)
    return mount


def _refuse_join(**options: object) -> None:
    raise ValueError(NO_JOIN)
