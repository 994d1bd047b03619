"""What the ranks of one machine print when they end with an error."""

import os
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from sage.comm.rendezvous import Place
from sage.comm.spawn import is_new_error, spawn


def end(flags: Path, refuses: bool, place: Place) -> int:
    """Rank 0 refuses the settings or fails, and the others report it afterwards."""
    is_first = place.rank == 0
    flag = flags / "has ended"
    deadline = time.monotonic() + 60
    while not is_first and not flag.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    text = "rank 0: shards is 3" if is_first else f"rank {place.rank}: sum failed. Cause: rank 0 has exited."
    if is_new_error(place.rank, text, is_refusal=is_first and refuses, is_consequence=not is_first):
        print(text, file=sys.stderr, flush=True)
    flag.touch()
    os._exit(2 if is_first and refuses else 1)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_consequences_of_a_refusal_are_not_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], world_size: int
) -> None:
    assert spawn(partial(end, tmp_path, True), world_size, method="fork") == 2
    assert capfd.readouterr().err == "rank 0: shards is 3\n"


def test_the_consequences_of_another_error_are_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert spawn(partial(end, tmp_path, False), 2, method="fork") == 1
    first, second = capfd.readouterr().err.splitlines()
    assert first == "rank 0: shards is 3"
    assert second == "rank 1: sum failed. Cause: rank 0 has exited."
