"""The loss of a batch as the flags define it, with false negatives masked.

Shapes: B rows of a batch, b of them this rank's, C columns, D candidates, M inputs, G the guide's
dimension."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.core.loss import cosent_loss, cosine_loss
from minilm_retriever.curation.duplicates import batch_floor
from minilm_retriever.data.pairs import Pairs
from minilm_retriever.distributed import Ranks
from minilm_retriever.errors import UserError
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.dataset import BatchRows, Side, as_tensor
from minilm_retriever.training.loss_variants import FalseNegatives, contrastive_loss, matryoshka
from minilm_retriever.types import BoolArray, IntArray


@dataclass(frozen=True)
class Objective:
    """The loss of a batch of B rows, and the lowest value it can have."""

    config: TrainConfig
    ranks: Ranks
    guide: Tensor | None = None  # (M, G) unit vectors of the inputs by a frozen model
    absent: int = -1  # the text in place of a negative that a row does not have: no candidate

    def loss(self, vectors: Tensor, rows: BatchRows) -> Tensor:
        """The mean loss; vectors (C * B, H): all queries, then each further column.

        Among ranks, vectors are of this rank's rows, and the sum of what all ranks return is the
        batch's loss."""
        if self.config.loss != "infonce":
            return self.scored_loss(vectors, rows)
        config, ranks, (columns, count) = self.config, self.ranks, rows.texts.shape
        own = ranks.own_rows(count)
        own_count = own.stop - own.start
        queries = vectors[:own_count]
        documents = ranks.all_gather(vectors[own_count:], columns - 1, count)
        needs_all = config.symmetric or config.guide_all
        all_queries = ranks.all_gather(queries, 1, count) if needs_all else queries
        if not own_count:  # no rows here, but the gathers' backward passes need every rank
            return (documents.sum() + all_queries.sum()) * 0.0
        loss = contrastive_loss(
            queries,
            documents,
            config.scale,
            label_smoothing=config.label_smoothing,
            false_negatives=self.false_negatives(rows, own, vectors.device),
            symmetric=config.symmetric,
            same_side=config.guide_all,
            dimensions=config.matryoshka,
            first=own.start,
            all_queries=all_queries,
        )
        return loss if own_count == count else loss * (own_count / count)

    def scored_loss(self, vectors: Tensor, rows: BatchRows) -> Tensor:
        """The loss of pairs with scores: every rank computes all of it, and returns its share."""
        config, ranks, count = self.config, self.ranks, rows.texts.shape[1]
        own = ranks.own_rows(count)
        own_count = own.stop - own.start
        sides = (vectors[:own_count], vectors[own_count : 2 * own_count])
        first, second = (ranks.all_gather(side, 1, count) for side in sides)
        assert rows.scores is not None
        loss = partial(row_loss, config, scores=rows.scores.to(first))
        return matryoshka(loss, (first, second), config.matryoshka) / ranks.world_size

    def false_negatives(
        self, rows: BatchRows, own: slice, device: torch.device
    ) -> FalseNegatives | None:
        """The candidates that the flags exclude from the softmax of the `own` rows."""
        queries, positives, documents = rows.side(0, 1), rows.side(1, 2), rows.side(1)
        own_scores = None
        if self.guide is not None:
            a, b = (self.vectors(side, device)[own] for side in (queries, positives))
            own_scores = (a * b).sum(dim=1, keepdim=True)
        mask = partial(self.excluded, own=own, own_scores=own_scores, device=device)
        masks = [mask(queries, documents)]
        if self.config.guide_all:
            masks.append(mask(queries, queries, same=positives))
            masks.append(mask(positives, positives, same=queries))
        excluded = [part for part in masks if part is not None]  # with a guide, all
        if not excluded:
            return None
        back = mask(positives, queries) if self.config.symmetric else None
        return FalseNegatives(torch.cat(excluded, dim=1), back)

    def vectors(self, side: Side, device: torch.device) -> Tensor:
        """The guide's, (N, G), of N texts."""
        assert self.guide is not None
        return self.guide[as_tensor(side.inputs)].to(device)

    def excluded(
        self,
        anchors: Side,
        candidates: Side,
        *,
        own: slice,
        own_scores: Tensor | None,
        device: torch.device,
        same: Side | None = None,
    ) -> Tensor | None:
        """The mask (b, D) of one direction: labelled false negatives, and the guide's.

        own_scores (b, 1): the guide's, of each row's own document. same: of candidates of the
        anchors' own kind, their partners, by which labels tell; a text is no candidate for
        itself."""
        masks = []
        if self.absent >= 0:
            absent = as_tensor(candidates.texts).to(device) == self.absent
            if isinstance(candidates.texts, Tensor) or absent.any():
                masks.append(absent.expand(len(anchors.texts[own]), -1))
        if self.config.false_negatives == "mask":
            queries = (same or anchors).texts
            if isinstance(queries, Tensor):
                masks.append(false_negatives_on_device(queries, candidates.texts))
            else:
                labelled = false_negative_mask(queries, candidates.texts, own)
                masks.append(torch.from_numpy(labelled).to(device))
        if own_scores is not None:
            a, c = self.vectors(anchors, device)[own], self.vectors(candidates, device)
            masks.append(guide_mask(a, c, self.config.guide_margin, own_scores))
        if same is not None:
            rows = torch.arange(len(candidates.texts), device=device)
            masks.append(rows[own, None] == rows)
        return torch.stack(masks).any(dim=0) if masks else None

    def has_contrast(self, rows: BatchRows) -> bool:
        """Whether a batch can teach anything: any negative, or two scores to tell apart."""
        if self.config.loss != "infonce":
            assert rows.scores is not None
            return self.config.loss == "cosine" or bool((rows.scores != rows.scores[0]).any())
        masks = self.false_negatives(rows, slice(0, rows.texts.shape[1]), torch.device("cpu"))
        negatives = torch.from_numpy(rows.texts[1][:, None] != rows.texts[1:].reshape(-1))
        if masks is not None:
            return bool((negatives & ~masks.documents[:, : negatives.shape[1]]).any())
        return bool(negatives.any())

    def floor(self, rows: BatchRows) -> float:
        """The lowest mean loss that any model can have on this batch: see `batch_floor`."""
        if self.config.false_negatives == "mask" or self.config.loss != "infonce":
            return 0.0
        floor = batch_floor(rows.texts)
        return (floor + batch_floor(rows.texts[[1, 0]])) / 2 if self.config.symmetric else floor


