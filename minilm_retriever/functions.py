"""Commands as functions of Python objects, which return what the commands print.

Each takes files, lists of tuples or dicts, data frames or datasets where the command takes a file,
an Encoder where it takes a model, and its other flags as keywords. UserError (a ValueError) names
what can be corrected."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minilm_retriever.curation.config import InspectConfig, MineConfig
from minilm_retriever.evaluation.config import EvaluateConfig
from minilm_retriever.formats.objects import named_source
from minilm_retriever.in_memory import named_model
from minilm_retriever.kernels.memory import memory_as_it_is
from minilm_retriever.keywords import configure
from minilm_retriever.pretrained.config import BASE_FOLDER
from minilm_retriever.types import StrPath

if TYPE_CHECKING:
    from minilm_retriever.curation.hard_negatives import Mined
    from minilm_retriever.curation.inspection import Inspection
    from minilm_retriever.encoder.encoder import Encoder
    from minilm_retriever.evaluation.comparison_table import ComparisonTable


@memory_as_it_is()
def inspect(
    pairs: object, *, model: StrPath | Encoder = BASE_FOLDER, **settings: Any
) -> Inspection:
    """Lengths, repeats and what is wrong in pairs, counted with a model's tokenizer."""
    from minilm_retriever.curation.inspect import inspect_pairs

    names = {"pairs": named_source(pairs), "model": named_model(model)}
    return inspect_pairs(configure(InspectConfig, names, settings))


@memory_as_it_is()
def mine(
    pairs: object,
    *,
    model: StrPath | Encoder = BASE_FOLDER,
    corpus: object | None = None,
    out: StrPath | None = None,
    **settings: Any,
) -> Mined:
    """Pairs with hard negatives that a model chose, which `train` takes as they are.

    corpus: more documents to choose from. out: also write them there: .csv, .tsv or .jsonl."""
    from minilm_retriever.curation.hard_negatives import mine

    names = {"pairs": named_source(pairs), "model": named_model(model)}
    names |= {} if corpus is None else {"corpus": named_source(corpus)}
    names |= {} if out is None else {"out": os.fspath(out)}
    return mine(configure(MineConfig, names, settings))


@memory_as_it_is()
def evaluate(
    data: object,
    *,
    model: StrPath | Encoder | Sequence[StrPath | Encoder] = BASE_FOLDER,
    corpus: object | None = None,
    **settings: Any,
) -> ComparisonTable:
    """Metrics of a model, or of several side by side, on pairs, scored pairs or a BEIR folder.

    model: "bm25" may be one of several. corpus: more documents to search than those of the pairs,
    in a column of the same name. The table's `results` hold all metrics and intervals."""
    from minilm_retriever.evaluation.line import evaluate

    models = list(model) if isinstance(model, (list, tuple)) else [model]
    names = {"data": named_source(data), "model": [named_model(one) for one in models]}
    names |= {} if corpus is None else {"corpus": named_source(corpus)}
    return evaluate(configure(EvaluateConfig, names, settings))
