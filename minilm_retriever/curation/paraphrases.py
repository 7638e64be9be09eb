"""The closest pairs of texts within one file: paraphrases and near-duplicates.

The upper triangle of all cosines is computed in blocks, and only what may be among the best is
stored, never the N x N matrix. Texts that differ only in white space around them are one text here;
with `duplicates` each copy is paired with the first, at a score of 1.

Shapes: N distinct texts, H hidden, P pairs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.curation.config import ParaphrasesConfig
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.data.texts import Record, read_texts
from minilm_retriever.data.writer import check_table, write_table
from minilm_retriever.encoder.command import open_for_command
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.config import with_revision
from minilm_retriever.progress import Progress, say
from minilm_retriever.types import FloatArray, IntArray

# The last two are what train.py reads as a pair.
COLUMNS = ("score", "id_0", "id_1", "sentence_0", "sentence_1")
COUNT = 100  # pairs, where neither a number nor a threshold is given
MAX_PAIRS = 10_000_000  # that lie in memory
# Texts of a block: its 8 MB of cosines are looked at while they are in the cache.
BLOCK_ROWS, BLOCK_COLUMNS = 1024, 2048
ROUNDING = 1e-6  # of a cosine in float32


class ClosestPairs(NamedTuple):
    """Best first, ties by row; left is before right in the file."""

    scores: FloatArray  # (P,)
    left: IntArray  # (P,)
    right: IntArray  # (P,)


def paraphrases(config: ParaphrasesConfig) -> tuple[list[tuple[object, ...]], str]:
    """Rows of COLUMNS, best first, also written to --out, and a summary line."""
    count, threshold, out = config.n, config.threshold, config.out
    if count is not None and not 1 <= count <= MAX_PAIRS // 2:
        raise UserError(f"-n must be between 1 and {MAX_PAIRS // 2:,}, not {count:,}")
    if threshold is not None and not -1 <= threshold <= 1:
        raise UserError(f"--threshold is a cosine, between -1 and 1, not {threshold:g}")
    if out is not None:
        check_table(Path(out), config.overwrite, [config.file])
    bad_rows = config.bad_rows()
    bad_rows.check(config.overwrite, [config.file])
    with bad_rows.open() as on_bad:
        texts = read_texts(
            config.file,
            text=config.text,
            id=config.id,
            on_bad=on_bad,
            on_choice=say,
            **config.reading(),
        )
        records = list(texts)
    distinct, inverse = deduplicate([record.text.strip() for record in records])
    copies = len(records) - len(distinct)
    if len(distinct) < 2 and not (config.duplicates and copies):
        raise UserError(f"{config.file}: {len(distinct)} distinct text, pairs need two")
    encoder = open_for_command(with_revision(config.model, config.revision), config.device)
    vectors = encoder.encode(distinct, prompt="", normalize=True, show_progress=True)
    pairs = closest_pairs(vectors, count or (COUNT if threshold is None else None), threshold)
    rows = table_rows(pairs, records, inverse, config.duplicates)[:count]
    if out is not None:
        write_table(Path(out), COLUMNS, rows)
    line = f"{len(records):,} texts, {len(distinct):,} distinct"
    if copies and not config.duplicates:
        line += f" ({copies:,} copies: --duplicates shows them)"
    line += f"; {len(rows):,} pairs"
    if rows:
        line += f" with cosines from {rows[-1][0]:.4f} to {rows[0][0]:.4f}"
    return rows, f"{line} in {out}" if out else line


def table_rows(
    closest: ClosestPairs, records: list[Record], inverse: IntArray, duplicates: bool
) -> list[tuple[object, ...]]:
    """Rows of COLUMNS; inverse (N,): each record's distinct text; `duplicates`: copies first."""
    _, first = np.unique(inverse, return_index=True)  # the first record of each distinct text
    copies = [(first[text], n) for n, text in enumerate(inverse) if first[text] != n]
    pairs = [(1.0, *pair) for pair in sorted(copies)] if duplicates else []
    pairs += zip(closest.scores.tolist(), first[closest.left], first[closest.right], strict=True)
    rows = ((score, records[left], records[right]) for score, left, right in pairs)
    return [(round(score, 6), a.id, b.id, a.text, b.text) for score, a, b in rows]


def closest_pairs(
    vectors: FloatArray, count: int | None, threshold: float | None = None
) -> ClosestPairs:
    """The best `count` pairs of unit vectors (N, H) with a cosine of at least `threshold`.

    Raises UserError where no count bounds them and more than MAX_PAIRS reach the threshold."""
    x = torch.from_numpy(vectors)
    scores, pairs = torch.empty(0), torch.empty(0, dtype=torch.int64)  # (P,), left * N + right
    limit = -torch.inf if threshold is None else threshold - ROUNDING
    products, total = torch.empty(BLOCK_ROWS, BLOCK_COLUMNS), len(x) * (len(x) - 1) // 2
    with Progress("comparing", total, "pairs") as progress:
        for start in range(0, len(x), BLOCK_ROWS):
            left = x[start : start + BLOCK_ROWS]
            for first in range(start, len(x), BLOCK_COLUMNS):
                right = x[first : first + BLOCK_COLUMNS]
                cosines = torch.mm(left, right.T, out=products[: len(left), : len(right)])
                if first == start:  # on the diagonal: each pair once, and no text with itself
                    lower = torch.ones(len(left), len(left), dtype=torch.bool).tril()
                    cosines[:, : len(left)][lower] = -torch.inf
                rows = (cosines.amax(dim=1) > limit).nonzero()  # few, in most blocks
                row, column = (cosines[rows[:, 0]] > limit).nonzero(as_tuple=True)
                row = rows[row, 0]
                scores = torch.cat([scores, cosines[row, column]])
                pairs = torch.cat([pairs, (start + row) * len(x) + first + column])
                if count is None and len(scores) > MAX_PAIRS:
                    many = f"more than {MAX_PAIRS:,} pairs reach the threshold"
                    raise UserError(f"{many}: raise --threshold, or bound them with -n")
                if count is not None and len(scores) > 4 * count:
                    scores, best = scores.topk(2 * count)
                    pairs, limit = pairs[best], max(limit, float(scores[-1]))
            rest = len(x) - start - len(left)
            progress.at(total - rest * (rest - 1) // 2)
    return exact(x, pairs, count, threshold)


def exact(x: Tensor, pairs: Tensor, count: int | None, threshold: float | None) -> ClosestPairs:
    """The pairs by their cosines in float64, rounded to float32, so that no block size decides."""
    left, right = pairs // len(x), pairs % len(x)
    scores = torch.empty(len(pairs))
    for start in range(0, len(pairs), 1 << 13):
        rows = slice(start, start + (1 << 13))
        products = x[left[rows]].double() * x[right[rows]].double()
        scores[rows] = products.sum(dim=1).clamp(-1, 1).float()
    order = np.lexsort((pairs.numpy(), -scores.numpy()))
    if threshold is not None:
        order = order[scores.numpy()[order] >= np.float32(threshold)]
    order = order[:count]
    return ClosestPairs(scores.numpy()[order], left.numpy()[order], right.numpy()[order])
