"""Reads numbers and addresses from environment variables, with one-line errors."""

import ipaddress
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from sage.comm.address import is_loopback, resolve
from sage.output.text import clean_text

LONGEST = 80
"""Maximum number of characters of a value in an error message."""

SCONTROL_SECONDS = 30.0


def setting(environ: Mapping[str, str], name: str) -> str:
    """Format `NAME='value'` for messages, with the value shortened, cleaned, and quoted if necessary."""
    value = clean_text(environ[name], LONGEST)
    return f"{name}={value}" if re.fullmatch(r"[\w.:%/-]+", value) else f"{name}={value!r}"


def are_not_set(names: Sequence[str]) -> str:
    """Format `A is not set`, or `A, B are not set`."""
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not set"


def number(environ: Mapping[str, str], name: str, least: int, most: int, why: str = "") -> int:
    """Return the integer value of a variable, which must consist of decimal digits.

    Raises:
        ValueError: if the value is not an integer or is out of range; `why` explains the range.
    """
    value = environ[name]
    if not re.fullmatch(r"-?[0-9]+", value):
        shown = clean_text(value, LONGEST)
        raise ValueError(f"{name}={shown!r}: expected a whole number from {least} to {most}{why}")
    # Python does not convert very long numbers, and they are out of range in any case.
    if len(value) > 20 or not least <= int(value) <= most:
        raise ValueError(f"{setting(environ, name)}: expected {least} to {most}{why}")
    return int(value)


def address(environ: Mapping[str, str], name: str) -> str:
    """Return a variable's address or host name, without brackets around an IPv6 address.

    Raises:
        ValueError: if the value is neither.
    """
    value = environ[name].strip()
    if not value:
        raise ValueError(f"{name} is empty: expected rank 0's address or name")
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    if ":" in bare:
        with suppress(ValueError):
            ipaddress.IPv6Address(bare)
            return bare
    elif len(bare) <= 253 and re.fullmatch(r"\w([\w.-]*\w)?\.?", bare):
        return bare
    shown = f"{name}={clean_text(value, LONGEST)!r}"
    hint = "; set the port in its own variable" if re.fullmatch(r"[\w.-]+:\d+|\w+://.*", value) else ""
    raise ValueError(f"{shown}: expected rank 0's address or name, as in 10.0.0.1 or node1{hint}")


def first_node(environ: Mapping[str, str]) -> str:
    """Return the first node of a SLURM step: its name if that resolves, else SLURM's address of the node.

    A name that resolves to loopback does not count as resolved.

    Raises:
        ValueError: if SLURM_STEP_NODELIST is not a list of nodes.
    """
    if environ.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    first = re.match(r"((?:[^,\[]|\[[^]]*\])*)(?:,|$)", environ["SLURM_STEP_NODELIST"])
    name = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", first[1] if first else "")
    if not re.fullmatch(r"\w[\w.-]{0,252}", name):
        raise ValueError(
            f"{setting(environ, 'SLURM_STEP_NODELIST')}: expected SLURM's list of nodes, such as node[1-4]"
        )
    with suppress(OSError, UnicodeError):  # resolving fails if a label has more than 63 characters
        if not any(map(is_loopback, resolve(name))):
            return name
    command = ["scontrol", "--oneliner", "show", "node", name]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SCONTROL_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return name
    match = re.search(r" NodeAddr=([\w.:%-]+)", answer)
    return match[1] if match else name
