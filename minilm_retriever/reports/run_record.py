"""The facts of a finished run, for the model card and the report. Data only, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

LONGEST_SAMPLE = 1000  # characters of a text that is shown

# A row of metrics.jsonl: step, epoch, and either `eval` or means since the last row: loss,
# loss_floor, learning_rate, tokens_per_second (without padding), seconds (of training so far).
MetricRow = dict[str, Any]


@dataclass(frozen=True)
class Column:
    name: str
    lengths: Sequence[int]  # tokens of the first 1,000 rows, [CLS] and [SEP] included, truncated


@dataclass(frozen=True)
class Evaluation:
    """Results on the held-out data, before and after training."""

    data: str  # its name
    queries: int
    documents: int  # 0: the queries are the first texts of pairs with scores
    after: Mapping[str, float]  # the metric that decides comes first
    before: Mapping[str, float] = field(default_factory=dict)  # the same metrics, or none
    also_in_training: int = 0  # held-out rows that are training rows too


@dataclass(frozen=True)
class General:
    """General ability before training and of the published weights."""

    data: str  # name of what it was measured on
    name: str  # of the measure
    before: float
    after: float


class SharePoint(NamedTuple):
    """The weights base + share * (fine-tuned - base), measured."""

    share: float
    own: float | None  # the metric that decides, on the held-out data
    general: float | None


@dataclass(frozen=True)
class Mix:
    """The share of the fine-tuned weights that is published, and others that were measured."""

    share: float
    points: Sequence[SharePoint]  # by share
    reason: str  # a sentence


@dataclass(frozen=True)
class RunRecord:
    """A finished run: what ran, never a plan or an unused default; names, never local paths."""

    # The model
    name: str
    base: str  # the base model's hub name where it is known, else its folder's name
    max_length: int  # tokens
    dimension: int
    pooling: str  # "mean" or "cls"
    normalize: bool

    # The data
    data: Sequence[str]  # file names
    rows: int
    columns: Sequence[Column]
    samples: Sequence[Sequence[str]]  # a few rows, a text for each column

    # The run
    settings: Mapping[str, object]  # every setting, with the value that ran
    defaults: Mapping[str, object]  # the same names
    steps: int
    seconds: float
    machine: str  # "AMD EPYC 7B13, 2 of 8 cores" or the like
    versions: Mapping[str, str]  # Python and packages, ours among them
    log: Sequence[tuple[float, int, float]]  # epoch, step, mean loss since the row before

    evaluation: Evaluation | None = None
    general: General | None = None
    mix: Mix | None = None
    base_revision: str | None = None  # at the hub; None: `base` is no hub name
    architecture: Mapping[str, object] = field(default_factory=dict)  # layers, attention heads, ...
    similarity: str = "cosine"
    loss: str = "infonce"  # or "cosent", "cosine"
    prompts: Mapping[str, str] = field(default_factory=dict)  # of the model folder, by name
    distinct_pairs: int | None = None
    loss_floor: float | None = None  # lowest possible mean loss, given the batches' duplicates
    notes: Sequence[str] = ()  # sentences: stopped early, which step was published

    # Examples: a text and the texts to compare it with; and what print shows of the similarities
    # of the first one's texts.
    widget: Sequence[tuple[str, Sequence[str]]] = ()
    similarities: str = ""

    # What the user states; None: not stated
    language: str | None = None
    license: str | None = None
    intended_use: str | None = None
    limits: str | None = None

    @property
    def changed(self) -> dict[str, object]:
        """The settings that ran with another value than the default."""
        return {k: v for k, v in self.settings.items() if (k, v) not in self.defaults.items()}


def shorten(text: str, longest: int = LONGEST_SAMPLE) -> str:
    return text if len(text) <= longest else text[:longest] + "…"


def map_texts(change: Callable[[str], str], value: Any) -> Any:
    """The same nested lists and dicts with `change` applied to every text, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {map_texts(change, k): map_texts(change, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [map_texts(change, item) for item in value]
    return value
