"""Which rows form a batch, and in which order: pure index logic, no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from minilm_retriever.training.no_duplicates import draw_without_duplicates
from minilm_retriever.types import IntArray


def shuffle(sizes: Sequence[int], seed: int, epoch: int) -> list[IntArray]:
    """A permutation of each source's rows, drawn one after the other from one generator.

    Source: sentence-transformers' round-robin sampler, seeded with seed + epoch."""
    generator = torch.Generator().manual_seed(seed + epoch)  # the global one is not touched
    return [torch.randperm(n, generator=generator).numpy() for n in sizes]


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

    def left_out(self, epoch: int) -> list[int]:
        """How many rows of each source are in no batch of an epoch."""
        batches = zip(self.sizes, self.epoch(epoch), strict=True)
        return [size - sum(map(len, drawn)) for size, drawn in batches]
