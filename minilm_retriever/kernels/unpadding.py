"""Where the real tokens of a batch stand: what drops padding, and what attention takes together.
Torch only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_SCORES = (
    100_000  # times heads and 4 bytes: what attention takes together on a CPU stays in its caches
)


class Group(NamedTuple):
    """R rows of near-equal length, the longest of W tokens, which attention takes together."""

    start: int  # its n tokens are start..stop-1 of the batch's S
    stop: int
    rows: int
    width: int
    places: Tensor | None = (
        None  # (n,) places of its tokens in its flattened (R, W); None where nothing is padded
    )
    mask: Tensor | None = None  # (R, 1, 1, W) True at real tokens; None where nothing is padded

    def pad(self, x: Tensor) -> Tensor:
        """Its tokens (n, H) as a rectangle (R, W, H), zeros at padding."""
        if self.places is not None:
            x = x.new_zeros(self.rows * self.width, x.shape[-1]).index_copy(0, self.places, x)
        return x.view(self.rows, self.width, x.shape[-1])

    def unpad(self, x: Tensor) -> Tensor:
        """The tokens (n, H) of a rectangle (R, W, H)."""
        flat = x.reshape(self.rows * self.width, -1)
        return flat if self.places is None else flat.index_select(0, self.places)


class Layout(NamedTuple):
    """The real tokens of a (B, T) batch, its rows in order of length, longest first; S counts them
    and a few spare."""

    places: (
        Tensor | None
    )  # (S - spare,) places in the flattened rectangle; None where nothing is padded
    positions: Tensor  # (S,) position of each token in its row
    groups: tuple[Group, ...]
    spare: int = 0  # tokens at the end that are computed and thrown away: see spare_tokens

    def unpad(self, ids: Tensor) -> Tensor:
        """The real tokens of a rectangle (B, T), and the spare ones, (S,)."""
        flat = ids.flatten() if self.places is None else ids.flatten().index_select(0, self.places)
        return F.pad(flat, (0, self.spare)) if self.spare else flat

    def pad(self, x: Tensor, batch: int, width: int) -> Tensor:
        """The real ones of tokens (S, H) put back into the rectangle (B, T, H), zeros at
        padding."""
        x = x[: len(x) - self.spare] if self.spare else x
        if self.places is not None:
            x = x.new_zeros(batch * width, x.shape[-1]).index_copy(0, self.places, x)
        return x.view(batch, width, x.shape[-1])


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
    there is one. on_cpu: add `spare_tokens`, and let no group have more than CPU_SCORES attention
    scores a head."""
    batch, width = attention_mask.shape
    if bool(attention_mask.all()):
        places, sizes = None, [width] * batch
        positions = torch.arange(width, device=attention_mask.device).repeat(batch)
    else:
        lengths, order = attention_mask.bool().sum(dim=1).sort(descending=True, stable=True)
        row, positions = attention_mask.index_select(0, order).nonzero(as_tuple=True)
        places, sizes = order.index_select(0, row) * width + positions, lengths.tolist()
    groups = tuple(groups_of(sizes, slack, on_cpu, attention_mask.device))
    spare = spare_tokens(len(positions)) if on_cpu else 0
    return Layout(places, F.pad(positions, (0, spare)), groups, spare)


def groups_of(
    sizes: list[int], slack: float, on_cpu: bool, device: torch.device
) -> Iterator[Group]:
    """Rows of these lengths, longest first, in groups: see make_layout."""
    first = start = 0
    while first < len(sizes) and sizes[first]:
        width = sizes[first]
        least, most = (
            max(1, width * (1 - slack)),
            max(1, CPU_SCORES // width**2) if on_cpu else len(sizes),
        )
        rows = [size for size in sizes[first : first + most] if size >= least]
        yield group_of(start, rows, device)
        first, start = first + len(rows), start + sum(rows)


def group_of(start: int, sizes: list[int], device: torch.device) -> Group:
    """The group of rows of these lengths, longest first, whose tokens begin at `start`."""
    rows, width, stop = len(sizes), sizes[0], start + sum(sizes)
    if stop - start == rows * width:
        return Group(start, stop, rows, width)
    real = (
        torch.arange(width, device=device) < torch.tensor(sizes, device=device)[:, None]
    )  # (R, W)
    return Group(
        start, stop, rows, width, real.flatten().nonzero().squeeze(1), real[:, None, None, :]
    )
