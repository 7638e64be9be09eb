"""What the C library does with freed memory: keep it for the next batch, or return it to the
system."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


def keep_freed_memory(most: int) -> None:
    """Let malloc keep up to `most` bytes (below 2 GiB) at the end of its heap, instead of the 128
    KiB to 64 MiB that glibc keeps by itself.

    Each layer frees tens of megabytes that the next one asks for again: to return them to the
    system means a page fault for every 4 KiB, 5 to 8 % of the time of a batch. Whoever chose
    MALLOC_TRIM_THRESHOLD_ is left alone."""
    if "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return
    with suppress(AttributeError, OSError):  # where the C library is another than glibc
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(MMAP_THRESHOLD, min(most, 1 << 30)):
            mallopt(MMAP_THRESHOLD, 1 << 25)  # older ones allow no more
        mallopt(TRIM_THRESHOLD, most)


def give_back_memory() -> None:
    """Return what the C library keeps of freed memory: batches of ever other sizes leave gaps that
    add up."""
    with suppress(AttributeError, OSError):  # where the C library is another than glibc
        ctypes.CDLL(None).malloc_trim(0)
