"""Tests that `sage bench density` replays a damaged trace or refuses it in one line."""

import random
import shutil
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from damage import damage
from fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage.cli.main import main


def status_and_stderr(*argv: str) -> tuple[int, str]:
    """The exit status of a command, and what it wrote to stderr."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as err:
        status = main(argv)
    return status, err.getvalue()


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shortest trace that can be replayed."""
    path = tmp_path_factory.mktemp("trace") / "trace.pt"
    size = ["--steps", "60", "--elements", "20", "--world-size", "2"]
    assert status_and_stderr("bench", "record", "digits-ff", *size, "--out", str(path))[0] == 0
    return path


@settings(
    max_examples=examples(20), deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_trace_is_replayed_or_refused_in_one_line(trace: Path, seed: int) -> None:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(shutil.copy(trace, scratch))
        how = damage(path, draw)
        output = Path(scratch, "density")
        choice = ["--densities", "0.1", "--rules", draw.choice(("quantile", "sage"))]
        status, stderr = status_and_stderr("bench", "density", str(path), *choice, "--output", str(output))
        assert status in (0, 2), f"{how}: {stderr}"
        if status == 0:
            assert (output / "density.csv").exists(), how
            return
        assert len(stderr.splitlines()) == 1, f"{how}: {stderr}"
        assert stderr.startswith("sage bench: "), f"{how}: {stderr}"
        assert str(path) in stderr, f"{how}: {stderr}"
        assert "bug in SAGE" not in stderr
