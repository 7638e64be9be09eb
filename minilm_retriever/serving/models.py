"""What is served: models by name, and the folders of vectors that they made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from minilm_retriever.encoder.command import open_for_command
from minilm_retriever.encoder.encoder import Encoder
from minilm_retriever.encoder.precision import split_fingerprint
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.config import BASE_FOLDER
from minilm_retriever.pretrained.prompts import DOCUMENT, QUERY
from minilm_retriever.search.index import Index
from minilm_retriever.search.index_folder import open_index
from minilm_retriever.serving.batching import Batcher, Workers
from minilm_retriever.serving.config import ServeConfig
from minilm_retriever.serving.metrics import Metrics

TASKS = {"query": QUERY, "document": DOCUMENT, "": ()}


class ServedModel:
    """A model under the name that clients call it by, with a batcher for each kind of prompt."""

    def __init__(
        self, name: str, encoder: Encoder, workers: Workers, settings: ServeConfig, counts: Metrics
    ) -> None:
        self.name, self.encoder, self.workers = name, encoder, workers
        self._made_of = (workers, settings, counts)
        self._batchers: dict[str, Batcher] = {}

    def batcher(self, task: str = "") -> Batcher:
        """Of texts with the prompt of a task: "query", "document" or "" (the default prompt)."""
        if task not in self._batchers:
            self._batchers[task] = Batcher(self.encoder, TASKS[task], *self._made_of)
        return self._batchers[task]

    @cached_property
    def fingerprint(self) -> str:
        return self.encoder.model.fingerprint()


@dataclass(frozen=True)
class Side:
    """A searchable folder and the model that made it."""

    name: str
    model: ServedModel
    index: Index


def open_models(
    settings: ServeConfig, workers: Workers, metrics: Metrics
) -> dict[str, ServedModel]:
    paths = settings.model or (BASE_FOLDER,)
    models = {}
    for name, path in zip(short_names(paths), paths, strict=True):
        encoder = open_for_command(path, precision=settings.precision)
        models[name] = ServedModel(name, encoder, workers, settings, metrics)
    return models


def open_sides(settings: ServeConfig, models: Iterable[ServedModel]) -> dict[str, Side]:
    """The folders in their order, each with its model; UserError where none of them made it."""
    by_fingerprint = {model.fingerprint: model for model in models}
    sides = {}
    for name, path in zip(short_names(settings.folders), settings.folders, strict=True):
        index = open_index(Path(path))
        model = by_fingerprint.get(split_fingerprint(index.info["model"])[0])
        if model is None:
            other = "another model than " + ", ".join(settings.model or (BASE_FOLDER,))
            raise UserError(f"{path} was encoded with {other}: name that with --model")
        sides[name] = Side(name, model, index)
    return sides


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, or all of it where two have the same; UserError for a repeat."""
    if len(set(paths)) < len(paths):
        repeated = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{repeated} stands twice")
    last = [Path(path).resolve().name or path for path in paths]
    return [name if last.count(name) == 1 else path for name, path in zip(last, paths, strict=True)]
