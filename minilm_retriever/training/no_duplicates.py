"""Batches in which no text stands twice: pure index logic.

    order:    a a b c d e ...          rows in the epoch's own order (equal letters share a text)
    batches:  a b c | a d e | ...      a row whose text is taken waits for the next batch, and goes first there

There are as many batches as an epoch has without this, so a text that stands in more rows than
there are batches can't be placed everywhere: its surplus rows are left out of the epoch, and
counted. Every other row comes exactly once (where queries and documents both repeat that often, a
few more may find no place; they are counted, too)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Row = tuple[int, list[int]]  # a row's number and its texts
CHUNK = 65536  # rows turned into Python objects at a time


@dataclass(frozen=True)
class Batches:
    """The batches of one data set in an epoch: batch i is rows[bounds[i] : bounds[i + 1]]."""

    rows: Rows
    bounds: Rows

    def __getitem__(self, number: int) -> Rows:
        return self.rows[self.bounds[number] : self.bounds[number + 1]]


def draw_apart(order: Rows, texts: Rows, batch_size: int) -> Batches:
    """ceil(N / batch_size) batches of at most batch_size of the N rows of `order`, no text twice in
    any.

    texts (N, C): which texts row i holds. Where no text repeats this is `order`, cut up.
    Deterministic."""
    batches, left = fill(order, texts, fair_sizes(texts, batch_size))
    place_left_over(batches, left, batch_size)
    rows = np.fromiter((row for batch in batches for row, _ in batch), np.int64)
    return Batches(rows, np.cumsum([0, *map(len, batches)]))


def fair_sizes(texts: Rows, batch_size: int) -> list[int]:
    """Rows of each batch: batch_size, or where some rows can't be placed, the others shared out
    evenly.

    (Else the batches at the end would hold little more than a row each, and no negatives.)"""
    count = -(-len(texts) // batch_size)
    surplus = max(int((np.bincount(column) - count).clip(min=0).sum()) for column in texts.T)
    if not surplus:
        return [batch_size] * count
    size, more = divmod(len(texts) - surplus, count)
    return [size + (number < more) for number in range(count)]


def fill(order: Rows, texts: Rows, sizes: list[int]) -> tuple[list[list[Row]], list[Row]]:
    """Fill batch after batch, and the rows that found no place."""
    stream, waiting = (
        rows_of(order, texts),
        dict[int, deque[Row]](),
    )  # by the text that stood in their way
    batches = []
    for size in sizes:
        batch, taken = list[Row](), set[int]()
        for row in chain(waiting_rows(waiting), stream):
            blocker = next((text for text in row[1] if text in taken), None)
            if blocker is not None:
                waiting.setdefault(blocker, deque()).append(row)
                continue
            batch.append(row)
            taken.update(row[1])
            if len(batch) == size:
                break
        batches.append(batch)
    return batches, [*chain.from_iterable(waiting.values()), *stream]


def rows_of(order: Rows, texts: Rows) -> Iterator[Row]:
    """Each row with its texts, in order."""
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        yield from zip(chunk.tolist(), texts[chunk].tolist(), strict=True)


def waiting_rows(waiting: dict[int, deque[Row]]) -> Iterator[Row]:
    """Take the first row that waits for each text, texts in the order in which they began to be
    waited for."""
    for text in list(waiting):
        queue = waiting.pop(text)
        row = queue.popleft()
        if queue:
            waiting[text] = queue  # at the end: its turn comes after the others'
        yield row


def place_left_over(batches: list[list[Row]], left: list[Row], batch_size: int) -> None:
    """Put rows into batches with room, or in place of a row that can move to such a batch; the
    others are dropped."""
    if not left:
        return
    held = [{text for _, texts in batch for text in texts} for batch in batches]
    everywhere = set[int]()  # texts that stand in every batch
    for row in left:
        if everywhere.isdisjoint(row[1]) and not place(row, batches, held, batch_size):
            everywhere.update(text for text in row[1] if all(text in texts for texts in held))


def place(
    row: Row, batches: list[list[Row]], held: list[set[int]], batch_size: int, tries: int = 1000
) -> bool:
    """Place one row, moving at most one other; whether that was possible (within `tries` candidates
    to move)."""
    free = [number for number, texts in enumerate(held) if texts.isdisjoint(row[1])]
    for number in free:
        if len(batches[number]) < batch_size:
            add(row, batches[number], held[number])
            return True
    roomy = [number for number, batch in enumerate(batches) if len(batch) < batch_size]
    for number in free:
        for other in batches[number]:
            target = next((n for n in roomy if held[n].isdisjoint(other[1])), None)
            tries -= 1
            if target is not None:
                batches[number].remove(other)
                held[number].difference_update(other[1])
                add(other, batches[target], held[target])
                add(row, batches[number], held[number])
                return True
            if not tries:
                return False
    return False


def add(row: Row, batch: list[Row], held: set[int]) -> None:
    """Put a row into a batch."""
    batch.append(row)
    held.update(row[1])
