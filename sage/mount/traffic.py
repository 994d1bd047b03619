"""What a mount has sent, beside what an uncompressed all-reduce would have been handed."""

from dataclasses import dataclass

from sage.comm.ledger import KINDS, Ledger


@dataclass(frozen=True)
class Traffic:
    """What one rank has handed to its collectives for gradients, in one step or in several."""

    steps: int = 0
    """Reductions, the skipped ones included."""
    skipped: int = 0
    """Of these, the ones in which a gradient was not finite, so that nothing was reduced."""
    payload_bytes: int = 0
    """Values, indices, scales, sizes and padding that this rank handed over."""
    dense_bytes: int = 0
    """What an all-reduce of the same gradients, each in its own dtype, would have been handed."""
    wire_sent: int = 0
    """Bytes that the collectives' algorithms sent from this rank (docs/explanation/ledger.md)."""
    wire_received: int = 0
    """Bytes that they brought to this rank."""

    @property
    def compression(self) -> float:
        """`dense_bytes` over `payload_bytes`; infinite where nothing was handed over.

        >>> Traffic(steps=1, payload_bytes=80, dense_bytes=4000).compression
        50.0
        """
        if self.payload_bytes:
            return self.dense_bytes / self.payload_bytes
        return float("inf") if self.dense_bytes else 1.0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.steps + other.steps,
            self.skipped + other.skipped,
            self.payload_bytes + other.payload_bytes,
            self.dense_bytes + other.dense_bytes,
            self.wire_sent + other.wire_sent,
            self.wire_received + other.wire_received,
        )


def of_step(booked: Ledger, dense_bytes: int, *, skipped: bool) -> Traffic:
    """The traffic of one step, by what the ledger has booked in it."""
    payload = sum(booked.payload[kind] for kind in KINDS)
    return Traffic(1, int(skipped), payload, dense_bytes, booked.sent, booked.received)
