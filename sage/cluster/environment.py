"""The environment of ranks on other hosts."""

import os
from pathlib import Path

from sage.comm.launchers import OWN

FORWARDED = ("SAGE_", "GLOO_", "NCCL_", "TORCH_", "OMP_")
"""Prefixes of the variables that are forwarded to ranks on other hosts."""


def forwarded_environment() -> dict[str, str]:
    """The environment for a rank on another host: the path of this checkout, and forwarded variables."""
    forwarded = {
        name: value for name, value in os.environ.items() if name.startswith(FORWARDED) and name not in OWN
    }
    checkout = Path(__file__).parents[2]
    paths = [str(checkout)] if (checkout / "pyproject.toml").exists() else []
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    search = {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
    # A folder called sage in the working directory must not shadow the package; output is not buffered.
    return {**forwarded, **search, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
