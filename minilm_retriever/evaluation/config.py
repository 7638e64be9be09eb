"""Flags of `compare` and `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from minilm_retriever.data.config import PairFlags
from minilm_retriever.flags import flag
from minilm_retriever.pretrained.config import (
    BASE_FOLDER,
    DOCUMENT_PROMPT_HELP,
    MODEL_HELP,
    PRECISION_HELP,
    QUERY_PROMPT_HELP,
    Precision,
)


@dataclass(frozen=True)
class CompareConfig(PairFlags):
    """State what lower precisions cost a model on your data, and what they bring."""

    data: str = flag("", "pairs, a BEIR-style folder, or an STS file", name="DATA", nargs="?")
    precision: tuple[str, ...] = flag(
        (),
        f"of {', '.join(get_args(Precision))}: each is compared with the first "
        "(default: all that are not slower on this CPU)",
        metavar="P",
    )
    columns: tuple[str, ...] = flag((), "query and document columns of a pairs file", nargs=2)
    corpus: str | None = flag(None, "more documents to search than those of the pairs")
    split: str = flag("test", "judgements of a BEIR-style folder: qrels/SPLIT.tsv")
    model: str = flag(BASE_FOLDER, MODEL_HELP)
    query_prompt: str | None = flag(None, QUERY_PROMPT_HELP)
    document_prompt: str | None = flag(None, DOCUMENT_PROMPT_HELP)
    json: bool = flag(False, "print JSON", action="store_true")

    def __post_init__(self) -> None:
        if not self.data and self.precision:  # --precision fp32 bf16 DATA
            object.__setattr__(self, "data", self.precision[-1])
            object.__setattr__(self, "precision", self.precision[:-1])


@dataclass(frozen=True)
class EvaluateConfig(PairFlags):
    """Measure retrieval, or similarity, of models side by side."""

    data: str = flag("", "pairs, a BEIR-style folder, or an STS file", name="DATA")
    columns: tuple[str, ...] = flag((), "query and document columns of a pairs file", nargs=2)
    corpus: str | None = flag(None, "more documents to search than those of the pairs")
    split: str = flag("test", "judgements of a BEIR-style folder: qrels/SPLIT.tsv")
    model: tuple[str, ...] = flag(
        (),
        f"a model, or bm25; several are compared in turn (default {BASE_FOLDER})",
        action="append",
        nargs=None,
    )
    run: tuple[str, ...] = flag(
        (), "write a model's ranking as a TREC run", action="append", nargs=None
    )
    query_prompt: str | None = flag(None, QUERY_PROMPT_HELP)
    document_prompt: str | None = flag(None, DOCUMENT_PROMPT_HELP)
    general: str | None = flag(
        None,
        "also measure what each model keeps of the first: agreement over 200 sentences, or on a "
        "FILE of scored pairs or sentences, or a BEIR-style folder",
        nargs="?",
        const="",
        metavar="FILE",
    )
    picture: str | None = flag(
        None, "write the line from the first of two models to the second, as an HTML page"
    )
    precision: Precision = flag("fp32", PRECISION_HELP)
    overwrite: bool = flag(False, "replace files that are there", action="store_true")
    json: bool = flag(False, "print JSON", action="store_true")
