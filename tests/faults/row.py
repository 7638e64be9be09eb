"""A row of the scorecard: faults of one kind, injected one by one, each with its outcome."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest


class Outcome(NamedTuple):
    """The outcome of one fault."""

    kind: Literal[
        "survived", "detected", "silent"
    ]  # silent: whatever is neither, be it wrong, a crash or a hang
    where: str = ""


class Skipped(Exception):
    """The machine cannot do this: a row that does not run is a row that fails."""


@dataclass
class Scene:
    """A place to work in, emptied from one fault to the next by whoever fills it."""

    place: Path
    seed: int = 0
    notes: dict[str, Any] = field(
        default_factory=dict
    )  # what else the row has to tell, for the scorecard

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def room(self, name: str) -> Path:
        """An empty folder of this name."""
        folder = self.place / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


Inject = Callable[[Scene, int], Iterator[Outcome]]
Mutation = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Row:
    """Faults of one kind. `inject` injects so many (or all there are) and yields an
    outcome for each."""

    name: str
    fault: str
    holds: str
    volume: int  # faults of the whole campaign; of a complete list, how many it has at least
    inject: Inject
    mutations: Mapping[str, Mutation]  # a check switched off: then the row must show silent ones
    sample: int  # of the sample in the tests
    mutated: int  # faults that each mutation is tried with
    minutes: float = 10.0  # after so many the row has failed; it takes a fraction of them


@dataclass
class Tally:
    """The outcomes of a row, counted."""

    counts: Counter[str] = field(default_factory=Counter)
    silent: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.counts[outcome.kind] += 1
        if outcome.kind == "silent":
            self.silent.append(outcome.where)

    @property
    def injected(self) -> int:
        return sum(self.counts.values())


def outcomes(row: Row, scene: Scene, count: int) -> Iterator[Outcome]:
    """What comes of `count` faults of a row, put in from an empty working directory: what it
    leaves there is silent."""
    elsewhere = scene.room("working-directory")
    with chdir(elsewhere):
        yield from row.inject(scene, count)
    if left := sorted(path.name for path in elsewhere.iterdir()):
        yield Outcome("silent", f"left in the working directory: {left[:3]!r}")


def judge(good: bool, kind: Literal["survived", "detected"], where: str) -> Outcome:
    """The outcome `kind`, or where it is not good a silent one."""
    return Outcome(kind, where) if good else Outcome("silent", where)


def of_text(outcome: str, name: str) -> Outcome:
    """The outcome that a text begins with, or where it is none a silent one of that name."""
    kind = outcome.partition(" ")[0]
    if kind == "survived" or kind == "detected":
        return Outcome(kind, outcome)
    return Outcome("silent", f"{name}: {outcome}")


@contextmanager
def patched(*changes: tuple[object, str, object]) -> Iterator[None]:
    """Attributes set for a while: the form that most mutations have."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, value in changes:
            patch.setattr(owner, name, value)
        yield


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def left_behind(folder: Path) -> list[str]:
    """Temporary names and locks that stand in a folder."""
    return [p.name for p in folder.rglob(".*")]


def one_line(text: str) -> bool:
    """Whether a command's stderr is one error line, and no traceback."""
    return text.startswith("error: ") and text.count("\n") == 1
