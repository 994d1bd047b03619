"""The time of backward with overlapped reductions: a recurrence over buckets with two resources.

The resources are the compute device and the link. The communication of a bucket starts when its gradient is
ready and that of the previous bucket has ended (Shi, Chu and Li, MG-WFBP, 2019, equation 7):

    start_k = max(end_{k−1}, ready_k),    end_k = start_k + comm_k

A method that encodes and decodes does so on the compute device, in the order of SAGE's hook: a bucket is
encoded, sent and decoded before the next one is encoded. Meanwhile backward waits for the device, and goes on
during communication, which slows it down by a factor γ: in that time comm_k / γ of it is done.
"""
# K = buckets; arrays broadcast against each other

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

Array = NDArray[numpy.float64]


@dataclass(frozen=True)
class Overlap:
    """The time of backward with its reductions."""

    seconds: Array
    """From the start of backward to the end of both backward and the last reduction."""
    exposed: Array
    """The part of it in which the compute device waits for communication."""


def overlap(
    ready_K: Sequence[Any],
    comm_K: Sequence[Any],
    backward: Any,
    encode_K: Sequence[Any] | None = None,
    decode_K: Sequence[Any] | None = None,
    gamma: Any = 1.0,
) -> Overlap:
    """Return the time of backward with the reductions of K buckets.

    Args:
        ready_K: when each bucket's gradient is ready in an undisturbed backward, not decreasing.
        comm_K: seconds of each bucket's communication.
        backward: seconds of an undisturbed backward, not less than the last of `ready_K`.
        encode_K: seconds of each bucket's encoding; 0 by default.
        decode_K: seconds of each bucket's decoding; 0 by default.
        gamma: γ, the time of backward during communication over that of backward alone; 1 or more.
    """
    zeros = [0.0] * len(ready_K)
    encode_K, decode_K = encode_K or zeros, decode_K or zeros
    end: Any = numpy.zeros(())
    done: Any = numpy.zeros(())  # seconds of an undisturbed backward that are done at `end`
    waited: Any = numpy.zeros(())
    for ready, encode, comm, decode in zip(ready_K, encode_K, comm_K, decode_K, strict=True):
        start = end + numpy.maximum(ready - done, 0.0)
        done = numpy.maximum(done, ready)
        waited = waited + numpy.maximum(comm - gamma * (backward - done), 0.0)
        done = numpy.minimum(done + comm / gamma, backward)
        end = start + encode + comm + decode
    return Overlap(end + backward - done, waited)


def two_term(k: int, backward: Any, comm: Any, last: Any) -> Any:
    """Return max(backward, (k−1)·comm) + last: k−1 equal buckets behind backward, and the last one after it.

    It is the model of Agarwal et al. (MLSys 2022), in which communication may begin with backward. The
    recurrence is never less, never more than twice as much, and for equal buckets more by at most the time
    until the first bucket is ready.
    """
    return numpy.maximum(backward, (k - 1) * comm) + last
