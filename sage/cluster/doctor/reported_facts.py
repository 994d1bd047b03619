"""Validation of the agents' reports, step by step: types, ranges and order of the facts.

Reports arrive through ssh, srun and the network, together with the output of login scripts, of older
checkouts and of other programs.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from sage.comm.address import is_loopback
from sage.output.text import clean_text
from sage.storage import Kind

LONGEST = 300
"""The number of characters kept of a string."""

MOST = 10_000
"""The number of items kept of a list or an object."""

PIECES = 2_000
"""The largest number of pieces of one step."""

LINK = {"error?": str, "alpha_seconds?": float, "bits_per_second?": float}
VERSIONS = ("torch", "numpy", "nccl", "cuda", "commit")

STEPS: Mapping[str, Any] = {
    "node": {"node": str, "network": str, "world_size": int},
    "software": {
        **dict.fromkeys(("python", "sage"), str),
        **dict.fromkeys(("torch", "numpy", "visible"), str | None),
        "extension": bool,
        "gpu_files": int,
    },
    "names": {
        "own": str,
        "names": dict[str, Any],
        "back": dict[str, list[str]],
    },
    "network": {
        "interfaces": dict[str, list[str]],
        "ipv4": bool,
        "ipv6": bool,
        "settings": dict[str, str],
        "wrong": list[str],
        **{f"{name}?": str for name in ("address", "no_route", "interface")},
        "loopback?": bool,
    },
    "meeting": {"error?": str, "absent?": list[int]},
    "clock": {"skew": float},
    "folder": {"path": str, "error?": str, "seen?": list[int]},
    "pairs": dict[str, Any],
    "left_out": {"why": str},
    "importing torch": {},
    "torch": {
        "error?": str,
        "versions?": dict.fromkeys(VERSIONS, str | None),
        "gpus?": int,
        "gpu?": str,
        "uuid?": str,
    },
    "all_reduce": {"device": str, "error?": str, "links?": Any},
    "end": {"strangers?": list[str]},
    # Exchanged between agents.
    "peer": {
        "address": str | None,
        "port": int,
        "free_port": int,
        "wrong": list[str],
        "obstacle": str,
    },
}
"""The keys and types of each step's facts, as in `sage.storage.schema`."""

FIRST = ("node", "software", "names", "network")
"""The first steps of an agent, in order; checks of later steps use them."""

_KINDS = {step: Kind(name="", keys={"": keys}) for step, keys in STEPS.items()}


def fault(step: str, found: Any, ranks: Collection[int] | None = None) -> str:
    """The fault in the facts of a step; "" if there is none.

    Args:
        step: The step's name.
        found: The facts.
        ranks: All ranks, to check facts that refer to other ranks.
    """
    if step not in STEPS:
        return "does not exist"
    if _KINDS[step].fault({"": found}):
        return "has missing keys or wrong types"
    return "" if _is_sound(step, found, ranks) else "has impossible values"


def cleaned(found: Any) -> Any:
    """The facts with printable strings, and lists and objects cut to `MOST` items."""
    if isinstance(found, str):
        return clean_text(found, LONGEST)
    if isinstance(found, dict):
        return {clean_text(key, LONGEST): cleaned(found[key]) for key in [*found][:MOST]}
    return [cleaned(item) for item in found[:MOST]] if isinstance(found, list) else found


class ReportParser:
    """Assembles and validates one rank's report from its pieces.

    Args:
        ranks: All ranks.
    """

    def __init__(self, ranks: Collection[int]) -> None:
        self.facts: dict[str, dict[str, Any]] = {}
        """By step."""
        self._ranks = ranks
        self._text, self._next = "", 1

    def add(self, number: int, count: int, text: str) -> None:
        """Add a piece; `number` counts from 1 to `count`, the number of the step's pieces."""
        if "garbled" in self.facts:
            return
        if number != self._next or not number <= count <= PIECES:
            self._refuse("pieces out of order")
            return
        self._text, self._next = self._text + text, number + 1
        if number == count:
            whole, self._text, self._next = self._text, "", 1
            self._take(whole)

    def _take(self, text: str) -> None:
        try:
            report = json.loads(text)
        except (ValueError, RecursionError):
            self._refuse("not JSON")
            return
        if not isinstance(report, dict) or len(report) != 1:
            self._refuse("not a step")
            return
        ((step, found),) = report.items()
        expected = FIRST[len(self.facts)] if len(self.facts) < len(FIRST) else step
        if wrong := "is out of order" if step != expected else fault(step, found, self._ranks):
            self._refuse(f"the step {clean_text(step, 40)!r} {wrong}")
            return
        self.facts[step] = cleaned(found)

    def _refuse(self, why: str) -> None:
        self.facts["garbled"] = {"why": why}


def _is_sound(step: str, found: Any, ranks: Collection[int] | None) -> bool:
    """Whether the values used by the checks are valid."""
    if step == "names":
        sound = all(map(_is_name, found["names"].values()))
        return sound and found["own"] in found["names"] and all(map(_is_address, found["back"]))
    if step == "network":
        addresses = [address for these in found["interfaces"].values() for address in these]
        interface = found.get("interface")
        return all(map(_is_address, addresses)) and not (found.get("loopback") and interface is None)
    if step == "pairs":
        return all(_is_link(one) and _is_rank(rank, ranks) for rank, one in found.items())
    if step == "folder":
        return "error" in found or "seen" in found
    if step == "torch":
        return "error" in found or ("versions" in found and ("uuid" in found) == ("gpu" in found))
    if step == "all_reduce":
        return "error" in found or ("links" in found and (found["links"] is None or _is_link(found["links"])))
    return True


def _is_name(found: Any) -> bool:
    if not isinstance(found, dict):
        return False
    addresses = found.get("addresses")
    if addresses is None:
        return isinstance(found.get("error"), str)
    return isinstance(addresses, list) and all(isinstance(one, str) and _is_address(one) for one in addresses)


def _is_link(found: Any) -> bool:
    fits = not Kind(name="", keys=LINK).fault(found) if isinstance(found, dict) else False
    rates = ("alpha_seconds", "bits_per_second")
    return fits and ("error" in found or all(found.get(name, -1) >= 0 for name in rates))


def _is_rank(text: str, ranks: Collection[int] | None) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 8 and (ranks is None or int(text) in ranks)


def _is_address(text: str) -> bool:
    try:
        is_loopback(text)
    except ValueError:
        return False
    return True
