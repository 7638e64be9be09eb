"""The loss of a batch as the flags define it, with false negatives masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.core.loss import FalseNegatives, contrastive_loss
from minilm_retriever.curation.duplicates import batch_floor
from minilm_retriever.distributed import Ranks
from minilm_retriever.errors import UserError
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.types import BoolArray, IntArray


@dataclass(frozen=True)
class Objective:
    """The loss of a batch of B rows, and the lowest value it can have.

    text_ids (1 + C, B): the texts of its queries, positives and hard negatives, by number."""

    config: TrainConfig
    ranks: Ranks
    guide: Tensor | None = None  # (N, G) unit vectors of the distinct texts by a frozen model
    absent: int = -1  # the text in place of a negative that a row does not have: no candidate

    def loss(self, vectors: Tensor, text_ids: IntArray) -> Tensor:
        """The mean loss; vectors ((1 + C) * B, H): all queries, then each further column.

        Among ranks, vectors are of this rank's rows, and the sum of what all ranks return is the
        batch's loss: each scores its own queries against the documents of all."""
        config, ranks, rows = self.config, self.ranks, text_ids.shape[1]
        own = ranks.own_rows(rows)
        count = own.stop - own.start
        queries = vectors[:count]
        documents = ranks.all_gather(vectors[count:], len(text_ids) - 1, rows)
        all_queries = ranks.all_gather(queries, 1, rows) if config.symmetric else queries
        if not count:  # no rows here, but the gathers' backward passes need every rank
            return (documents.sum() + all_queries.sum()) * 0.0
        loss = contrastive_loss(
            queries,
            documents,
            config.scale,
            label_smoothing=config.label_smoothing,
            false_negatives=self.false_negatives(text_ids, own, vectors.device),
            symmetric=config.symmetric,
            dimensions=config.matryoshka,
            first=own.start,
            all_queries=all_queries,
        )
        return loss if count == rows else loss * (count / rows)

    def false_negatives(
        self, text_ids: IntArray, own: slice, device: torch.device
    ) -> FalseNegatives | None:
        """The candidates that the flags exclude from the softmax of the `own` rows."""
        excluded = self.excluded(text_ids[0], text_ids[1:].reshape(-1), own, device)
        if excluded is None:
            return None
        symmetric = self.config.symmetric
        back = self.excluded(text_ids[1], text_ids[0], own, device) if symmetric else None
        return FalseNegatives(excluded, back)

    def excluded(
        self, anchors: IntArray, candidates: IntArray, own: slice, device: torch.device
    ) -> Tensor | None:
        """The mask (b, D) of one direction: labelled false negatives, and the guide's."""
        masks = []
        if (absent := torch.from_numpy(candidates == self.absent).to(device)).any():
            masks.append(absent.expand(len(anchors[own]), -1))
        if self.config.false_negatives == "mask":
            labelled = false_negative_mask(anchors, candidates, own)
            masks.append(torch.from_numpy(labelled).to(device))
        if self.guide is not None:
            a, c = (self.guide[torch.from_numpy(ids)].to(device) for ids in (anchors, candidates))
            masks.append(guide_mask(a[own], c, self.config.guide_margin, own.start))
        return torch.stack(masks).any(dim=0) if masks else None

    def floor(self, text_ids: IntArray) -> float:
        """The lowest mean loss that any model can have on this batch: see `batch_floor`."""
        if self.config.false_negatives == "mask":
            return 0.0
        floor = batch_floor(text_ids)
        return (floor + batch_floor(text_ids[[1, 0]])) / 2 if self.config.symmetric else floor


def check_negatives(config: TrainConfig, dimension: int, text_ids: Sequence[IntArray]) -> None:
    """UserError where the texts (N, 1 + C) of a file, or the flags, leave nothing to learn from."""
    masked = config.false_negatives != "keep"
    for path, texts in zip(config.train, text_ids, strict=True):
        if config.batch_size == 1 and texts.shape[1] == 2:
            raise UserError(
                "--batch-size 1 has no negatives, so there is nothing to learn: take at least 2, "
                "or pairs with hard negatives"
            )
        if len(np.unique(texts[:, 1:])) < 2:
            same = "document, so there is no negative"
        elif masked and texts.shape[1] == 2 and len(np.unique(texts[:, 0])) < 2:
            same = f"query, so --false-negatives {config.false_negatives} leaves no negative"
        else:
            continue
        raise UserError(f"{path}: every row has the same {same}; check --columns")
    if (longest := max(config.matryoshka, default=1)) > dimension:
        raise UserError(f"--matryoshka {longest}: the model's vectors have {dimension} numbers")


def false_negative_mask(
    queries: IntArray, documents: IntArray, rows: slice = slice(None)
) -> BoolArray:
    """(B, D) True where document k is a labelled positive of query i in another row.

    queries (B,), documents (D,): text numbers; rows: of which queries. So a row loses the other
    copies of its positive, the positives of other rows with its query, and hard negatives of other
    rows that are one of these."""
    distinct, query = np.unique(queries[rows], return_inverse=True)
    _, document = np.unique(documents, return_inverse=True)
    is_positive = np.zeros((len(distinct), int(document.max()) + 1), dtype=np.bool_)
    number = np.searchsorted(distinct, queries).clip(max=len(distinct) - 1)
    known = distinct[number] == queries  # (B,): rows whose query is one of those of `rows`
    is_positive[number[known], document[: len(queries)][known]] = True
    mask: BoolArray = is_positive[query][:, document]
    mask[np.arange(len(mask)), np.arange(len(queries))[rows]] = False
    return mask


def guide_mask(rows: Tensor, candidates: Tensor, margin: float = 0.0, first: int = 0) -> Tensor:
    """(B, D) True where a guide scores candidate k above row i's own (first + i) by over `margin`.

    rows (B, G), candidates (D, G): unit vectors of a frozen model. As in GISTEmbed (guided
    in-sample selection of training negatives; Solatorio, 2024)."""
    scores = rows @ candidates.T  # (B, D)
    own = scores.diagonal(first)[:, None]
    return scores > own + (margin + 1e-6)  # equal texts may differ by rounding
