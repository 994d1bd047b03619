"""Who is to blame for a failed collective: a watch beside each rank tells the dead from the waiting."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch.distributed as dist

from sage.comm.rendezvous import Place


class Watch:
    """Answers for this rank while it is stuck, and calls the roll once a collective of its own has failed.

    The rank that fails first raises an alarm in the store. Every living process answers with where it is,
    from a thread of its own; who does not answer is the culprit. The first verdict is every rank's: they end
    one after the other, and to a later roll call those that have ended would look dead.

    Args:
        place: Which rank this is, and who keeps the store.
        store: A connection to the store that nobody else uses, for it may block.
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
        store: dist.Store,
        where: Callable[[], str],
        *,
        keeper: str = "rank 0",
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._place, self._store, self._where = place, store, where
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

    def _run(self) -> None:
        rank, answered = self._place.rank, False
        try:
            while not self._stopping.wait(self.PERIOD) and not self._over():
                if not answered and self._store.check(["alarm"]):
                    self._store.set(f"alive/{rank}", self._where())
                    answered = True
                if answered and self._store.check(["verdict"]):
                    self._verdict = self._store.get("verdict").decode()
                    self._store.set(f"heard/{rank}", "")
                    return
        except RuntimeError:  # the store is gone; the collective that misses its host will say so
            return

    def _call_roll(self) -> None:
        try:
            self._store.set(f"alive/{self._place.rank}", self._where())
            self._store.set("alarm", "")
            found = self._collect("alive", range(self._place.world_size), unless="verdict")
            self._verdict = self._store.compare_set("verdict", "", self._judge(found)).decode()
            if self._place.rank == 0:
                # The store ends with this process, and the others may not have asked yet.
                self._collect("heard", found)
        except RuntimeError:
            return

    def _judge(self, found: Mapping[int, str]) -> str:
        silent = [rank for rank in range(self._place.world_size) if rank not in found]
        if silent:
            give = _ranks(silent, "gives", "give")
            return f"Culprit: {give} no sign of life (killed, stopped, or cut off)."
        by_place: defaultdict[str, list[int]] = defaultdict(list)
        for rank, place in sorted(found.items()):
            by_place[place].append(rank)
        told = [f"{_ranks(ranks, 'is', 'are')} {place}" for place, ranks in by_place.items()]
        return f"All ranks are alive: {'; '.join(told)}."

    def _collect(self, what: str, ranks: Iterable[int], unless: str | None = None) -> dict[int, str]:
        """What the ranks leave in the store under `what`, by rank; `GRACE` or `unless` ends the wait."""
        missing, found = set(ranks), dict[int, str]()
        end = time.monotonic() + self.GRACE
        while True:
            for rank in [rank for rank in missing if self._store.check([f"{what}/{rank}"])]:
                found[rank] = self._store.get(f"{what}/{rank}").decode()
                missing.discard(rank)
            if not missing or time.monotonic() > end or (unless and self._store.check([unless])):
                return found
            time.sleep(self.PERIOD / 5)


def _ranks(ranks: list[int], one: str, several: str) -> str:
    return f"rank {ranks[0]} {one}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} {several}"
