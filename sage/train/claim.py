"""Locks the folder of a run, and prepares it: cleared, as it was left, or as it is at its URL."""

import errno
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sage.comm.wire import Wire
from sage.config import Config
from sage.output.units import printable
from sage.records import run_folder
from sage.records.run_folder import RunInUse
from sage.storage.remote.checksums import is_run
from sage.storage.remote.copies import restore
from sage.storage.remote.store import StoreError
from sage.storage.remote.upload import mark_unread
from sage.storage.remote.url import marked_url


@contextmanager
def claimed(config: Config, wire: Wire) -> Iterator[None]:
    """Lock the run folder, because two writers would corrupt it.

    Raises:
        RunInUse: Another process holds the lock; raised on every rank.
    """
    with ExitStack() as stack:
        reason = ""
        if wire.rank == 0:
            try:
                stack.enter_context(run_folder.claimed(config.folder))
            except RunInUse as error:
                reason = str(error)
        if reason := wire.texts(reason)[0]:
            raise RunInUse(reason, is_fresh=config.fresh)
        yield


def prepare_folder(config: Config) -> str:
    """Return "finished" if the run is finished, otherwise ""; with `--fresh`, clear the run folder first.

    A run that is not on this machine is copied from the URL of its folder of runs, if it is there.

    Raises:
        StoreError: (an OSError) The run at the URL is not copied within half the timeout of collectives.
    """
    if config.fresh:
        run_folder.clear(config.folder)
    else:
        _restore(config)
    run_folder.remove_failure(config.folder)
    return "finished" if is_finished(config) else ""


def is_finished(config: Config) -> bool:
    """Whether the run is finished; prints its final metrics if so. Always False with `--fresh`."""
    result = None if config.fresh else run_folder.result(config.folder)
    if result is None:
        return False
    figures = "  ".join(f"{name} {value:.4g}" for name, value in result["final"].items() if value is not None)
    text = f"already finished ({figures}): {config.folder}; use --fresh to run it again"
    print(printable(text), file=sys.stderr)
    return True


def _restore(config: Config) -> None:
    """Copy the run from its URL.

    If the store refuses or does not answer, the run starts without it, and does not replace what is there.
    """
    url = marked_url(config.runs)
    if url is None or is_run(config.folder):
        return
    errors: list[Exception] = []

    def work() -> None:
        try:
            restore(url, config.folder)
        except Exception as error:
            errors.append(error)

    # In a thread, because the other ranks wait in a collective, and a store may never answer.
    thread = threading.Thread(target=work, name="sage-restore", daemon=True)
    thread.start()
    thread.join(config.timeout / 2)
    if thread.is_alive():
        raise StoreError(
            errno.ETIMEDOUT,
            f"the run is not copied from there within {config.timeout / 2:g} s; give a longer --timeout, or "
            "--fresh to start from scratch",
            f"{url}/{config.folder.name}",
        )
    for error in errors:
        if not isinstance(error, StoreError):  # the upload names the failure of the store
            raise error
        mark_unread(config.folder)
