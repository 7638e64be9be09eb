"""Where the real tokens of a batch stand: what drops padding, and what attention takes together. Torch only."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """R rows of near-equal length, the longest of W tokens, which attention takes together."""

    start: int  # its n tokens are start..stop-1 of the batch's S
    stop: int
    rows: int
    width: int
    places: Tensor | None = None  # (n,) places of its tokens in its flattened (R, W); None where nothing is padded
    mask: Tensor | None = None  # (R, 1, 1, W) True at real tokens; None where nothing is padded

    def pad(self, x: Tensor) -> Tensor:
        """Its tokens (n, H) as a rectangle (R, W, H), zeros at padding."""
        if self.places is not None:
            x = x.new_zeros(self.rows * self.width, x.shape[-1]).index_copy(0, self.places, x)
        return x.view(self.rows, self.width, x.shape[-1])

    def drop(self, x: Tensor) -> Tensor:
        """The tokens (n, H) of a rectangle (R, W, H)."""
        flat = x.reshape(self.rows * self.width, -1)
        return flat if self.places is None else flat.index_select(0, self.places)


class Layout(NamedTuple):
    """The S real tokens of a (B, T) batch, its rows in order of length, longest first."""

    places: Tensor | None  # (S,) places in the flattened rectangle; None where nothing is padded
    positions: Tensor  # (S,) position of each token in its row
    groups: tuple[Group, ...]

    def drop(self, ids: Tensor) -> Tensor:
        """The real tokens (S,) of a rectangle (B, T)."""
        return ids.flatten() if self.places is None else ids.flatten().index_select(0, self.places)

    def pad(self, x: Tensor, batch: int, width: int) -> Tensor:
        """Tokens (S, H) put back into the rectangle (B, T, H), zeros at padding."""
        if self.places is not None:
            x = x.new_zeros(batch * width, x.shape[-1]).index_copy(0, self.places, x)
        return x.view(batch, width, x.shape[-1])


def layout_of(attention_mask: Tensor, slack: float = 0.0) -> Layout:
    """The layout of an attention mask (B, T) of zeros and ones.

    slack: how much shorter than the longest row of its group a row may be, as a share of it. With 0 only equals go
    together and nothing is padded at all; more makes fewer, larger groups; with 1 there is one.
    """
    batch, width = attention_mask.shape
    if bool(attention_mask.all()):
        positions = torch.arange(width, device=attention_mask.device).repeat(batch)
        whole = Group(0, batch * width, batch, width)
        return Layout(None, positions, (whole,) if batch * width else ())
    lengths, order = attention_mask.bool().sum(dim=1).sort(descending=True, stable=True)
    row, positions = attention_mask.index_select(0, order).nonzero(as_tuple=True)
    places = order.index_select(0, row) * width + positions
    groups, sizes = list[Group](), lengths.tolist()
    first = start = 0
    while first < batch and sizes[first]:
        last, least = first, max(1, sizes[first] * (1 - slack))
        while last < batch and sizes[last] >= least:
            last += 1
        groups.append(group_of(start, lengths[first:last], sizes[first:last]))
        first, start = last, groups[-1].stop
    return Layout(places, positions, tuple(groups))


def group_of(start: int, lengths: Tensor, sizes: list[int]) -> Group:
    """The group of rows of these lengths (R,), longest first, whose tokens begin at `start`."""
    rows, width, stop = len(sizes), sizes[0], start + sum(sizes)
    if stop - start == rows * width:
        return Group(start, stop, rows, width)
    real = torch.arange(width, device=lengths.device) < lengths[:, None]  # (R, W)
    return Group(start, stop, rows, width, real.flatten().nonzero().squeeze(1), real[:, None, None, :])
