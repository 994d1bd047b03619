"""Checks that a folder is writable and shared: each rank writes a token file and looks for all tokens."""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

POLL_SECONDS = 0.1


class SharedFolder:
    """One rank's check of the runs folder.

    Args:
        runs: The folder. If it does not exist, its nearest existing parent is checked.
        mark: A text that this check's ranks have in common, and no others.
        rank: This rank.
    """

    def __init__(self, runs: Path, mark: str, rank: int) -> None:
        self.runs, self._rank = runs.absolute(), rank
        there = next(folder for folder in (self.runs, *self.runs.parents) if folder.exists())
        self._tokens = there / f".doctor-{mark}"

    def write_token(self) -> str:
        """Write this rank's token; returns the error, or ""."""
        try:
            self._tokens.mkdir(exist_ok=True)
            self._token(self._rank).write_text("sage doctor is here\n")
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def visible_ranks(self, ranks: Iterable[int], seconds: float) -> list[int]:
        """The ranks whose tokens are visible; waits until all are, at most this number of seconds."""
        end = time.monotonic() + seconds
        wanted = list(ranks)
        while True:
            # Checked by name: on NFS a folder's listing may be half a minute old.
            visible = [rank for rank in wanted if self._token(rank).exists()]
            if len(visible) == len(wanted) or time.monotonic() > end:
                return visible
            time.sleep(POLL_SECONDS)

    def remove_token(self) -> None:
        """Remove this rank's token, and the tokens' folder if it is empty."""
        with suppress(OSError):  # no token, no permission, or another rank's token is still there
            self._token(self._rank).unlink()
            self._tokens.rmdir()

    def _token(self, rank: int) -> Path:
        return self._tokens / f"rank-{rank}"
