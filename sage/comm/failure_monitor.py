"""Who is to blame for a failed collective: a watch beside each rank tells the dead from the waiting."""

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
"""Letters of a verdict that are shown."""


class Watch:
    """Answers for this rank while it is stuck, and calls the roll once a collective of its own has failed.

    The rank that fails first raises an alarm in the store. Every living process answers with where it is,
    from a thread of its own; who does not answer is the culprit. The first verdict is every rank's: they end
    one after the other, and to a later roll call those that have ended would look dead.

    Args:
        place: Which rank this is, and who keeps the store.
        board: Where ranks leave texts, over a connection that nobody else uses, for it may block.
        where: Tells what this rank is doing.
        keeper: Whose end it is when the store is gone.
        over: Tells that nobody will ask any more, so that the store may go.
    """

    PERIOD = 0.25
    """Seconds between two looks into the store."""
    GRACE = 3.0
    """Seconds that the others have to answer."""

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
        """End the watch: from here on this rank no longer answers."""
        self._stopping.set()
        self._thread.join(self.GRACE)

    def roll_call(self) -> str:
        """What has happened, in words, as the first rank to ask has found it. Takes a few seconds at most."""
        asking = threading.Thread(target=self._call_roll, name="sage-roll-call", daemon=True)
        asking.start()
        asking.join(2 * self.GRACE)
        host = f"The meeting point at {self._place.hostip}:{self._place.port}"
        if asking.is_alive() and not self._verdict:  # a stopped process keeps its connections, but is mute
            return f"{host} does not answer: {self._keeper} is stopped or cut off."
        return self._verdict or f"{host} is gone: {self._keeper} has died."

    def leave(self, reason: str) -> None:
        """Tell the others why this rank ends, which is their verdict too. Takes a few seconds at most."""
        telling = threading.Thread(target=self._tell, args=(reason,), name="sage-leave", daemon=True)
        telling.start()
        telling.join(2 * self.GRACE)

    def _tell(self, reason: str) -> None:
        with suppress(RuntimeError):
            told = f"Culprit: rank {self._place.rank} has left: {clean_text(reason, 300)}."
            self._board.post_first("verdict", told)
            self._board.post("alarm", "")
            if self._place.rank == 0:
                # The store ends with this process.
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
        except RuntimeError:  # the store is gone; the collective that misses its host will say so
            return

    def _call_roll(self) -> None:
        try:
            self._board.post(f"alive/{self._place.rank}", self._where())
            self._board.post("alarm", "")
            found = self._collect(range(self._place.world_size))
            verdict = self._board.post_first("verdict", self._judge(found))
            self._verdict = clean_text(verdict, LONGEST)
            if self._place.rank == 0:
                # The store ends with this process, and the others may not have asked yet.
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
        """Where the living ranks are, by rank; `GRACE` or a verdict ends the wait."""
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
