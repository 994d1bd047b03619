"""Finds which ranks caused a failed collective, with a monitor thread on each rank."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from sage.comm.agreement import format_ranks
from sage.comm.rendezvous import Place
from sage.comm.store_messages import StoreMessages
from sage.output.text import clean_text

LONGEST = 1000
"""Maximum number of characters of a verdict in a message."""


class FailureMonitor:
    """Reports this rank's state from a separate thread, and queries all ranks after a collective failed.

    The rank that fails first sets an alarm key in the store. The monitor thread of each running process
    answers with the current position of its rank. The ranks without an answer are reported as the cause. The
    first verdict applies to all ranks: the ranks exit one after the other, so a later query would report
    those that have already exited.

    Args:
        place: This rank, and the address of the store.
        messages: Texts in the store, over a connection without other users, since calls may block.
        where: Returns what this rank is doing.
        store_host: The process that hosts the store, which has ended if the store is unreachable.
        is_over: Returns whether no rank will query any more, so that losing the store is no error.
    """

    PERIOD = 0.25
    """Seconds between two polls of the store."""
    GRACE = 3.0
    """Seconds within which the other ranks must answer."""

    def __init__(
        self,
        place: Place,
        messages: StoreMessages,
        where: Callable[[], str],
        *,
        store_host: str = "rank 0",
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._place, self._messages, self._where = place, messages, where
        self._store_host, self._is_over = store_host, is_over
        self._verdict = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sage-monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the monitor thread; this rank no longer answers queries."""
        self._stopping.set()
        self._thread.join(self.GRACE)

    def query_ranks(self) -> str:
        """Query all ranks and return the verdict of the first query as text, within a few seconds."""
        thread = threading.Thread(target=self._query_ranks, name="sage-query", daemon=True)
        thread.start()
        thread.join(2 * self.GRACE)
        host = f"The rendezvous store at {self._place.hostip}:{self._place.port}"
        if thread.is_alive() and not self._verdict:  # a stopped process keeps its connections open
            return f"{host} does not respond: {self._store_host} is stopped or disconnected."
        return self._verdict or f"{host} is gone: {self._store_host} has ended."

    def announce_exit(self, reason: str) -> None:
        """Post why this rank exits, as the verdict for all ranks. Takes a few seconds at most."""
        thread = threading.Thread(
            target=self._post_reason, args=(reason,), name="sage-announce-exit", daemon=True
        )
        thread.start()
        thread.join(2 * self.GRACE)

    def _post_reason(self, reason: str) -> None:
        with suppress(RuntimeError):
            verdict = f"Cause: rank {self._place.rank} has exited: {clean_text(reason, 300)}."
            self._messages.post_first("verdict", verdict)
            self._messages.post("alarm", "")
            if self._place.rank == 0:
                # The store closes when this process exits.
                self._await_read(range(1, self._place.world_size))

    def _run(self) -> None:
        rank, answered = self._place.rank, False
        try:
            while not self._stopping.wait(self.PERIOD) and not self._is_over():
                if not answered and self._messages.has("alarm"):
                    self._messages.post(f"alive/{rank}", self._where())
                    answered = True
                if answered and (verdict := self._messages.read("verdict")) is not None:
                    self._verdict = clean_text(verdict, LONGEST)
                    self._messages.post(f"read/{rank}", "")
                    return
        except RuntimeError:  # the store is gone; the failing collective reports it
            return

    def _query_ranks(self) -> None:
        try:
            self._messages.post(f"alive/{self._place.rank}", self._where())
            self._messages.post("alarm", "")
            answers = self._collect(range(self._place.world_size))
            verdict = self._messages.post_first("verdict", self._format_verdict(answers))
            self._verdict = clean_text(verdict, LONGEST)
            if self._place.rank == 0:
                # The store closes when this process exits, and the others may not have read the verdict yet.
                self._await_read(answers)
        except RuntimeError:
            return

    def _format_verdict(self, answers: Mapping[int, str]) -> str:
        missing = [rank for rank in range(self._place.world_size) if rank not in answers]
        if missing:
            do = "does" if len(missing) == 1 else "do"
            return f"Cause: {format_ranks(missing)} {do} not respond (killed, stopped, or disconnected)."
        by_place: defaultdict[str, list[int]] = defaultdict(list)
        for rank, place in sorted(answers.items()):
            by_place[place].append(rank)
        positions = [
            f"{format_ranks(ranks)} {'is' if len(ranks) == 1 else 'are'} {place}"
            for place, ranks in by_place.items()
        ]
        return f"All ranks are alive: {'; '.join(positions)}."

    def _collect(self, ranks: Iterable[int]) -> dict[int, str]:
        """Return the positions of the running ranks, by rank; wait for all, for `GRACE` or for a verdict."""
        missing, answers = set(ranks), dict[int, str]()
        end = time.monotonic() + self.GRACE
        while True:
            for rank in sorted(missing):
                if (place := self._messages.read(f"alive/{rank}")) is not None:
                    answers[rank] = clean_text(place, 200)
            missing -= answers.keys()
            if not missing or time.monotonic() > end or self._messages.has("verdict"):
                return answers
            time.sleep(self.PERIOD / 5)

    def _await_read(self, ranks: Iterable[int]) -> None:
        missing = set(ranks)
        end = time.monotonic() + self.GRACE
        while missing and time.monotonic() < end:
            missing = {rank for rank in missing if not self._messages.has(f"read/{rank}")}
            time.sleep(self.PERIOD / 5)
