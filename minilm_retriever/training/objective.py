"""What a batch is scored against: the loss that the flags ask for, with the candidates that are no
negatives left out.

Everything here looks at one batch: its vectors, and which text stands where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minilm_retriever.core.loss import Ids, Removed, contrastive
from minilm_retriever.curation.duplicates import batch_floor
from minilm_retriever.distributed import ALONE, Ranks
from minilm_retriever.errors import UserError
from minilm_retriever.training.config import TrainConfig


@dataclass(frozen=True)
class Objective:
    """The loss of a batch, and the floor under it."""

    config: TrainConfig
    guide: Tensor | None = None  # (N, G) a frozen model's unit vectors of the distinct texts

    def loss(self, vectors: Tensor, texts: Ids, ranks: Ranks = ALONE) -> Tensor:
        """vectors ((1 + C) * B, H): all queries, then each further column; texts (1 + C, B): which
        text each is.

        Among ranks, vectors are of our rows alone, and the sum of what all ranks return is the
        batch's loss: each scores its own queries against the documents of all."""
        rows, config = texts.shape[1], self.config
        own = ranks.own_rows(rows)
        count = own.stop - own.start
        queries = vectors[:count]  # they stay where they are, but for the symmetric loss
        documents = ranks.all_gather(vectors[count:], len(texts) - 1, rows)
        all_queries = ranks.all_gather(queries, 1, rows) if config.symmetric else queries
        if not count:  # fewer rows than ranks: nothing to score, but the gathering is also everybody's on the way back
            return (documents.sum() + all_queries.sum()) * 0.0
        loss = contrastive(
            queries,
            documents,
            config.scale,
            label_smoothing=config.label_smoothing,
            removed=self.removed(texts, vectors.device, own),
            symmetric=config.symmetric,
            dimensions=config.matryoshka,
            first=own.start,
            all_queries=all_queries,
        )
        return loss if count == rows else loss * (count / rows)

    def removed(self, texts: Ids, device: torch.device, own: slice = slice(None)) -> Removed | None:
        """Candidates of our `own` rows that are no negatives, or probably none; None where nobody
        asked."""
        queries, documents = texts[0], texts[1:].reshape(-1)  # (B,), (D,)
        positives, both, found = texts[1], self.config.symmetric, list[Removed]()
        if self.config.false_negatives == "mask":
            known = torch.from_numpy(known_pairs(queries, documents, own)).to(device)
            back = (
                torch.from_numpy(known_pairs(positives, queries, own)).to(device) if both else None
            )
            found.append(Removed(known, back))
        if self.guide is not None:
            q, d = (self.guide[torch.from_numpy(ids)].to(device) for ids in (queries, documents))
            margin, first = self.config.guide_margin, own.start or 0
            closer = closer_than_own(q[own], d, margin, first)
            found.append(
                Removed(closer, closer_than_own(d[own], q, margin, first) if both else None)
            )
        if len(found) == 2:
            (one, back), (other, back_too) = found
            return Removed(
                one | other, None if back is None or back_too is None else back | back_too
            )
        return found[0] if found else None

    def floor(self, texts: Ids) -> float:
        """What the batch's mean loss can't go below, however good the model: see `batch_floor`."""
        if self.config.false_negatives == "mask":
            return 0.0
        floor = batch_floor(texts)
        return (floor + batch_floor(texts[[1, 0]])) / 2 if self.config.symmetric else floor


def refuse_no_negatives(config: TrainConfig, dimension: int, places: Sequence[Ids]) -> None:
    """UserError where these flags and data (texts (N, 1 + C) of each file) can't make a loss to
    learn from."""
    for path, texts in zip(config.train, places, strict=True):
        if len(np.unique(texts[:, 1:])) < 2:
            raise UserError(
                f"{path}: every row has the same document, so there is no negative; check --columns"
            )
        if (
            config.false_negatives != "keep"
            and texts.shape[1] == 2
            and len(np.unique(texts[:, 0])) < 2
        ):
            raise UserError(
                f"{path}: every row has the same query, so --false-negatives {config.false_negatives} leaves no "
                "negative; check --columns"
            )
    if max(config.matryoshka, default=1) > dimension:
        raise UserError(
            f"--matryoshka {max(config.matryoshka)}: the model's vectors have {dimension} numbers"
        )


def known_pairs(queries: Ids, documents: Ids, rows: slice = slice(None)) -> npt.NDArray[np.bool_]:
    """(B, D): whether document k's text is, somewhere in this batch, a positive of query i's text;
    own ones left out.

    queries (B,), documents (D,); rows: of which queries i to tell. So a row loses the other copies
    of its positive, the positives of other rows with the same query, and hard negatives of other
    rows that are one of these."""
    asked, query = np.unique(queries[rows], return_inverse=True)
    _, document = np.unique(documents, return_inverse=True)
    pairs = np.zeros((len(asked), int(document.max()) + 1), dtype=np.bool_)
    place = np.searchsorted(asked, queries).clip(max=len(asked) - 1)
    here = asked[place] == queries  # (B,): rows whose query is one of those asked
    pairs[place[here], document[: len(queries)][here]] = True
    known = pairs[query][:, document]
    own = np.arange(len(queries))[rows]
    known[np.arange(len(own)), own] = False
    return known


def closer_than_own(
    rows: Tensor, candidates: Tensor, margin: float = 0.0, first: int = 0
) -> Tensor:
    """(B, D) bool: whether a guide finds candidate k closer to row i than i's own (first + i), by
    more than margin.

    rows (B, G), candidates (D, G): unit vectors of a frozen model. Copies of a row's own candidate
    are equally close."""
    scores = rows @ candidates.T  # (B, D)
    own = scores.diagonal(first)[:, None]
    return scores > own + (margin + 1e-6)  # two equal texts may differ by a rounding
