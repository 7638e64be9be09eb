"""Which rows go together, and in which order: pure index logic, no model. Torch is here for one
reason only: the order of an epoch is `torch.randperm`'s, as in sentence-transformers, and never
touches the global generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from minilm_retriever.training.no_duplicates import Batches, draw_apart

Rows = npt.NDArray[np.int64]


def order(sizes: Sequence[int], seed: int, epoch: int) -> list[Rows]:
    """A permutation of each data set's rows for an epoch, drawn one after the other from one
    generator.

    Source: sentence-transformers' round-robin sampler, seeded with seed + epoch."""
    generator = torch.Generator().manual_seed(seed + epoch)
    return [torch.randperm(n, generator=generator).numpy() for n in sizes]


class Plan(NamedTuple):
    """How many batches and optimizer steps an epoch has; the position in the data is arithmetic on
    the step."""

    sizes: tuple[int, ...]  # rows of each data set
    batch_size: int
    accumulation: int  # batches an optimizer step
    seed: int
    apart: tuple[Rows, ...] | None = (
        None  # (N, C) of each data set: no text of a row stands twice in a batch
    )

    @property
    def batches_per_epoch(self) -> int:
        """One batch from each data set in turn; an epoch ends when the first is exhausted. Ragged
        batches are kept."""
        return len(self.sizes) * min(-(-n // self.batch_size) for n in self.sizes)

    @property
    def full_batches_per_epoch(self) -> int:
        """The same without ragged batches."""
        return len(self.sizes) * min(n // self.batch_size for n in self.sizes)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; a trailing group of fewer batches is a step of its own."""
        return -(-self.batches_per_epoch // self.accumulation)

    def steps(self, first: int, last: int) -> Iterator[list[tuple[int, Rows]]]:
        """For each optimizer step first..last-1 its batches, as (data set, rows)."""
        epoch, batches = -1, list[Batches]()
        for step in range(first, last):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                batches = self.epoch(epoch)
            begin = step % self.steps_per_epoch * self.accumulation
            end = min(begin + self.accumulation, self.batches_per_epoch)
            sources = len(self.sizes)
            yield [
                (number % sources, batches[number % sources][number // sources])
                for number in range(begin, end)
            ]

    def epoch(self, number: int) -> list[Batches]:
        """The batches of each data set in epoch `number`."""
        orders = order(self.sizes, self.seed, number)
        if self.apart is None:
            return [
                Batches(rows, np.arange(0, len(rows) + self.batch_size, self.batch_size))
                for rows in orders
            ]
        return [
            draw_apart(rows, texts, self.batch_size)
            for rows, texts in zip(orders, self.apart, strict=True)
        ]

    def left_out(self, number: int) -> list[int]:
        """Rows of each data set that no batch of epoch `number` can take."""
        if self.apart is None:
            return [0 for _ in self.sizes]
        return [
            size - len(batches.rows)
            for size, batches in zip(self.sizes, self.epoch(number), strict=True)
        ]
