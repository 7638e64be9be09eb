"""Settings of the mining of hard negatives."""

from __future__ import annotations

from dataclasses import dataclass

from minilm_retriever.errors import UserError
from minilm_retriever.flags import at_least, flag
from minilm_retriever.pretrained.hub import BASE_FOLDER


@dataclass(frozen=True)
class MineConfig:
    """Adding hard negatives to pairs."""

    pairs: str = flag("", "pairs: CSV, TSV, JSONL or Parquet", "data")
    columns: tuple[str, ...] = flag((), "the columns of query and document", "data")
    corpus: str | None = flag(None, "more documents to choose from: a file of texts", "data")
    out: str = flag(
        "", "where to write the pairs with their negatives: .csv, .tsv or .jsonl", "data"
    )
    overwrite: bool = flag(False, "replace what is there", "data")
    model: str = flag(
        BASE_FOLDER, "the model that ranks: best the one that is trained next", "mining"
    )
    negatives: int = flag(1, "hard negatives a row", "mining")
    ranks: tuple[int, ...] = flag(
        (1, 50), "first and last rank to choose from, known answers left out", "mining"
    )
    margin: float = flag(
        0.05, "how much lower (cosine) than the row's own document a negative has to be", "mining"
    )
    seed: int = flag(42, "seed of the random documents where the ranks hold too few", "mining")
    device: str | None = flag(None, "cpu, cuda, ... (default: a GPU where there is one)", "mining")

    def __post_init__(self) -> None:
        at_least(self, 1, "negatives")
        at_least(self, 0, "margin", "seed")
        if not self.out:
            raise UserError("--out is missing: the file to write")
        if len(self.columns) not in (0, 2):
            raise UserError(
                f"--columns needs two names, query and document, not {' '.join(self.columns)}"
            )
        if len(self.ranks) != 2 or not 1 <= self.ranks[0] <= self.ranks[1]:
            given = " ".join(map(str, self.ranks))
            raise UserError(f"--ranks needs a first and a last rank, counted from 1, not {given}")
        if self.ranks[1] - self.ranks[0] + 1 < self.negatives:
            raise UserError(
                f"--ranks {self.ranks[0]} {self.ranks[1]} has no room for --negatives {self.negatives}"
            )
