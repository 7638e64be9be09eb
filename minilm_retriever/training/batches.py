"""Which rows form a batch, and in which order: pure index logic, no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from minilm_retriever.training.no_duplicates import draw_without_duplicates
from minilm_retriever.types import IntArray


def shuffle(sizes: Sequence[int], seed: int, epoch: int) -> list[IntArray]:
    """A permutation of each source's rows, drawn one after the other from one generator.

    Source: sentence-transformers' round-robin sampler, seeded with seed + epoch."""
    generator = torch.Generator().manual_seed(seed + epoch)  # the global one is not touched
    return [torch.randperm(n, generator=generator).numpy() for n in sizes]


DRAWN_ROWS = 1 << 16  # at a time: bounds the memory of their random numbers


class NegativeSampler:
    """Draws `count` of each row's hard negatives, anew in each epoch: a function of seed, source
    and epoch alone, so that a resumed run draws the same."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._drawn: dict[int, tuple[int, IntArray]] = {}  # by source: the epoch, and what it has

    def draw(self, source: int, text_ids: IntArray, epoch: int, absent: int) -> IntArray:
        """The texts (N, 2 + C) of a source with `count` of the C negatives (N, 2 + K); absent: the
        text in place of those that a row does not have, which are taken last."""
        if text_ids.shape[1] - 2 <= self.count:
            return text_ids
        if source not in self._drawn or self._drawn[source][0] != epoch:
            random = np.random.default_rng((self.seed, source, epoch))
            drawn = np.empty((len(text_ids), 2 + self.count), np.int64)
            for start in range(0, len(text_ids), DRAWN_ROWS):
                rows = text_ids[start : start + DRAWN_ROWS]
                keys = random.random((len(rows), rows.shape[1] - 2)) + (rows[:, 2:] == absent)
                order = 2 + np.argsort(keys, axis=1)[:, : self.count]
                drawn[start : start + len(rows), :2] = rows[:, :2]
                drawn[start : start + len(rows), 2:] = np.take_along_axis(rows, order, axis=1)
            self._drawn[source] = epoch, drawn
        return self._drawn[source][1]


class BatchSampler(NamedTuple):
    """The batches of every step, as a function of the step's number: there is no state to save."""

    sizes: tuple[int, ...]  # rows of each source
    batch_size: int
    accumulation: int  # batches a step
    seed: int
    texts: tuple[IntArray, ...] | None = None  # (N, C) of each source: none twice in a batch

    @property
    def batches_per_epoch(self) -> int:
        """One batch of each source in turn, until one is used up; a ragged last batch counts."""
        return len(self.sizes) * min(-(-n // self.batch_size) for n in self.sizes)

    @property
    def full_batches_per_epoch(self) -> int:
        return len(self.sizes) * min(n // self.batch_size for n in self.sizes)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; the last of an epoch may have fewer batches."""
        return -(-self.batches_per_epoch // self.accumulation)

    def steps(self, first: int, last: int) -> Iterator[list[tuple[int, IntArray]]]:
        """The batches of each optimizer step first..last-1, as (source, rows)."""
        epoch, batches, sources = -1, list[list[IntArray]](), len(self.sizes)
        for step in range(first, last):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                batches = self.epoch(epoch)
            start = step % self.steps_per_epoch * self.accumulation
            end = min(start + self.accumulation, self.batches_per_epoch)
            yield [(n % sources, batches[n % sources][n // sources]) for n in range(start, end)]

    def epoch(self, number: int) -> list[list[IntArray]]:
        """The batches of each source in an epoch."""
        orders, size = shuffle(self.sizes, self.seed, number), self.batch_size
        if self.texts is None:
            return [[rows[i : i + size] for i in range(0, len(rows), size)] for rows in orders]
        pairs = zip(orders, self.texts, strict=True)
        return [draw_without_duplicates(rows, texts, size) for rows, texts in pairs]
