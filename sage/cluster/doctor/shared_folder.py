"""Whether a folder is writable, and the same on all nodes: each rank leaves a token, and looks for all."""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LOOK_SECONDS = 0.1


class Shared:
    """One rank's look at the folder that the runs go to.

    Args:
        runs: The folder. Where it is not there yet, the one that it would be made in is looked at.
        mark: What this examination's ranks have in common, and no others.
    """

    def __init__(self, runs: Path, mark: str, rank: int) -> None:
        self.runs, self._rank = runs.absolute(), rank
        there = next(folder for folder in (self.runs, *self.runs.parents) if folder.exists())
        self._tokens = there / f".doctor-{mark}"

    def leave_token(self) -> str:
        """Write it; returns what is in the way, or ""."""
        try:
            self._tokens.mkdir(exist_ok=True)
            self._token(self._rank).write_text("sage doctor is here\n")
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def look(self, ranks: Iterable[int], seconds: float) -> list[int]:
        """Those of the ranks whose tokens are to be seen, once all are or the time is up."""
        end = time.monotonic() + seconds
        wanted = list(ranks)
        while True:
            # By their names: the listing of a folder on NFS may be half a minute old.
            seen = [rank for rank in wanted if self._token(rank).exists()]
            if len(seen) == len(wanted) or time.monotonic() > end:
                return seen
            time.sleep(LOOK_SECONDS)

    def remove_token(self) -> None:
        """Leave nothing behind, when nobody looks any more."""
        with suppress(OSError):  # there is none, or it cannot be written, or another's is there still
            self._token(self._rank).unlink()
            self._tokens.rmdir()

    def _token(self, rank: int) -> Path:
        return self._tokens / f"rank-{rank}"
