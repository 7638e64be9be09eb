"""What a fine-tuned model keeps of its base model's general ability: one number.

Without labels it is the agreement with the base model: Spearman's correlation of both models'
cosines over all pairs of general sentences, 1 before training. The package has 200 sentences on
everyday subjects, written for it. Somebody's own file may have other sentences, or pairs with
scores (then it is the correlation of the cosines with these), or be a BEIR folder (then nDCG@10).
docs/forgetting.md says how well the agreement predicts what is lost elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minilm_retriever.data.beir import is_beir
from minilm_retriever.data.pair_source import PairSource
from minilm_retriever.data.pairs import read_scored_pairs
from minilm_retriever.data.texts import read_texts
from minilm_retriever.errors import UserError
from minilm_retriever.evaluation.evaluate import evaluate_retrieval, row_cosines
from minilm_retriever.evaluation.metrics import rank_correlation
from minilm_retriever.evaluation.ranking import Encode
from minilm_retriever.evaluation.tasks import read_beir
from minilm_retriever.progress import say
from minilm_retriever.types import Float64Array, FloatArray

SENTENCES = Path(__file__).with_name("general_sentences.txt")
MOST_SENTENCES = 1000  # half a million pairs
AGREEMENT = "agreement"
MOST_LOST_AGREEMENT, MOST_LOST_OTHER = 0.04, 0.005  # see docs/forgetting.md


@dataclass(frozen=True)
class GeneralMeasure:
    """A measure of general ability, and how much of it a model may lose without a warning."""

    data: str  # name of what it is measured on
    name: str  # agreement, spearman or ndcg@10
    most_lost: float
    # Of the model that encodes so; queries and documents by the second and third, if given.
    measure: Callable[..., float]
    of_base: float | None = None  # its value for the base model, where that needs no measuring

    def is_within(self, before: float, after: float) -> bool:
        return after >= before - self.most_lost


def read_general(path: str | None, encode_base: Encode) -> GeneralMeasure:
    """The measure on a file or folder (None: the package's sentences); `encode_base`: the vectors
    (N, H) that the base model gives N texts."""
    if path and is_beir(Path(path)):
        task = read_beir(Path(path))
        return GeneralMeasure(
            task.name,
            "ndcg@10",
            MOST_LOST_OTHER,
            lambda encode, queries=None, documents=None: evaluate_retrieval(
                task, queries or encode, encode_documents=documents or encode
            ).metrics["ndcg@10"],
        )
    if path and has_scored_pairs(path):
        left, right, scores = read_scored_pairs(path)
        return GeneralMeasure(
            Path(path).name,
            "spearman",
            MOST_LOST_OTHER,
            lambda encode, *_: rank_correlation(row_cosines(encode(left), encode(right)), scores),
        )
    texts = read_sentences(path)
    base = pair_cosines(encode_base(texts))
    return GeneralMeasure(
        Path(path).name if path else f"{len(texts)} general sentences",
        AGREEMENT,
        MOST_LOST_AGREEMENT,
        lambda encode, *_: rank_correlation(pair_cosines(encode(texts)), base),
        of_base=1.0,
    )


def has_scored_pairs(path: str) -> bool:
    """Whether a file has two columns of texts and one of scores."""
    source = PairSource(path, scores=None)
    try:
        next(iter(source.rows()), None)
    except UserError:  # no pairs: what else is wrong shows when the texts are read
        return False
    return source.score is not None


def read_sentences(path: str | None) -> list[str]:
    """The distinct, filled texts of a file, the first MOST_SENTENCES; or the package's."""
    texts = [record.text.strip() for record in read_texts(path or SENTENCES)]
    texts = [text for text in dict.fromkeys(texts) if text]
    if len(texts) < 3:
        raise UserError(
            f"{path}: {len(texts)} different sentences are too few to compare models by"
        )
    if len(texts) > MOST_SENTENCES:
        say(f"{path}: of {len(texts):,} sentences, agreement is over the first {MOST_SENTENCES:,}")
    return texts[:MOST_SENTENCES]


def pair_cosines(vectors: FloatArray) -> Float64Array:
    """The cosines (N * (N - 1) / 2,) of all pairs of vectors (N, H)."""
    first, second = np.triu_indices(len(vectors), 1)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines: Float64Array = (unit @ unit.T)[first, second].astype(np.float64)
    return cosines
