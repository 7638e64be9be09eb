"""The few sizes in which the steps of a run are computed: one CUDA graph each.

A size is S slots for the real tokens of a batch and W for the longest of its texts. Fewer sizes
mean fewer graphs to capture and keep, more sizes mean less that is computed and thrown away."""

from __future__ import annotations

import numpy as np

from minilm_retriever.types import Float64Array, IntArray

SIZES = 8  # at most; capturing one takes about 0.2 s
WIDTHS = 16  # W is a multiple of it: attention's kernels want masks of a multiple of 8
HIDDEN = 384  # attention's share in a size's cost is of a model so wide


def round_up(tokens: IntArray, longest: IntArray) -> tuple[IntArray, IntArray]:
    """The size of each step by itself: one of 16 an octave for its tokens, a multiple of WIDTHS."""
    bits = np.floor(np.log2(np.maximum(tokens, 16))).astype(np.int64)
    step = 1 << np.maximum(bits - 4, 3)  # at least 8 slots
    return -(-tokens // step) * step, -(-longest // WIDTHS) * WIDTHS


def cost(slots: Float64Array, widths: Float64Array, rows: int) -> Float64Array:
    """What a batch of `rows` texts costs, in slots: 24 H^2 operations each, and 4 H for each pair
    of places in attention, which runs at a third of the speed."""
    return slots + rows * widths**2 * 12 / (24 * HIDDEN)


def choose_sizes(
    tokens: IntArray, longest: IntArray, rows: int, limit: int = SIZES
) -> list[tuple[int, int]]:
    """At most `limit` sizes that hold steps of these tokens and longest texts (n,), by their cost.

    rows: texts a batch. Two sizes at a time are merged, those that add the least to the cost of all
    steps."""
    own = np.stack(round_up(tokens, longest), axis=1)
    sizes, steps = np.unique(own, axis=0, return_counts=True)
    slots, widths, counts = np.column_stack([sizes, steps]).T.astype(np.float64)
    while len(slots) > limit:
        wide = np.maximum(slots[:, None], slots), np.maximum(widths[:, None], widths)
        before = counts * cost(slots, widths, rows)
        added = cost(*wide, rows) * (counts[:, None] + counts) - (before[:, None] + before)
        np.fill_diagonal(added, np.inf)
        a, b = np.unravel_index(int(added.argmin()), added.shape)
        slots[a], widths[a], counts[a] = wide[0][a, b], wide[1][a, b], counts[a] + counts[b]
        slots, widths, counts = np.delete(np.stack([slots, widths, counts]), b, axis=1)
    order = np.argsort(cost(slots, widths, rows), kind="stable")
    return [(int(slots[i]), int(widths[i])) for i in order]


def size_of(tokens: int, longest: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The cheapest of the sizes that holds a step, or one of its own."""
    for slots, width in sizes:
        if tokens <= slots and longest <= width:
            return slots, width
    (own,) = np.stack(round_up(np.array([tokens]), np.array([longest])), axis=1).tolist()
    return own[0], own[1]
