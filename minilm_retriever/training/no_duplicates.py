"""Batches in which no text stands twice: pure index logic.

    order:    a a b c d e ...          rows in the epoch's order (equal letters share a text)
    batches:  a b c | a d e | ...      a row whose text is taken waits, and goes first in the next

There are as many batches as an epoch has otherwise, so a text in more rows than there are batches
cannot be placed everywhere: its surplus rows are left out of the epoch, and counted. Every other
row comes exactly once (where queries and documents both repeat that often, a few more may find no
place; they are counted, too)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np

from minilm_retriever.types import IntArray

Row = tuple[int, list[int]]  # a row's number and its texts
MAX_TRIES = 1000  # rows that are tried as the one to move, for each row that is left over


def draw_without_duplicates(order: IntArray, texts: IntArray, batch_size: int) -> list[IntArray]:
    """ceil(N / batch_size) batches of the N rows of `order`, texts (N, C) of which row i holds.

    Where no text repeats this is `order`, cut into batches. Deterministic."""
    batches, left_over = fill_batches(order, texts, fair_sizes(texts, batch_size))
    place_left_over(batches, left_over, batch_size)
    return [np.array([row for row, _ in batch], np.int64) for batch in batches]


def fair_sizes(texts: IntArray, batch_size: int) -> list[int]:
    """Rows of each batch: batch_size, or where some rows have no place, the others spread evenly:
    else the last batches would hold little more than a row each, and no negatives."""
    count = -(-len(texts) // batch_size)
    surplus = max(int((np.bincount(column) - count).clip(min=0).sum()) for column in texts.T)
    if not surplus:
        return [batch_size] * count
    size, more = divmod(len(texts) - surplus, count)
    return [size + (number < more) for number in range(count)]


def fill_batches(
    order: IntArray, texts: IntArray, sizes: list[int]
) -> tuple[list[list[Row]], list[Row]]:
    """Fill batch after batch; returns them and the rows without a place."""
    rows = iter(zip(order.tolist(), texts[order].tolist(), strict=True))
    waiting = dict[int, deque[Row]]()  # by the text that was taken
    batches = []
    for size in sizes:
        batch, used = list[Row](), set[int]()
        for row in chain(pop_waiting(waiting), rows):
            blocker = next((text for text in row[1] if text in used), None)
            if blocker is not None:
                waiting.setdefault(blocker, deque()).append(row)
                continue
            add(row, batch, used)
            if len(batch) == size:
                break
        batches.append(batch)
    return batches, [*chain.from_iterable(waiting.values()), *rows]


def pop_waiting(waiting: dict[int, deque[Row]]) -> Iterator[Row]:
    """Remove and yield the first row that waits for each text, the longest awaited text first."""
    for text in list(waiting):
        queue = waiting.pop(text)
        row = queue.popleft()
        if queue:
            waiting[text] = queue  # at the end: its turn comes after the others'
        yield row


def add(row: Row, batch: list[Row], used: set[int]) -> None:
    batch.append(row)
    used.update(row[1])


def place_left_over(batches: list[list[Row]], rows: list[Row], batch_size: int) -> None:
    """Put rows into batches with room, or in place of a row that can move to such a batch; the
    others are left out."""
    if not rows:
        return
    used = [{text for _, texts in batch for text in texts} for batch in batches]
    everywhere = set[int]()  # texts that stand in every batch
    for row in rows:
        if everywhere.isdisjoint(row[1]) and not place(row, batches, used, batch_size):
            everywhere.update(text for text in row[1] if all(text in texts for texts in used))


def place(row: Row, batches: list[list[Row]], used: list[set[int]], batch_size: int) -> bool:
    """Place one row, moving at most one other; whether that was possible."""
    free = [number for number, texts in enumerate(used) if texts.isdisjoint(row[1])]
    roomy = [number for number, batch in enumerate(batches) if len(batch) < batch_size]
    both = next((number for number in free if len(batches[number]) < batch_size), None)
    if both is not None:
        add(row, batches[both], used[both])
        return True
    others = ((number, other) for number in free for other in batches[number])
    for number, other in islice(others, MAX_TRIES):
        target = next((n for n in roomy if used[n].isdisjoint(other[1])), None)
        if target is not None:
            batches[number].remove(other)
            used[number].difference_update(other[1])
            add(other, batches[target], used[target])
            add(row, batches[number], used[number])
            return True
    return False
