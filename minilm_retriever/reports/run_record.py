"""What a training run leaves behind: the facts that the model card and the report tell. Data only,
no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict


@dataclass(frozen=True)
class Column:
    """A column of the training data and how long its texts are."""

    name: str
    lengths: Sequence[
        int
    ]  # token counts of the first 1,000 rows, [CLS] and [SEP] included, cut at the limit

    @property
    def mean(self) -> float:
        """The mean token count, 0 for no rows."""
        return sum(self.lengths) / max(1, len(self.lengths))


@dataclass(frozen=True)
class Evaluation:
    """One held-out data set, before and after training. A metric that was not measured is left
    out."""

    data: str  # what it was measured on, in words or as a path
    queries: int
    after: Mapping[str, float]  # the metric that counts comes first
    before: Mapping[str, float] = field(default_factory=dict)
    gains: Mapping[str, tuple[float, float]] = field(
        default_factory=dict
    )  # 95 % interval of after - before
    documents: int | None = None
    also_in_training: int = 0  # held-out rows that stand in the training data, too


@dataclass(frozen=True)
class RunRecord:
    """A finished run. Nothing in it is a plan or a default that did not take effect."""

    # The model
    name: str
    folder: str  # where it was published; the usage examples open it
    base: str  # what was fine-tuned: a folder or a hub name
    max_length: int
    dimension: int
    pooling: str  # "mean" or "cls"
    normalize: bool

    # The data
    data: Sequence[str]
    rows: int
    columns: Sequence[Column]
    samples: Sequence[Sequence[str]]  # a few rows, a text for each column

    # The run
    loss_parameters: Mapping[str, object]
    settings: Mapping[str, object]  # every setting, with the value that ran
    defaults: Mapping[str, object]  # the same names
    steps: int
    seconds: float
    machine: str  # "2 x AMD EPYC 7B13, 8 GB" or the like
    versions: Mapping[str, str]  # Python and packages, ours among them
    log: Sequence[tuple[float, int, float]]  # epoch, step, mean loss since the row before

    evaluations: Sequence[Evaluation] = ()
    base_model: str | None = None  # the base's hub name and revision, where they are known
    base_revision: str | None = None
    bert: Mapping[str, object] = field(
        default_factory=dict
    )  # layers, heads, ... for the architecture
    similarity: str = "cosine"
    distinct_pairs: int | None = None
    loss: str = "MultipleNegativesRankingLoss"
    loss_floor: float | None = (
        None  # what the mean loss cannot go below, given the duplicates in the batches
    )
    notes: Sequence[
        str
    ] = ()  # sentences on what happened: resumed, stopped early, which step was published
    command: str | None = None

    # What the user says about it
    language: str | None = None
    license: str | None = None
    intended_use: str | None = None
    out_of_scope: str | None = None
    limits: str | None = None
    recommendations: str | None = None
    authors: str | None = None
    contact: str | None = None
    tags: Sequence[str] = ()
    widget: Sequence[tuple[str, Sequence[str]]] = ()  # a text and the texts to compare it with

    @property
    def changed(self) -> dict[str, object]:
        """The settings that ran with another value than the default."""
        missing = object()
        return {
            name: value
            for name, value in self.settings.items()
            if self.defaults.get(name, missing) != value
        }


class MetricRow(TypedDict, total=False):
    """A row of metrics.jsonl: `step` and either a mean since the last row, or `eval`."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    tokens_per_second: float  # real tokens, padding not counted
    seconds: float  # since the run began, resumptions' pauses left out
    loss_floor: float
    eval: dict[str, float]
