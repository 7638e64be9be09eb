"""What the C library does with freed memory: keep it for the next batch, or return it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

_in_a_library = ContextVar("in a library", default=False)
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


@contextmanager
def memory_as_it_is() -> Iterator[None]:
    """Within it `keep_freed_memory` does nothing: for functions that a person's process calls."""
    before = _in_a_library.set(True)
    try:
        yield
    finally:
        _in_a_library.reset(before)


def keep_freed_memory(limit_bytes: int) -> None:
    """Let glibc's malloc keep up to `limit_bytes` (below 2 GiB) that were freed. For commands, not
    for a library: it holds for the whole process.

    Each layer frees tens of megabytes that the next one asks for again. glibc by itself keeps 128
    KiB to 64 MiB; what it returns to the system costs a page fault for every 4 KiB, 5 to 8 % of the
    time of a batch. Does nothing where MALLOC_TRIM_THRESHOLD_ is set or without glibc."""
    if _in_a_library.get() or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(MMAP_THRESHOLD, min(limit_bytes, 1 << 30)):
            mallopt(MMAP_THRESHOLD, 1 << 25)  # older ones allow no more
        mallopt(TRIM_THRESHOLD, limit_bytes)


def give_back_memory() -> None:
    """Return what glibc keeps of freed memory: batches of ever other sizes leave gaps."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
