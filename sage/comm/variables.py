"""Reads single variables of the environment: numbers and addresses, or one line that says what is wrong."""

import ipaddress
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from sage.comm.address import is_loopback, resolve
from sage.output.text import clean_text

LONGEST = 80
"""Letters of a value that an error repeats."""

SCONTROL_SECONDS = 30.0


def told(environ: Mapping[str, str], name: str) -> str:
    """`NAME='value'`, for messages; the value is cut and cleaned, and quoted unless it is a plain word."""
    value = clean_text(environ[name], LONGEST)
    return f"{name}={value}" if re.fullmatch(r"[\w.:%/-]+", value) else f"{name}={value!r}"


def are_not_set(names: Sequence[str]) -> str:
    """`A is not set`, or `A, B are not set`."""
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not set"


def number(environ: Mapping[str, str], name: str, least: int, most: int, why: str = "") -> int:
    """A variable's whole number, in plain decimal digits.

    Raises:
        ValueError: where it is none, or out of its range; `why` says where the range comes from.
    """
    value = environ[name]
    if not re.fullmatch(r"-?[0-9]+", value):
        shown = clean_text(value, LONGEST)
        raise ValueError(f"{name}={shown!r}: expected a whole number from {least} to {most}{why}")
    # Beyond so many digits Python refuses to convert, and it is out of range anyway.
    if len(value) > 20 or not least <= int(value) <= most:
        raise ValueError(f"{told(environ, name)}: expected {least} to {most}{why}")
    return int(value)


def address(environ: Mapping[str, str], name: str) -> str:
    """A variable's address or host name. Brackets around an IPv6 address are left out.

    Raises:
        ValueError: where it is neither.
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
    hint = "; the port is a variable of its own" if re.fullmatch(r"[\w.-]+:\d+|\w+://.*", value) else ""
    raise ValueError(f"{shown}: expected rank 0's address or name, as in 10.0.0.1 or node1{hint}")


def first_node(environ: Mapping[str, str]) -> str:
    """The first node of a step of SLURM's: its name where that leads there, else the address SLURM has of it.

    Raises:
        ValueError: where SLURM_STEP_NODELIST is no list of nodes.
    """
    if environ.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    first = re.match(r"((?:[^,\[]|\[[^]]*\])*)(?:,|$)", environ["SLURM_STEP_NODELIST"])
    name = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", first[1] if first else "")
    if not re.fullmatch(r"\w[\w.-]{0,252}", name):
        raise ValueError(
            f"{told(environ, 'SLURM_STEP_NODELIST')}: expected SLURM's names of nodes, as node[1-4]"
        )
    with suppress(OSError, UnicodeError):  # a label of a name has at most 63 letters
        if not any(map(is_loopback, resolve(name))):
            return name
    command = ["scontrol", "--oneliner", "show", "node", name]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SCONTROL_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return name
    found = re.search(r" NodeAddr=([\w.:%-]+)", said)
    return found[1] if found else name
