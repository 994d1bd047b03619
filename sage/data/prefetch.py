"""Reads the next batches by threads while a batch is trained on."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from sage.data.dataset import Batch

Job = Callable[[], Batch]
"""Reads one batch. What it reads must not depend on the other jobs, which run at the same time."""


def in_advance(jobs: Iterator[Job], num_threads: int) -> Iterator[Batch]:
    """Yield the batches of the jobs in their order, with two jobs for each thread in advance.

    Args:
        num_threads: 0: each job runs in the caller's thread when its batch is asked for.
    """
    if not num_threads:
        yield from (job() for job in jobs)
        return
    ahead: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="prefetch")
    try:
        for job in jobs:
            ahead.append(pool.submit(job))
            if len(ahead) > 2 * num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
