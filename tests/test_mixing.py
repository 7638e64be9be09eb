"""pretrained/mixing.py: both ends to the bit, the line between them, and what cannot be mixed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minilm_retriever import Encoder
from minilm_retriever.__main__ import main
from minilm_retriever.pretrained.mixing import mix_weights
from tests.folder_edits import modules
from tests.tiny import make_tiny_bert


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two folders of one architecture."""
    place = tmp_path_factory.mktemp("models")
    return [str(make_tiny_bert(place / f"model-{seed}", seed=seed)) for seed in (1, 2)]


def mixed(models, share, out):
    assert main(["mix", *map(str, models), "--share", str(share), "--out", str(out)]) == 0
    return load_file(out / "model.safetensors")


def hard_numbers():
    """Values whose bits a sum would change: signed zeros, denormals, the largest, far apart."""
    values = [0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 1.0, 1e-20, np.pi]
    return torch.tensor(values), torch.tensor(values[::-1])


@pytest.mark.parametrize("share", [0, 1])
def test_an_end_is_that_model_to_the_bit(share, models, tmp_path):
    weights = mixed(models, share, tmp_path / "out")
    expected = load_file(f"{models[share]}/model.safetensors")
    for name, tensor in weights.items():
        assert tensor.numpy().tobytes() == expected[name].numpy().tobytes(), name
    base, tuned = hard_numbers()
    end = mix_weights({"x": base}, {"x": tuned}, share)["x"]
    assert end.numpy().tobytes() == (base, tuned)[share].numpy().tobytes()


@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 0.75, 0.999])
def test_between_them_every_weight_is_on_the_line(share, models, tmp_path):
    weights = mixed(models, share, tmp_path / "out")
    base, tuned = (load_file(f"{model}/model.safetensors") for model in models)
    for name, tensor in weights.items():
        expected = base[name].double() + share * (tuned[name].double() - base[name].double())
        assert torch.allclose(tensor.double(), expected, rtol=0, atol=1e-7), name
    card = (tmp_path / "out/README.md").read_text("utf-8")
    assert f"model-1 + {share} x (model-2 - model-1)" in card
    assert Encoder.from_pretrained(tmp_path / "out").encode("a nurse").shape == (32,)


def changed(folder, to, file, **values):
    """A copy of a model's folder with other values in a JSON file."""
    shutil.copytree(folder, to)
    path = to / file
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")
    return to


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"num_attention_heads": 2}),
        ("config.json", {"hidden_act": "relu"}),
        ("config.json", {"layer_norm_eps": 1e-5}),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": 0}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
    ],
)
def test_models_whose_weights_mean_other_things_are_refused(file, values, models, tmp_path, capsys):
    if "pooling_mode_mean_tokens" in values:
        values = {**values, "pooling_mode_mean_tokens": False}
    other = changed(models[1], tmp_path / "other", file, **values)
    assert main(["mix", models[0], str(other), "--out", str(tmp_path / "out")]) == 2
    assert "cannot be mixed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_follows_the_pooling_is_mixed_too(models, tmp_path, capsys):
    ends = [shutil.copytree(model, tmp_path / Path(model).name) for model in models]
    for number, end in enumerate(ends):
        modules("Dense")(end)
        dense = end / "2_Dense/model.safetensors"
        save_file({n: t + number for n, t in load_file(dense).items()}, dense)
    mixed(ends, 0.25, tmp_path / "out")
    base, out = (
        load_file(end / "2_Dense/model.safetensors") for end in (ends[0], tmp_path / "out")
    )
    assert all(torch.allclose(out[name], base[name] + 0.25, atol=1e-6) for name in base)
    assert main(["mix", models[0], str(ends[1]), "--out", str(tmp_path / "no")]) == 2
    assert "cannot be mixed: " in capsys.readouterr().err


def test_two_tokenizers_are_refused(models, tmp_path, capsys):
    other = shutil.copytree(models[1], tmp_path / "other")
    for name in ("tokenizer.json", "vocab.txt"):
        text = (other / name).read_text("utf-8")
        for old, new in (("nurse", "\0"), ("river", "nurse"), ("\0", "river")):
            text = re.sub(rf"(?<![a-z]){old}(?![a-z])", new, text)
        (other / name).write_text(text, "utf-8")
    assert main(["mix", models[0], str(other), "--out", str(tmp_path / "out")]) == 2
    assert "two tokenizers" in capsys.readouterr().err


def test_another_size_is_refused(models, tmp_path, capsys):
    other = changed(models[1], tmp_path / "other", "config.json", num_hidden_layers=1)
    weights = load_file(other / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1." not in name}
    save_file(kept, other / "model.safetensors", metadata={"format": "pt"})
    assert main(["mix", models[0], str(other), "--out", str(tmp_path / "out")]) == 2
    assert "num_hidden_layers 2 and 1" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["-0.1", "1.01", "nan", "inf"])
def test_a_share_outside_the_line_is_one_line(share, models, tmp_path, capsys):
    assert main(["mix", *models, f"--share={share}", "--out", str(tmp_path / "out")]) == 2
    assert "--share" in capsys.readouterr().err


def test_dropout_prompts_and_limits_may_differ(models, tmp_path):
    other = changed(models[1], tmp_path / "other", "config.json", hidden_dropout_prob=0.0)
    other = changed(other, tmp_path / "b", "sentence_bert_config.json", max_seq_length=32)
    mixed([models[0], str(other)], 0.5, tmp_path / "out")
    assert Encoder.from_pretrained(tmp_path / "out").max_length == 32
    mixed([models[0], str(other)], 0, tmp_path / "base")
    assert Encoder.from_pretrained(tmp_path / "base").max_length == 64


def test_no_input_is_replaced(models, tmp_path, capsys):
    for out in models:
        assert main(["mix", *models, "--out", out, "--overwrite"]) == 2
    assert "is read: choose another" in capsys.readouterr().err
