"""Finds which ranks caused a failed collective, with a monitor thread on each rank."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from sage.comm.agreement import told_ranks
from sage.comm.rendezvous import Place
from sage.comm.store_messages import Board
from sage.output.text import clean_text

LONGEST = 1000
"""Maximum number of characters of a verdict in a message."""


class Watch:
    """Reports this rank's state from a separate thread, and queries all ranks after a collective failed.

    The rank that fails first sets an alarm key in the store. The monitor thread of each running process
    answers with the current position of its rank. The ranks without an answer are reported as the cause. The
    first verdict applies to all ranks: the ranks exit one after the other, so a later query would report
    those that have already exited.

    Args:
        place: This rank, and the address of the store.
        board: Texts in the store, over a connection without other users, since calls may block.
        where: Returns what this rank is doing.
        keeper: The process that hosts the store, which has ended if the store is unreachable.
        over: Returns whether no rank will query any more, so that losing the store is no error.
    """

    PERIOD = 0.25
    """Seconds between two polls of the store."""
    GRACE = 3.0
    """Seconds within which the other ranks must answer."""

    def __init__(
        self,
        place: Place,
        board: Board,
        where: Callable[[], str],
        *,
        keeper: str = "rank 0",
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._place, self._board, self._where = place, board, where
        self._keeper, self._over = keeper, over
        self._verdict = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sage-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the monitor thread; this rank no longer answers queries."""
        self._stopping.set()
        self._thread.join(self.GRACE)

    def roll_call(self) -> str:
        """Query all ranks and return the verdict of the first query as text, within a few seconds."""
        asking = threading.Thread(target=self._call_roll, name="sage-roll-call", daemon=True)
        asking.start()
        asking.join(2 * self.GRACE)
        host = f"The meeting point at {self._place.hostip}:{self._place.port}"
        if asking.is_alive() and not self._verdict:  # a stopped process keeps its connections open
            return f"{host} does not answer: {self._keeper} is stopped or cut off."
        return self._verdict or f"{host} is gone: {self._keeper} has died."

    def leave(self, reason: str) -> None:
        """Post why this rank exits, as the verdict for all ranks. Takes a few seconds at most."""
        telling = threading.Thread(target=self._tell, args=(reason,), name="sage-leave", daemon=True)
        telling.start()
        telling.join(2 * self.GRACE)

    def _tell(self, reason: str) -> None:
        with suppress(RuntimeError):
            told = f"Culprit: rank {self._place.rank} has left: {clean_text(reason, 300)}."
            self._board.post_first("verdict", told)
            self._board.post("alarm", "")
            if self._place.rank == 0:
                # The store closes when this process exits.
                self._await_heard(range(1, self._place.world_size))

    def _run(self) -> None:
        rank, answered = self._place.rank, False
        try:
            while not self._stopping.wait(self.PERIOD) and not self._over():
                if not answered and self._board.has("alarm"):
                    self._board.post(f"alive/{rank}", self._where())
                    answered = True
                if answered and (verdict := self._board.read("verdict")) is not None:
                    self._verdict = clean_text(verdict, LONGEST)
                    self._board.post(f"heard/{rank}", "")
                    return
        except RuntimeError:  # the store is gone; the failing collective reports it
            return

    def _call_roll(self) -> None:
        try:
            self._board.post(f"alive/{self._place.rank}", self._where())
            self._board.post("alarm", "")
            found = self._collect(range(self._place.world_size))
            verdict = self._board.post_first("verdict", self._judge(found))
            self._verdict = clean_text(verdict, LONGEST)
            if self._place.rank == 0:
                # The store closes when this process exits, and the others may not have read the verdict yet.
                self._await_heard(found)
        except RuntimeError:
            return

    def _judge(self, found: Mapping[int, str]) -> str:
        silent = [rank for rank in range(self._place.world_size) if rank not in found]
        if silent:
            give = "gives" if len(silent) == 1 else "give"
            return f"Culprit: {told_ranks(silent)} {give} no sign of life (killed, stopped, or cut off)."
        by_place: defaultdict[str, list[int]] = defaultdict(list)
        for rank, place in sorted(found.items()):
            by_place[place].append(rank)
        told_W = [
            f"{told_ranks(ranks)} {'is' if len(ranks) == 1 else 'are'} {place}"
            for place, ranks in by_place.items()
        ]
        return f"All ranks are alive: {'; '.join(told_W)}."

    def _collect(self, ranks: Iterable[int]) -> dict[int, str]:
        """Return the positions of the running ranks, by rank; wait for all, for `GRACE` or for a verdict."""
        missing, found = set(ranks), dict[int, str]()
        end = time.monotonic() + self.GRACE
        while True:
            for rank in sorted(missing):
                if (place := self._board.read(f"alive/{rank}")) is not None:
                    found[rank] = clean_text(place, 200)
            missing -= found.keys()
            if not missing or time.monotonic() > end or self._board.has("verdict"):
                return found
            time.sleep(self.PERIOD / 5)

    def _await_heard(self, ranks: Iterable[int]) -> None:
        missing = set(ranks)
        end = time.monotonic() + self.GRACE
        while missing and time.monotonic() < end:
            missing = {rank for rank in missing if not self._board.has(f"heard/{rank}")}
            time.sleep(self.PERIOD / 5)
