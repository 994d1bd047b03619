"""The terms of the closed forms, from a calibration: the overlapped baseline, and a method after backward."""

import statistics

from sage.predict.buckets import cut
from sage.predict.calibration import Calibration, Message, MethodTimes
from sage.predict.closed_forms import Baseline, Compressed
from sage.predict.links import Links
from sage.predict.payload import traffic
from sage.predict.step_time import DENSE, Predictor, Setup, find

REFERENCE = "bf16"


def dense_method(calibration: Calibration, reducer: str) -> MethodTimes:
    """Return a dense method as measured; made of the element count alone if it was not measured."""
    method = find(calibration.methods, reducer)
    if method is not None:
        return method
    message = Message("all_reduce", DENSE[reducer] * calibration.model.numel)
    return MethodTimes(reducer, {}, (0.0,), {1: (0.0,)}, None, {calibration.world_size: (message,)})


def reference(calibration: Calibration) -> MethodTimes:
    """Return bf16, which under the mount `ddp` is the reference of all comparisons."""
    return dense_method(calibration, REFERENCE)


def baseline(
    predictor: Predictor,
    setup: Setup,
    network: Links,
    bucket_mb: float | None,
    reducer: str = "bf16",
) -> Baseline:
    """Return the overlapped dense reduction in the terms of the closed forms.

    All buckets but the last count with their mean size. An infinite `bucket_mb` means one bucket.
    """
    calibration = predictor.calibration
    model = calibration.model
    method = dense_method(calibration, reducer)
    buckets = cut(model.parameters, bucket_mb)
    sizes = [bucket.numel for bucket in buckets]
    latency, volume = _terms(network, setup, method, model.numel)
    # The latency of a bucket is that of a whole reduction, and its volume in proportion to its elements.
    body = (model.numel - sizes[-1]) / max(1, len(sizes) - 1)
    slow = predictor.slowness(setup.ranks) / setup.speedup
    forward, backward, update = (
        sum(samples) / len(samples)
        for samples in (model.forward_seconds, model.backward_seconds, model.optimizer_seconds)
    )
    coding = coding_of(predictor, setup, method)
    return Baseline(
        other=slow * forward + update / setup.speedup + coding,
        backward=slow * backward,
        buckets=len(sizes),
        latency=latency,
        volume=volume * body / model.numel,
        last_volume=volume * sizes[-1] / model.numel,
        gamma=max(1.0, statistics.median(model.gamma)),
        first_ready=slow * backward * buckets[0].ready_seconds / buckets[-1].ready_seconds,
    )


def compressed_of(
    predictor: Predictor, setup: Setup, network: Links, method: MethodTimes, dense: MethodTimes
) -> Compressed:
    """Return a method, reduced after backward, in the terms of the closed forms."""
    latency, volume = _terms(network, setup, method, predictor.calibration.model.numel)
    # The baseline's own encoding is in its `other`, which both step times have.
    own = coding_of(predictor, setup, dense)
    return Compressed(coding_of(predictor, setup, method) - own, latency, volume)


def coding_of(predictor: Predictor, setup: Setup, method: MethodTimes) -> float:
    """Return the mean seconds of encoding and decoding a gradient."""
    encode = sum(method.encode_seconds) / len(method.encode_seconds)
    return float(encode + predictor.decode(method, setup.ranks)[0, 0]) / setup.speedup


def _terms(network: Links, setup: Setup, method: MethodTimes, numel: int) -> tuple[float, float]:
    latency = volume = 0.0
    for message in traffic(method, setup.ranks, numel):
        fixed, moved = network.terms(
            message.collective, message.size.bytes, setup.ranks, setup.ranks_per_node
        )
        latency, volume = latency + message.count * fixed, volume + message.count * moved
    return latency, volume
