"""What a run publishes beside its weights: a card and a report of what ran, and nothing that nobody
stated."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.run import train


def write_pairs(path, rows):
    pairs = [{"query": f"who mends clock {i}?", "document": f"a nurse, {i}"} for i in range(rows)]
    lines = [json.dumps(pair) for pair in pairs]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """A finished run; its folders have telling names."""
    place = tmp_path_factory.mktemp("private-place")
    config = TrainConfig(
        train=(write_pairs(place / "pairs.jsonl", 20),),
        eval=write_pairs(place / "held-out.jsonl", 10),
        model=str(tiny_folder),
        guide=str(tiny_folder),
        out=str(place / "my-model"),
        batch_size=8,
        max_steps=3,
        device="cpu",
        adam_beta2=0.98,
    )
    assert train(config) == 0
    return config


@pytest.fixture(scope="module")
def card(finished):
    return (Path(finished.out) / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", ["README.md", "report.html"])
def test_no_local_path_is_published(finished, name):
    text = (Path(finished.out) / name).read_text("utf-8")
    assert "private-place" not in text and str(Path(finished.model).parent) not in text
    for shown in ("pairs.jsonl", "held-out.jsonl", "my-model", Path(finished.model).name):
        assert shown in text, shown


def test_nothing_is_claimed_that_nobody_stated(card):
    data = ModelCard(card).data.to_dict()
    assert not {"language", "license", "base_model"} & set(data)
    assert "apache" not in card and "Language:" not in card and "Intended use" not in card


def test_the_usage_example_prints_what_it_says(finished, card, capsys, monkeypatch):
    (example,) = re.findall(r"```python\n(from minilm_retriever.*?)\n```", card, re.S)
    monkeypatch.chdir(Path(finished.out).parent)
    exec(example, {})
    said = [line[2:] for line in example.splitlines() if line.startswith("# ")]
    assert capsys.readouterr().out.splitlines() == said and len(said) == 5


def test_the_card_has_what_ran(card):
    changed, every = card.split("#### All hyperparameters")
    assert "- <code>adam_beta2</code>: 0.98" in changed
    for setting in ("optimizer</code>: AdamW", "lr_schedule</code>: linear", "seed</code>: 42"):
        assert setting in every and setting not in changed
    assert '"guide": ' in card and "3 steps in" in card
    results = {
        result.metric_type: result.metric_value for result in ModelCard(card).data.eval_results
    }
    assert set(results) >= {"mrr@10", "accuracy@1", "loss"}


def test_training_json_has_the_settings_as_they_were(finished):
    settings = json.loads((Path(finished.out) / "training.json").read_text("utf-8"))["settings"]
    assert settings["train"] == list(finished.train) and settings["max_length"] == 64
    assert not {"out", "language", "license", "optimizer"} & set(settings)