def row_loss(config: TrainConfig, a: Tensor, b: Tensor, scores: Tensor) -> Tensor:
    """The loss of pairs of rows (B, H) with scores (B,)."""
    if config.loss == "cosent":
        return cosent_loss(a, b, scores, config.scale)
    return cosine_loss(a, b, scores)


def target_scores(config: TrainConfig, pairs: Pairs) -> list[float]:
    """The scores as the loss takes them; UserError where there is nothing to learn from them."""
    scores = pairs.scores or []
    if config.loss == "cosent":
        if len(set(scores)) < 2:
            same = f"all scores are {scores[0]:g}"
            raise UserError(f"{pairs.path}: {same}, and --loss cosent learns their order")
        return scores
    low, high = config.score_range
    targets = [(score - low) / (high - low) for score in scores]
    for row, target in enumerate(targets):
        if not -1 <= target <= 1:
            outside = f"a score of {scores[row]:g}, where a cosine is to be"
            limits = f"--score-range {min(scores):g} {max(scores):g}"
            mend = f"say which scores mean unlike and alike, such as {limits}"
            raise UserError(f"{pairs.where(row)}: {outside}: {mend}")
    return targets


def check_negatives(config: TrainConfig, text_ids: Sequence[IntArray]) -> None:
    """UserError where the texts (N, C) of a file, or the flags, leave no negative."""
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


def check_contrast(
    config: TrainConfig, objective: Objective, batches: Iterable[tuple[int, BatchRows]]
) -> None:
    """UserError where the batches of an epoch, by the number of their file, can teach nothing: the
    loss would be 0, and the model published as it was."""
    missing = set(range(len(config.train)))
    for source, rows in batches:
        if source in missing and objective.has_contrast(rows):
            missing.discard(source)
        if not missing:
            return
    what = "a negative that is left for its query" if config.loss == "infonce" else "two scores"
    mend = "try a larger --batch-size, or other flags on false negatives and the guide"
    raise UserError(f"{config.train[min(missing)]}: no batch of an epoch holds {what}: {mend}")


def check_matryoshka(config: TrainConfig, dimension: int) -> None:
    """UserError where the vectors are shorter than a length that is asked for."""
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


def false_negatives_on_device(queries: Tensor, documents: Tensor) -> Tensor:
    """`false_negative_mask` of all rows, without waiting for the device: queries (B,), documents
    (D,) -> (B, D). For batches of a few hundred rows: it takes B times as many products."""
    same_query = (queries[:, None] == queries).float()  # (B, B)
    same_document = (documents[: len(queries), None] == documents).float()  # (B, D)
    known = same_query @ same_document > 0
    known.diagonal().fill_(False)
    return known


def guide_mask(
    anchors: Tensor, candidates: Tensor, margin: float = 0.0, own_scores: Tensor | None = None
) -> Tensor:
    """(B, D) True where a guide scores candidate k above row i's own document by over `margin`.

    anchors (B, G), candidates (D, G): unit vectors of a frozen model; own_scores (B, 1): each row's
    query with its document, by default candidate i. As in GISTEmbed (guided in-sample selection of
    training negatives; Solatorio, 2024)."""
    scores = anchors @ candidates.T
    own = scores.diagonal()[:, None] if own_scores is None else own_scores
    return scores > own + (margin + 1e-6)  # equal texts may differ by rounding
