"""Flags of `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass

from minilm_retriever.data.config import PairFlags
from minilm_retriever.flags import flag
from minilm_retriever.pretrained.config import BASE_FOLDER


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
    overwrite: bool = flag(False, "replace TREC runs that are there", action="store_true")
    json: bool = flag(False, "print JSON", action="store_true")
