"""What the documents promise: every flag that they name exists, every name of the published card is
answered."""

from __future__ import annotations

import ast
import json
import re

import pytest

from minilm_retriever.__main__ import parser
from tests.conftest import ROOT


def flags_of(command: str) -> set[str]:
    """The flags of one command."""
    subparsers = next(
        action for action in parser()._actions if action.choices and command in action.choices
    )
    return {
        flag for action in subparsers.choices[command]._actions for flag in action.option_strings
    }


def test_every_flag_that_hyperparameters_names_is_one_of_train():
    named = set(
        re.findall(r"`(--[a-z0-9-]+)", (ROOT / "docs/hyperparameters.md").read_text("utf-8"))
    )
    assert len(named) > 25
    assert named <= flags_of("train")


def test_every_default_in_hyperparameters_is_the_published_one():
    """A row that names a flag of the same meaning shows the value that the flag has by default."""
    from minilm_retriever.training.config import TrainConfig

    same = {"num_train_epochs": "epochs", "per_device_train_batch_size": "batch_size"}
    same |= {"label_smoothing_factor": "label_smoothing"}
    checked = 0
    for name, published, ours in re.findall(
        r"^\| `(\w+)` \| (.*?) \| `(--[a-z0-9-]+)` \|",
        (ROOT / "docs/hyperparameters.md").read_text("utf-8"),
        re.M,
    ):
        field = same.get(name, name)
        if ours == "--" + field.replace("_", "-") and published not in ("None", "-1", "no"):
            assert float(TrainConfig.__dataclass_fields__[field].default) == pytest.approx(
                {"True": 1.0, "False": 0.0}.get(published)
                if published in ("True", "False")
                else float(published)
            ), name
            checked += 1
    assert checked >= 10


def test_every_test_and_row_that_reliability_names_exists():
    from tests.faults.campaign import ROWS

    text = (ROOT / "docs/reliability.md").read_text("utf-8")
    named = re.findall(r"`(tests/(?:\w+/)?test_\w+\.py)((?:::\w+)+)`", text)
    assert len(named) > 20
    for file, path in named:
        node: ast.AST = ast.parse((ROOT / file).read_text("utf-8"))
        for name in path.split("::")[1:]:
            inside = {getattr(inner, "name", ""): inner for inner in ast.iter_child_nodes(node)}
            assert name in inside, f"{file}{path}"
            node = inside[name]
    held = set(re.findall(r"(?:rows?|and) ((?:[a-z]+-)+[a-z]+|places|fuzz)\b", text))
    assert {name for name in held if "-" in name} <= set(ROWS) and len(held) > 8


def test_the_table_of_the_campaign_is_the_scorecards():
    from tests.faults.scorecard import SCORECARD, table

    assert table(json.loads(SCORECARD.read_bytes())["rows"]) in (
        ROOT / "docs/reliability.md"
    ).read_text("utf-8")


def test_every_flag_that_evaluation_names_is_one_of_its_commands():
    named = set(re.findall(r"`(--[a-z0-9-]+)", (ROOT / "docs/evaluation.md").read_text("utf-8")))
    assert named <= flags_of("evaluate") | flags_of("paraphrases") | {
        "--peer"
    }  # of benchmarks/metrics.py
    assert {"--split", "--run", "--duplicates"} <= named


def test_every_flag_that_retrieval_names_is_one_of_its_commands():
    named = set(
        re.findall(r"`[^`\n]*?(--[a-z0-9-]+)", (ROOT / "docs/retrieval.md").read_text("utf-8"))
    )
    assert named <= flags_of("search") | flags_of("index") | {
        "--k",
        "--rounds",
    }  # of benchmarks/search.py
    assert {"--queries", "--rescore", "--effort", "--kind", "--delete"} <= named


def test_the_tree_in_the_readme_is_the_package():
    """Every module stands in it, in its room, with at most eight words."""
    text = (ROOT / "README.md").read_text("utf-8")
    lines = text.split("```\nminilm_retriever/\n")[1].split("```")[0].splitlines()
    room, named = "", set()
    for line in lines:
        name, _, words = line.strip().partition(" ")
        assert 1 <= len(words.split()) <= 8, line
        room = name if name.endswith("/") else room if line.startswith("    ") else ""
        named.add(room if name == room else f"{room}{name}")
    package = ROOT / "minilm_retriever"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert named == {name for name in modules if not name.endswith("/__init__.py")} | rooms
