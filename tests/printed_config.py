"""What `sage run WORKLOAD --print-config` prints."""

import json
from typing import Any

import pytest

from sage.cli.main import main


def printed_config(capsys: pytest.CaptureFixture[str], workload: str) -> dict[str, Any]:
    """Return the configuration of a workload as the command prints it."""
    assert main(["run", workload, "--print-config"]) == 0
    config: dict[str, Any] = json.loads(capsys.readouterr().out)["config"]
    return config
