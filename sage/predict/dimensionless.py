"""Dimensionless groups of a training step: two set-ups with equal groups gain the same from compression.

Symbols of the break-even between a dense baseline that overlaps with the backward pass and a method:

    S0 / (B t_b)    dense bytes of the baseline over the bytes that the link carries during the backward pass
    W               number of ranks
    t_ed / t_b      encoding and decoding over the backward pass
    v_M / S0        bytes that a rank receives under the method, over the dense bytes
    k α / t_b       latency of the baseline's k buckets over the backward pass

A reduced form of an experiment, with a smaller model on slower hardware, keeps S0/(B t_b) by a slower link:
`bits_per_second`. It keeps W by running as many ranks. The other three follow from the model and the machine.
"""

import math
from dataclasses import dataclass

FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20
"""Bytes of the first bucket of torch's DistributedDataParallel, and of the others (`bucket_cap_mb`)."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The five groups; None where one of its quantities is unknown."""

    world_size: int
    """W."""
    communication: float
    """S0 / (B t_b)."""
    encoding: float | None = None
    """t_ed / t_b."""
    volume: float | None = None
    """v_M / S0."""
    latency: float | None = None
    """k α / t_b."""

    def __str__(self) -> str:
        """The groups in one line.

        >>> print(Groups(world_size=4, communication=26.1, encoding=1.77))
        S0/(B t_b) = 26.1, W = 4, t_ed/t_b = 1.77
        """
        shown = {
            "S0/(B t_b)": self.communication,
            "W": self.world_size,
            "t_ed/t_b": self.encoding,
            "v_M/S0": self.volume,
            "kα/t_b": self.latency,
        }
        return ", ".join(f"{name} = {value:.3g}" for name, value in shown.items() if value is not None)


def groups(
    *,
    world_size: int,
    dense_bytes: float,
    bits_per_second: float,
    backward_seconds: float,
    encode_decode_seconds: float | None = None,
    received_bytes: float | None = None,
    latency_seconds: float | None = None,
    num_buckets: int | None = None,
) -> Groups:
    """Return the groups of a set-up.

    >>> print(groups(world_size=4, dense_bytes=22_347_924, bits_per_second=1e8, backward_seconds=0.0685))
    S0/(B t_b) = 26.1, W = 4

    Args:
        dense_bytes: S0, the bytes of the baseline's gradient: 2 per parameter for bf16.
        bits_per_second: 8 B, the bandwidth of a rank's link.
        backward_seconds: t_b, the backward pass of one rank without communication.
        encode_decode_seconds: t_ed, of the method, at this number of ranks.
        received_bytes: v_M, per rank and step.
        latency_seconds: α of one message.
        num_buckets: k, of the baseline.

    Raises:
        ValueError: if a quantity is not a finite number above 0.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    for name, value in given.items():
        _check(name, value)
    return Groups(
        world_size=world_size,
        communication=8 * dense_bytes / (bits_per_second * backward_seconds),
        encoding=_over(encode_decode_seconds, backward_seconds),
        volume=_over(received_bytes, dense_bytes),
        latency=_over(
            None if num_buckets is None or latency_seconds is None else num_buckets * latency_seconds,
            backward_seconds,
        ),
    )


def bits_per_second(*, communication: float, dense_bytes: float, backward_seconds: float) -> float:
    """Return the bandwidth at which a set-up has this S0/(B t_b): that of a reduced form.

    A model with 1/40 of ResNet-18's gradient and 1/3 of its backward pass needs 3/40 of its bandwidth:

    >>> found = bits_per_second(
    ...     communication=26.1, dense_bytes=22_347_924 / 40, backward_seconds=0.0685 / 3
    ... )
    >>> print(f"{found / 1e6:.2f} Mbit/s")
    7.50 Mbit/s

    Raises:
        ValueError: if a quantity is not a finite number above 0.
    """
    for name, value in {**locals()}.items():
        _check(name, value)
    return 8 * dense_bytes / (communication * backward_seconds)


def num_buckets(gradient_bytes: float, first: float = FIRST_BUCKET, others: float = BUCKET) -> int:
    """Return k, the number of DDP's buckets, as if parameters could be split.

    DDP closes a bucket after the parameter that fills it, so the true number can be lower.

    >>> num_buckets(1000), num_buckets(44_695_848)
    (1, 3)
    """
    return 1 + max(0, math.ceil((gradient_bytes - first) / others))


def _check(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; allowed is a finite number above 0")


def _over(above: float | None, below: float) -> float | None:
    return None if above is None else above / below
