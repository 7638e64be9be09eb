"""docs/from_sentence_transformers.md: our half of each pair gives what theirs gave, recorded with
6.2.0."""

from __future__ import annotations

import json

import pytest

import minilm_retriever
from tests.reference.migration import BLOCK, KNOWN, PAGE, blocks, difference, results


def test_pairs_stand_side_by_side():
    sides = [side for side, _ in BLOCK.findall(PAGE.read_text("utf-8"))]
    assert sides == ["before", "after"] * 10


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ours_gives_what_theirs_gave(base_model):
    known = json.loads(KNOWN.read_text("ascii"))[:-1]
    made = results(blocks("after")[:-1], base_model.resolve())
    apart = [difference(one, other) for one, other in zip(made, known, strict=True)]
    assert max(apart) <= 1e-5, apart


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ours_trains(tiny_folder):
    """The last pair; the tiny model for speed: it leaves a shape."""
    opened, *_, training = blocks("after")
    assert "train(pairs" in training
    assert results([opened, training], tiny_folder)[1] == [3, 32]


def test_the_table_names_what_is_there():
    """Names of ours in the second column are public, or commands."""
    from tests.test_interface import interface

    names = interface()
    rows = [line.split(" | ") for line in PAGE.read_text("utf-8").splitlines() if line[:3] == "| `"]
    assert len(rows) > 15
    known = {*names["commands"], *names["Encoder"], *minilm_retriever.__all__}
    for row in rows:
        import re

        for command in re.findall(r"`minilm-retriever (\w+)", row[1]):
            assert command in names["commands"], row
        for attribute in re.findall(r"`encoder\.(\w+)", row[1]):
            assert attribute in known, row
