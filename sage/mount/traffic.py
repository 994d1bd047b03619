"""Traffic of a mount, compared with that of an uncompressed all-reduce."""

from dataclasses import dataclass

from sage.comm.ledger import KINDS, Ledger


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank has passed to collectives for gradients, in one or several steps."""

    steps: int = 0
    """Number of reductions, including skipped ones."""
    skipped: int = 0
    """Reductions skipped because a gradient was not finite."""
    payload_bytes: int = 0
    """Payload: values, indices, scales, sizes and padding of this rank."""
    dense_bytes: int = 0
    """Payload of an all-reduce of the same gradients, each in its own dtype."""
    wire_sent: int = 0
    """Bytes that the collectives' algorithms sent from this rank (docs/explanation/ledger.md)."""
    wire_received: int = 0
    """Bytes that the collectives' algorithms delivered to this rank."""
    wire_sent_in_node: int = 0
    """Of the bytes sent, those of collectives within a node, with `hierarchy="node"`."""
    wire_received_in_node: int = 0
    """Of the bytes received, the same."""

    @property
    def compression(self) -> float:
        """`dense_bytes` / `payload_bytes`; infinite if the payload is empty.

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
            self.wire_sent_in_node + other.wire_sent_in_node,
            self.wire_received_in_node + other.wire_received_in_node,
        )


def of_step(ledger: Ledger, dense_bytes: int, *, skipped: bool) -> Traffic:
    """Traffic of one step, from its ledger."""
    payload = sum(ledger.payload[kind] for kind in KINDS)
    return Traffic(
        1,
        int(skipped),
        payload,
        dense_bytes,
        ledger.sent,
        ledger.received,
        ledger.sent_in_node,
        ledger.received_in_node,
    )
