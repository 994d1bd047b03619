"""Checks at mounting that all ranks have the same parameters, reducer and options."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch

from sage.comm.wire import Wire
from sage.mount.base import Method
from sage.mount.flat import Flat


def setup_lines(flats: Sequence[Flat], reducer: Method, options: Mapping[str, Any]) -> list[str]:
    """Return lines that must be equal on all ranks: the method, and the position of each parameter."""
    made = flats[0].feedback.reducer
    method = reducer if isinstance(reducer, str) else type(made).__name__
    given = ", ".join(f"{name}={value!r}" for name, value in sorted(options.items()))
    lines = [f"{method}({given}) with memory {flats[0].feedback.memory}"]
    for flat in flats:
        lines += [f"{span.name} {list(span.shape)} {flat.grad_N.dtype}" for span in flat.layout.spans]
        lines.append(f"groups {flat.compressed.groups}")
    return lines


def check_same(wire: Wire, lines: Sequence[str]) -> None:
    """Refuse to mount if the lines differ between ranks; exchanges 8 bytes if they are equal (`state`).

    Raises:
        ValueError: on every rank; names a rank that differs from rank 0, and both lines.
    """
    text = "\n".join(lines)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    (all_W8,) = wire.gather(state=torch.frombuffer(bytearray(digest), dtype=torch.uint8))
    if bool((all_W8 == all_W8[0]).all()):
        return
    first, *others = [lines.split("\n") for lines in wire.texts(text)]
    for rank, other in enumerate(others, start=1):
        for ours, theirs in zip_longest(first, other, fillvalue="nothing"):
            if ours != theirs:
                raise ValueError(
                    f"the ranks mount different configurations: rank 0 has {ours}, rank {rank} has {theirs}; "
                    "give every rank the same model, reducer and options"
                )
