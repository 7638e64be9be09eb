"""Unpadding: where the real tokens of a batch stand, and which rows attention takes together.

Shapes: B rows of T tokens in a batch, S tokens of it that are computed, H hidden."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Attention scores of a head that are computed together on a CPU: times heads and 4 bytes, they stay
# in its caches.
CPU_SCORES = 100_000


class Rectangle(NamedTuple):
    """R rows of W tokens, n of them real."""

    rows: int
    width: int
    places: Tensor | None = None  # (n,) of the real tokens in the flattened (R, W); None: all
    mask: Tensor | None = None  # (R, 1, 1, W) True at real tokens; None: all

    @property
    def is_whole(self) -> bool:
        """Whether padding is computed too, and tokens stay in their (R, W): see padded_layout."""
        return self.places is None and self.mask is not None

    @property
    def tokens(self) -> int:
        """n."""
        return self.rows * self.width if self.places is None else len(self.places)

    def pad(self, x: Tensor) -> Tensor:
        """(n, H) -> (R, W, H), zeros at padding."""
        if self.is_whole:
            return x
        if self.places is not None:
            x = x.new_zeros(self.rows * self.width, x.shape[-1]).index_copy(0, self.places, x)
        return x.view(self.rows, self.width, x.shape[-1])

    def unpad(self, x: Tensor) -> Tensor:
        """(R, W, ...) -> (n, ...)."""
        if self.is_whole:
            return x
        flat = x.reshape(self.rows * self.width, *x.shape[2:])
        return flat if self.places is None else flat.index_select(0, self.places)


class Layout(NamedTuple):
    """The S real and spare tokens of a batch, its rows in order of length, longest first."""

    batch: Rectangle  # (B, T)
    positions: Tensor  # (S,) of each token in its row
    groups: tuple[Rectangle, ...]  # rows that attention takes together, in the order of S
    spare: int  # tokens at the end that are computed and thrown away: see spare_tokens

    def unpad(self, ids: Tensor) -> Tensor:
        """(B, T) -> (S,)."""
        return pad_end(self.batch.unpad(ids), self.spare)

    def pad(self, x: Tensor) -> Tensor:
        """(S, H) -> (B, T, H), zeros at padding."""
        if self.batch.mask is not None:  # see padded_layout
            return x.masked_fill(~self.batch.mask[:, 0, 0, :, None], 0)
        return self.batch.pad(x[: -self.spare] if self.spare else x)


def spare_tokens(count: int) -> int:
    """How many spare tokens bring `count` to one of 16 sizes an octave: none up to 31, then 2 %
    more, 6 % at most.

    oneDNN keeps half a megabyte of kernels for each number of tokens that a linear layer meets, up
    to 1,024 of them; so few sizes are worth a few tokens."""
    return -count % (1 << max(0, count.bit_length() - 5))


def make_layout(attention_mask: Tensor, slack: float = 0.0, *, on_cpu: bool = False) -> Layout:
    """The layout of an attention mask (B, T) of zeros and ones.

    slack: how much shorter than the longest row of its group a row may be, as a share of it. With 0
    only equals go together and nothing is padded at all; more makes fewer, larger groups; with 1
    there is one. on_cpu: add `spare_tokens`, and keep to CPU_SCORES."""
    if torch.compiler.is_compiling():
        return padded_layout(attention_mask)
    batch, width = attention_mask.shape
    if bool(attention_mask.all()):
        places, lengths = None, [width] * batch
        positions = torch.arange(width, device=attention_mask.device).repeat(batch)
    else:
        counts, order = attention_mask.bool().sum(dim=1).sort(descending=True, stable=True)
        row, positions = attention_mask.index_select(0, order).nonzero(as_tuple=True)
        places, lengths = order.index_select(0, row) * width + positions, counts.tolist()
    groups = tuple(make_groups(lengths, slack, on_cpu, attention_mask.device))
    spare = spare_tokens(len(positions)) if on_cpu else 0
    return Layout(Rectangle(batch, width, places), pad_end(positions, spare), groups, spare)


def padded_layout(attention_mask: Tensor) -> Layout:
    """Every token of an attention mask (B, T), padding too, where it stands: no shape depends on
    what the mask holds, so that torch.compile and torch.export can trace it."""
    batch, width = attention_mask.shape
    positions = torch.arange(width, device=attention_mask.device)
    whole = Rectangle(batch, width, mask=attention_mask.bool()[:, None, None, :])
    return Layout(whole, positions, (whole,), 0)


def pad_end(numbers: Tensor, spare: int) -> Tensor:
    """(S,) -> (S + spare,), zeros at the end."""
    return F.pad(numbers, (0, spare)) if spare else numbers


def make_groups(
    lengths: list[int], slack: float, on_cpu: bool, device: torch.device
) -> Iterator[Rectangle]:
    """Rows of these lengths, longest first, in groups; empty rows in none."""
    start = 0
    while start < len(lengths) and lengths[start]:
        width = lengths[start]
        shortest = max(1, width * (1 - slack))
        limit = max(1, CPU_SCORES // width**2) if on_cpu else len(lengths)
        group = [length for length in lengths[start : start + limit] if length >= shortest]
        yield make_group(group, device)
        start += len(group)


def make_group(lengths: list[int], device: torch.device) -> Rectangle:
    """Rows of these lengths, longest first."""
    rows, width = len(lengths), lengths[0]
    if lengths[-1] == width:
        return Rectangle(rows, width)
    ends = torch.tensor(lengths, device=device)[:, None]
    real = torch.arange(width, device=device) < ends  # (R, W)
    return Rectangle(rows, width, real.flatten().nonzero().squeeze(1), real[:, None, None, :])
