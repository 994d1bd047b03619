"""What an agent of `sage doctor` may say, step by step: types, ranges and order, checked before it is judged.

Agents speak through ssh, srun and the network, where login scripts, older checkouts and strangers do too.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from sage.comm.address import is_loopback
from sage.output.text import clean_text
from sage.storage import Kind

LONGEST = 300
"""Letters of a text that are kept."""

MOST = 10_000
"""Items of a list or an object that are kept."""

PIECES = 2_000
"""Pieces that one step may come in."""

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
    # What agents hand to each other.
    "peer": {
        "address": str | None,
        "port": int,
        "free_port": int,
        "wrong": list[str],
        "obstacle": str,
    },
}
"""By step: what its facts hold, in the types of `sage.storage.schema`."""

FIRST = ("node", "software", "names", "network")
"""The steps with which an agent begins; checks of later ones look back at them."""

_KINDS = {step: Kind(name="", keys={"": keys}) for step, keys in STEPS.items()}


def fault(step: str, found: Any, ranks: Collection[int] | None = None) -> str:
    """What is wrong with the facts of a step; "" for nothing.

    Args:
        ranks: Those that there are, where facts name other ranks.
    """
    if step not in STEPS:
        return "is no step"
    if _KINDS[step].fault({"": found}):
        return "has facts of another form"
    return "" if _is_sound(step, found, ranks) else "has facts that cannot be"


def cleaned(found: Any) -> Any:
    """The facts with all texts fit to print, and no more than so many items of each list and object."""
    if isinstance(found, str):
        return clean_text(found, LONGEST)
    if isinstance(found, dict):
        return {clean_text(key, LONGEST): cleaned(found[key]) for key in [*found][:MOST]}
    return [cleaned(item) for item in found[:MOST]] if isinstance(found, list) else found


class Ear:
    """Puts one rank's facts together from the pieces that it says, and checks them.

    Args:
        ranks: All that there are.
    """

    def __init__(self, ranks: Collection[int]) -> None:
        self.facts: dict[str, dict[str, Any]] = {}
        """By step."""
        self._ranks = ranks
        self._text, self._next = "", 1

    def hear(self, number: int, count: int, text: str) -> None:
        """Take a piece: its number from 1 to the count of the step's pieces."""
        if "garbled" in self.facts:
            return
        if number != self._next or not number <= count <= PIECES:
            self._refuse("has said pieces out of order")
            return
        self._text, self._next = self._text + text, number + 1
        if number == count:
            whole, self._text, self._next = self._text, "", 1
            self._take(whole)

    def _take(self, text: str) -> None:
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            self._refuse("has said what is no JSON")
            return
        if not isinstance(told, dict) or len(told) != 1:
            self._refuse("has said what is no step")
            return
        ((step, found),) = told.items()
        expected = FIRST[len(self.facts)] if len(self.facts) < len(FIRST) else step
        if wrong := "comes too early" if step != expected else fault(step, found, self._ranks):
            self._refuse(f"the step {clean_text(step, 40)!r} {wrong}")
            return
        self.facts[step] = cleaned(found)

    def _refuse(self, why: str) -> None:
        self.facts["garbled"] = {"why": why}


def _is_sound(step: str, found: Any, ranks: Collection[int] | None) -> bool:
    """Whether values that the checks compute with are what they take them for."""
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
