"""A function of many items, several at a time, the results in their order.

`ahead` tokenises while a GPU computes. `on_cores` computes batches on a CPU: each core has one of
its own, so that none waits for the others after each product."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import torch

MOST_WORKERS = 32  # more would wait for Python's lock
In = TypeVar("In")
Out = TypeVar("Out")


def ahead(
    function: Callable[[In], Out],
    items: Iterable[In],
    *,
    workers: int,
    started: int,
    prepare: Callable[[], object] = lambda: None,
) -> Generator[Out, None, None]:
    """function of each item, in their order, by so many threads, of which each calls `prepare`
    first; so many are started before the first of them is taken."""
    with ThreadPoolExecutor(workers, "ahead", prepare) as pool:
        try:
            waiting = deque[Future[Out]]()
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == started:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def on_cores(
    function: Callable[[In], Out], items: Iterable[In], most: int
) -> Generator[Out, None, None]:
    """function of each item, in their order, at most so many at a time, and as many as this thread
    has threads of torch's, which they share. Grad modes are a thread's own: function sets what it
    needs."""
    threads = torch.get_num_threads()
    workers = min(threads, most, MOST_WORKERS)
    if workers < 2:
        yield from map(function, items)
        return
    share = threads // workers
    results = ahead(
        function,
        items,
        workers=workers,
        started=2 * workers,
        prepare=lambda: torch.set_num_threads(share),
    )
    try:
        with closing(results):
            yield from results
    finally:  # a worker's number is that of threads yet to be made, too
        torch.set_num_threads(threads)
