"""The time of decoding W payloads into a mean, as t_d0 + W·t_d1."""

from collections.abc import Mapping


def fitted(seconds: Mapping[int, float]) -> tuple[float, float]:
    """Return t_d0 and t_d1 of the least-squares line through (W, seconds), neither below 0.

    With a single W all of the time is attributed to its payloads.

    >>> fitted({1: 3.0, 2: 5.0, 4: 9.0})
    (1.0, 2.0)
    >>> fitted({2: 5.0})
    (0.0, 2.5)
    """
    mean_w = sum(seconds) / len(seconds)
    mean_s = sum(seconds.values()) / len(seconds)
    spread = sum((w - mean_w) ** 2 for w in seconds)
    per_payload = (
        sum((w - mean_w) * (s - mean_s) for w, s in seconds.items()) / spread if spread else mean_s / mean_w
    )
    fixed = mean_s - mean_w * per_payload
    if fixed < 0:  # through the origin
        return 0.0, sum(w * s for w, s in seconds.items()) / sum(w * w for w in seconds)
    return (fixed, per_payload) if per_payload >= 0 else (mean_s, 0.0)
