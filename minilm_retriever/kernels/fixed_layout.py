"""Unpadding into a fixed number of slots, computed on the device: a CUDA graph can hold it, and
nothing waits for the host.

Shapes: N rows of at most W tokens, S slots that their tokens fill row after row, H hidden.
The slots left over are computed and thrown away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class FixedLayout:
    """Where the tokens of N rows stand; in place of an `unpadding.Layout`, and of its only group.

    The rows need not be sorted, and may be empty."""

    rows: int  # N
    width: int  # W
    row: Tensor  # (S,) of each slot
    positions: Tensor  # (S,) of each slot's token in its row
    real: Tensor  # (S, 1) False at slots left over
    places: Tensor  # (S,) of each slot in the flattened (N, W)
    sources: Tensor  # (N * W,) the slot of each place; at padding any
    tokens: Tensor  # (N, W) True at real tokens
    mask: Tensor  # (N, 1, 1, W) the same for attention; an empty row has one, for a softmax of none
    # is not a number
    ends: Tensor  # (N + 1,) int32: row i has the slots ends[i] to ends[i + 1]

    @staticmethod
    def make(lengths: Tensor, slots: int, width: int) -> FixedLayout:
        """Of rows of these lengths (N,) int64, at most `width` each and `slots` together."""
        count, device = len(lengths), lengths.device
        ends = lengths.cumsum(0)  # (N,)
        starts = ends - lengths
        slot = torch.arange(slots, device=device)
        real = slot < ends[-1]
        row = torch.searchsorted(ends, slot, right=True).clamp(max=count - 1)
        positions = torch.where(real, slot - starts[row], 0)
        columns = torch.arange(width, device=device)
        return FixedLayout(
            rows=count,
            width=width,
            row=row,
            positions=positions,
            real=real[:, None],
            places=torch.where(real, row * width + positions, 0),
            sources=(starts[:, None] + columns).clamp(max=slots - 1).flatten(),
            tokens=columns < lengths[:, None],
            mask=(columns < lengths.clamp(min=1)[:, None])[:, None, None, :],
            ends=torch.nn.functional.pad(ends, (1, 0)).int(),
        )

    def pad(self, x: Tensor) -> Tensor:
        """(S, H) -> (N, W, H), any row's numbers at padding."""
        padded = gather(x, self.sources, self.places, self.real)
        return padded.view(self.rows, self.width, x.shape[-1])

    def unpad(self, x: Tensor) -> Tensor:
        """(N, W, H) -> (S, H), any row's numbers in the slots left over."""
        flat, is_token = x.reshape(self.rows * self.width, -1), self.tokens.view(-1, 1)
        return gather(flat, self.places, self.sources, is_token)

    def pad_states(self, x: Tensor) -> Tensor:
        """(S, H) -> (N, W, H), zeros at padding."""
        return self.pad(x).masked_fill(~self.tokens[:, :, None], 0.0)


def gather(x: Tensor, there: Tensor, back: Tensor, counts: Tensor) -> Tensor:
    """x[there]: see GatherRows."""
    out: Tensor = GatherRows.apply(x, there, back, counts)  # type: ignore[no-untyped-call]
    return out


class GatherRows(torch.autograd.Function):
    """x[there] (m, H) of x (n, H), whose gradient is gathered too: row i's is that of place back[i]
    where counts[i], else 0. index_select's own would be added up in any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(back, counts)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        back, counts = ctx.saved_tensors
        return gradients[0].index_select(0, back).masked_fill(~counts, 0.0), None, None, None
