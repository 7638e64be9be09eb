"""The closest pairs of texts within one file: paraphrases, near-duplicates, what to look at before
splitting data.

The upper triangle of all cosines is gone through in blocks, and only what may be among the best is
kept: never the N x N matrix. At the end the pairs kept, up to twice as many as asked for, are
scored once more in float64, so that scores and their order depend on no block size. Texts that are
the same but for white space around them are one text here; how often they repeat is told, and with
`duplicates` each copy is paired with the first, at a score of 1.

Shapes: N distinct texts, H hidden, P pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minilm_retriever.curation.config import ParaphrasesConfig
from minilm_retriever.data.distinct import deduplicate
from minilm_retriever.data.texts import Record, read_texts
from minilm_retriever.data.writer import check_table, write_table
from minilm_retriever.encoder import Encoder, encode_texts
from minilm_retriever.errors import UserError
from minilm_retriever.progress import Progress

Vectors = npt.NDArray[np.float32]
COLUMNS = (
    "score",
    "id_0",
    "id_1",
    "sentence_0",
    "sentence_1",
)  # the last two are what train.py reads as a pair
COUNT = 100  # pairs, where neither a number nor a threshold is given
MOST = 10_000_000  # pairs that lie in memory
LEFT, RIGHT = (
    1024,
    2048,
)  # texts of a block: its 8 MB of cosines are looked at while they are in the cache
ROUNDING = 1e-6  # of a cosine in float32


class Pairs(NamedTuple):
    """The closest pairs, best first; left is before right in the file."""

    scores: npt.NDArray[np.float32]  # (P,)
    left: npt.NDArray[np.int64]  # (P,)
    right: npt.NDArray[np.int64]  # (P,)


def paraphrases(config: ParaphrasesConfig) -> tuple[list[tuple[object, ...]], str]:
    """Rows of COLUMNS, best first, written to --out if that is given, and a line on them."""
    count, threshold, out = config.n, config.threshold, config.out
    if count is not None and not 1 <= count <= MOST // 2:
        raise UserError(f"-n must be between 1 and {MOST // 2:,}, not {count:,}")
    if threshold is not None and not -1 <= threshold <= 1:
        raise UserError(f"--threshold is a cosine, between -1 and 1, not {threshold:g}")
    if out is not None:
        check_table(Path(out), config.overwrite)
    records = list(read_texts(config.file, text=config.text, id=config.id))
    distinct, place = deduplicate([record.text.strip() for record in records])
    if len(distinct) < 2 and not (config.duplicates and len(records) > 1):
        raise UserError(f"{config.file}: {len(distinct)} distinct text, pairs need two")
    encoder = Encoder.from_pretrained(config.model, device=config.device)
    with Progress("encoding", len(distinct), "texts") as progress:
        inside = encoder.model
        vectors = encode_texts(
            inside.encoder, inside.tokenizer, distinct, normalize=True, progress=progress.at
        )
    found = closest_pairs(vectors, count or (COUNT if threshold is None else None), threshold)
    copies = Copies.of(place)
    rows = list(rows_of(found, records, copies, config.duplicates, count))
    if out is not None:
        write_table(Path(out), COLUMNS, rows)
    return rows, (
        f"{len(records):,} texts, {len(distinct):,} distinct"
        + (
            f" ({len(copies.again):,} copies: --duplicates shows them)"
            if len(copies.again) and not config.duplicates
            else ""
        )
        + f"; {len(rows):,} pairs"
        + (f" with cosines from {rows[-1][0]:.4f} to {rows[0][0]:.4f}" if rows else "")
        + (f" in {out}" if out else "")
    )


@dataclass(frozen=True)
class Copies:
    """Records that say what an earlier one said."""

    first: npt.NDArray[np.int64]  # (N,) the first record of each distinct text
    again: list[tuple[int, int]]  # the first record with a text, and another with the same

    @staticmethod
    def of(place: npt.NDArray[np.int64]) -> Copies:
        """place: the distinct text of each record."""
        _, first = np.unique(place, return_index=True)
        again = [
            (int(first[text]), row) for row, text in enumerate(place.tolist()) if first[text] != row
        ]
        return Copies(first, sorted(again))


def rows_of(
    found: Pairs, records: Sequence[Record], copies: Copies, duplicates: bool, count: int | None
) -> Iterator[tuple[object, ...]]:
    """Rows of COLUMNS; copies first, if they are wanted at all."""
    pairs = [(1.0, *pair) for pair in copies.again] if duplicates else []
    left, right = copies.first[found.left].tolist(), copies.first[found.right].tolist()
    pairs += zip(found.scores.tolist(), left, right, strict=True)
    for score, one, other in pairs[:count]:
        a, b = records[one], records[other]
        yield round(score, 6), a.id, b.id, a.text, b.text


# --- the upper triangle, by blocks ----------------------------------------------------------------


def closest_pairs(vectors: Vectors, count: int | None, threshold: float | None = None) -> Pairs:
    """The best `count` pairs of unit vectors (N, H), of those with a cosine of at least
    `threshold`; ties by row.

    Raises UserError where no count bounds them and more than MOST pairs reach the threshold."""
    x = torch.from_numpy(vectors)
    best = _Best(
        None if count is None else 2 * count,
        -torch.inf if threshold is None else threshold - ROUNDING,
    )
    total = len(x) * (len(x) - 1) // 2
    products = torch.empty(LEFT * RIGHT)
    with Progress("comparing", total, "pairs") as progress:
        done = 0
        for start in range(0, len(x), LEFT):
            left = x[start : start + LEFT]
            for first in range(start, len(x), RIGHT):
                right = x[first : first + RIGHT]
                cosines = torch.mm(
                    left,
                    right.T,
                    out=products[: len(left) * len(right)].view(len(left), len(right)),
                )
                if first == start:  # on the diagonal: each pair once, and no text with itself
                    square = cosines[:, : len(left)]
                    square.masked_fill_(
                        torch.ones_like(square, dtype=torch.bool).tril(), -torch.inf
                    )
                best.add(cosines, start, first)
            done += len(left) * (len(x) - start) - len(left) * (len(left) + 1) // 2
            progress.at(done)
    return _exact(x, *best.rows(), count, threshold)


class _Best:
    """The pairs kept so far; `keep` bounds them, or else MOST."""

    def __init__(self, keep: int | None, threshold: float) -> None:
        self.keep, self.threshold = keep, threshold
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []  # scores, left, right, (C,) each
        self.waiting = 0

    def add(self, cosines: Tensor, start: int, first: int) -> None:
        """Consider a block whose rows begin at `start` and whose columns at `first`."""
        rows = (
            (cosines.amax(dim=1) > self.threshold).nonzero().squeeze(1)
        )  # most blocks hold few that are of use
        flat = cosines[rows].flatten()
        places = (flat > self.threshold).nonzero().squeeze(1)
        if self.keep is not None and len(places) > self.keep:
            places = places[flat[places].topk(self.keep).indices]
        row, column = rows[places // cosines.shape[1]], places % cosines.shape[1]
        self.found.append((flat[places], start + row, first + column))
        self.waiting += len(places)
        if self.keep is None and self.waiting > MOST:
            raise UserError(
                f"more than {MOST:,} pairs reach the threshold: raise --threshold, or bound them with -n"
            )
        if self.keep is not None and self.waiting >= 2 * self.keep:
            self.merge(self.keep)

    def merge(self, keep: int) -> None:
        """Leave the best; a score has to beat the last of them from now on."""
        scores, left, right = (torch.cat(parts) for parts in zip(*self.found, strict=True))
        if len(scores) > keep:
            scores, chosen = scores.topk(keep)
            left, right = left[chosen], right[chosen]
            self.threshold = max(self.threshold, float(scores[-1]))
        self.found, self.waiting = [(scores, left, right)], len(scores)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Left and right of all that was kept."""
        return torch.cat([left for _, left, _ in self.found]), torch.cat(
            [right for _, _, right in self.found]
        )


def _exact(
    x: Tensor, left: Tensor, right: Tensor, count: int | None, threshold: float | None
) -> Pairs:
    """The pairs by their cosines in float64, rounded to float32, best first; ties by left, then
    right."""
    scores = torch.empty(len(left))
    for start in range(0, len(left), 1 << 13):
        rows = slice(start, start + (1 << 13))
        scores[rows] = (
            (x[left[rows]].double() * x[right[rows]].double()).sum(dim=1).clamp(-1, 1).float()
        )
    kept = np.flatnonzero(scores.numpy() >= np.float32(-1 if threshold is None else threshold))
    found = Pairs(scores.numpy()[kept], left.numpy()[kept], right.numpy()[kept])
    order = np.lexsort((found.right, found.left, -found.scores))[:count]
    return Pairs(found.scores[order], found.left[order], found.right[order])
