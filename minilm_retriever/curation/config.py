"""Flags of `inspect`, `mine` and `paraphrases`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minilm_retriever.data.config import PairFlags, ReadingFlags
from minilm_retriever.errors import UserError
from minilm_retriever.flags import check_bounds, flag
from minilm_retriever.formats.names import check_pair_columns
from minilm_retriever.pretrained.config import (
    BASE_FOLDER,
    DEVICE_HELP,
    DOCUMENT_PROMPT_HELP,
    MODEL_HELP,
    QUERY_PROMPT_HELP,
    REVISION_HELP,
)


@dataclass(frozen=True)
class InspectConfig(PairFlags):
    """Describe pairs: lengths, repeats, the floor under the loss."""

    pairs: str = flag("", "pairs: a file, or a folder (also BEIR's)", name="PAIRS")
    columns: tuple[str, ...] = flag((), "query, document and maybe hard negatives")
    batch_size: int = flag(16, "of training", at_least=1)
    model: str = flag(BASE_FOLDER, "whose tokens are counted")
    revision: str | None = flag(None, REVISION_HELP)
    json: bool = flag(False, "print JSON", action="store_true")

    def __post_init__(self) -> None:
        check_bounds(self)
        check_pair_columns(self.columns)


@dataclass(frozen=True)
class MineConfig(PairFlags):
    """Add hard negatives to pairs, chosen by a model."""

    pairs: str = flag("", "pairs: a file, or a folder (also BEIR's)", "data", name="PAIRS")
    columns: tuple[str, ...] = flag((), "query, document and maybe hard negatives")
    corpus: str | None = flag(None, "more documents to choose from: a file of texts")
    out: str = flag("", "where to write the pairs with their negatives: .csv, .tsv or .jsonl")
    overwrite: bool = flag(False, "replace what is there")

    model: str = flag(BASE_FOLDER, "the model that ranks: best the one to be trained", "mining")
    revision: str | None = flag(None, REVISION_HELP)
    query_prompt: str | None = flag(None, QUERY_PROMPT_HELP)
    document_prompt: str | None = flag(None, DOCUMENT_PROMPT_HELP)
    negatives: int = flag(1, "new hard negatives a row, at most", at_least=1)
    ranks: tuple[int, ...] = flag(
        (1, 50), "first and last rank to choose from, known answers left out"
    )
    margin: float | None = flag(
        None,
        "how much lower (cosine) than the row's own document a negative must be (default 0.05; 0 "
        "with --relative-margin)",
        at_least=0,
    )
    relative_margin: float | None = flag(
        None, "the same as a share of the own document's cosine", at_least=0
    )
    min_cosine: float | None = flag(None, "the lowest cosine of a negative with its query")
    max_cosine: float | None = flag(None, "the highest cosine of a negative with its query")
    sampling: Literal["top", "random"] = flag(
        "top", "of the candidates that are left, the nearest, or random ones"
    )
    seed: int = flag(42, "seed of --sampling random", at_least=0)
    cosines: bool = flag(False, "also write the cosines of the documents and the new negatives")
    device: str | None = flag(None, DEVICE_HELP)

    def __post_init__(self) -> None:
        check_bounds(self)
        check_pair_columns(self.columns)
        low, high = self.min_cosine, self.max_cosine
        if low is not None and high is not None and low > high:
            raise UserError(f"--min-cosine {low:g} is above --max-cosine {high:g}")
        ranks = " ".join(map(str, self.ranks))
        if len(self.ranks) != 2 or not 1 <= self.ranks[0] <= self.ranks[1]:
            raise UserError(f"--ranks needs a first and a last rank, counted from 1, not {ranks}")
        if self.ranks[1] - self.ranks[0] + 1 < self.negatives:
            raise UserError(f"--ranks {ranks} has no room for --negatives {self.negatives}")

    def highest_cosine(self, own: float) -> float:
        """That a negative may have, of a row whose document has the cosine `own`."""
        margin = self.margin
        if margin is None:
            margin = 0.05 if self.relative_margin is None else 0.0
        bounds = [own - margin, own - abs(own) * (self.relative_margin or 0.0)]
        return min([*bounds, *([] if self.max_cosine is None else [self.max_cosine])])


@dataclass(frozen=True)
class ParaphrasesConfig(ReadingFlags):
    """Find the closest pairs of texts within one file."""

    file: str = flag("", "texts: lines, CSV, TSV, JSONL or Parquet", name="FILE")
    text: str | None = flag(None, "the column that holds the text")
    id: str | None = flag(None, "the column that holds the id (default: the row's number)")
    n: int | None = flag(None, "the best N pairs (default 100, or all with --threshold)")
    threshold: float | None = flag(None, "pairs with a cosine of at least X")
    duplicates: bool = flag(False, "pair copies of a text with the first, too", action="store_true")
    model: str = flag(BASE_FOLDER, MODEL_HELP)
    revision: str | None = flag(None, REVISION_HELP)
    device: str | None = flag(None, DEVICE_HELP)
    out: str | None = flag(None, "write .csv, .tsv or .jsonl (default: a table on stdout)")
    overwrite: bool = flag(False, "replace what is there", action="store_true")
