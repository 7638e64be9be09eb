"""A sample of each row of `make faults`: nothing silent; and with a check switched off, the row
shows it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.faults.campaign import EXHAUSTIVE, FAMILIES, ROWS, failures, mutated
from tests.faults.row import Row, Scene, Skipped, Tally, judge, outcomes
from tests.faults.scorecard import SCORECARD

# The fuzz targets start an interpreter each; tests/test_rows.py has their properties, with
# hypothesis.
SAMPLED = [name for name in ROWS if ROWS[name].sample]
# Slow ones are left to the campaign: real processes, killed a dozen times.
LEFT_TO_THE_CAMPAIGN = {
    "sigkill-train",
    "sigkill-encode",
    "full-file-system",
    "places",
    "fuzz",
    "hostile-folders",
}
LEFT_TO_THE_CAMPAIGN |= {"damage-unfinished", "orphans", "streams", "not-ours", "leftovers"}
LEFT_TO_THE_CAMPAIGN |= {"hostile-configs", "hostile-tokenizers", "screens"}
MUTATIONS = [(n, m) for n in SAMPLED if n not in LEFT_TO_THE_CAMPAIGN for m in ROWS[n].mutations]


@pytest.fixture()
def place() -> Iterator[Path]:
    """In memory where that is possible: thousands of files come and go."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("name", SAMPLED)
def test_nothing_is_silent(place, name):
    row, tally = ROWS[name], Tally()
    try:
        for outcome in outcomes(row, Scene(place), row.sample):
            tally.add(outcome)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert not tally.silent
    assert tally.injected >= min(row.sample, row.volume)


@pytest.mark.parametrize(("name", "mutation"), MUTATIONS)
def test_a_check_that_is_switched_off_shows(place, name, mutation):
    try:
        found = mutated(ROWS[name], mutation, place / "mutated", seed=0)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert found["caught"] > 0, found


def test_every_row_has_a_mutation_and_every_family_a_row():
    assert all(row.mutations and row.volume > 0 for row in ROWS.values())
    assert all(family.ROWS for family in FAMILIES) and set(ROWS) >= EXHAUSTIVE


def test_a_row_that_is_silent_skipped_short_or_not_noticed_fails():
    good = {
        "skipped": None,
        "injected": 5,
        "volume": 5,
        "silent": 0,
        "mutations": {"m": {"injected": 3, "caught": 1}},
    }
    assert failures("row", good) == []
    assert failures("row", {**good, "skipped": "no root"}) == ["row: SKIPPED: no root"]
    assert failures("row", {**good, "injected": 4}) == ["row: 4 injected, 5 wanted"]
    assert failures("row", {**good, "silent": 1, "examples": ["wrong"]}) == ["row: SILENT: wrong"]
    assert (
        "was not noticed"
        in failures("row", {**good, "mutations": {"m": {"injected": 3, "caught": 0}}})[0]
    )


def test_a_row_that_leaves_something_in_the_working_directory_fails(tmp_path):
    def inject(scene, count):
        Path("left").touch()
        yield judge(True, "survived", "")

    row = Row("r", "a fault", "a promise", 1, inject, {}, sample=1, mutated=1)
    kinds = [outcome.kind for outcome in outcomes(row, Scene(tmp_path), 1)]
    assert kinds == ["survived", "silent"] and not Path("left").exists()


def test_the_scorecard_is_of_the_whole_campaign_and_nothing_in_it_is_silent():
    card = json.loads(SCORECARD.read_bytes())
    assert list(card["rows"]) == list(ROWS) and card["share"] == 1
    assert len(card["commit"]) == 40 and card["seconds"] < 3600
    for name, found in card["rows"].items():
        assert failures(name, found) == []
        assert found["volume"] == ROWS[name].volume and set(found["mutations"]) == set(
            ROWS[name].mutations
        )
    plain = card["rows"]["sigkill-train"]["notes"]["the same kills against torch.save in place"]
    assert plain["killed"] == 200 and plain["unusable"] > 20
