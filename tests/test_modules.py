"""modules.py and pipeline.py: poolings in closed form, modules of one's own, what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minilm_retriever import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.modules import POOLINGS, pooling_of
from tests.folder_edits import edit, modules, plain, pooling, write

HIDDEN = torch.tensor([[[1.0, -2], [3, 4], [5, 0]], [[7, -1], [9, 9], [9, 9]]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
WITHOUT_PROMPT = torch.tensor(
    [[0, 1, 1], [0, 0, 0]]
)  # of the first row one token, of the second all
EXPECTED = {  # of the whole mask
    "cls": [[1, -2], [7, -1]],
    "max": [[5, 4], [7, -1]],
    "mean": [[3, 2 / 3], [7, -1]],
    "mean_sqrt_len_tokens": [[9 / 3**0.5, 2 / 3**0.5], [7, -1]],
    "weightedmean": [[22 / 6, 1], [7, -1]],
    "lasttoken": [[5, 0], [7, -1]],
}
BEHIND_A_PROMPT = {
    "cls": [3, 4],
    "max": [5, 4],
    "mean": [4, 2],
    "mean_sqrt_len_tokens": [8 / 2**0.5, 4 / 2**0.5],
    "weightedmean": [21 / 5, 8 / 5],  # positions count from the row's beginning
    "lasttoken": [5, 0],
}


@pytest.mark.parametrize("name", POOLINGS)
def test_a_pooling_in_closed_form(name):
    torch.testing.assert_close(POOLINGS[name](HIDDEN, MASK), torch.tensor(EXPECTED[name]).float())
    behind = POOLINGS[name](HIDDEN, WITHOUT_PROMPT)
    torch.testing.assert_close(behind[0], torch.tensor(BEHIND_A_PROMPT[name]).float())
    if name not in ("cls", "max"):
        assert behind[1].tolist() == [0, 0], "a row without tokens"
    assert POOLINGS[name](HIDDEN.half(), MASK).dtype == torch.float32


def test_poolings_side_by_side():
    both = pooling_of(["max", "cls"])(HIDDEN, MASK)
    assert both.tolist() == [[5, 4, 1, -2], [7, -1, 7, -1]]


def test_a_head_is_part_of_the_model(tiny_copy, tmp_path):
    """Its weights are trained, saved and part of the fingerprint; its dropout is for training."""
    modules("Dense", "Dropout", "Normalize")(tiny_copy)
    opened = Encoder.from_pretrained(tiny_copy, device="cpu")
    assert opened.dimension == 24 and "head.0.linear.weight" in opened.model.encoder.state_dict()
    before, fingerprint = opened.encode("a night"), opened.model.fingerprint()
    ids, mask = opened.model.tokenizer.tokenize(["a night"]).batch([0])
    opened.model.encoder.train()(ids, mask).sum().backward()
    weight = opened.model.encoder.head[0].linear.weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    with torch.no_grad():
        weight += 0.1
    assert opened.model.fingerprint() != fingerprint
    opened.save(tmp_path / "saved")
    again = Encoder.from_pretrained(tmp_path / "saved", device="cpu")
    np.testing.assert_array_equal(again.encode("a night"), opened.encode("a night"))
    assert np.abs(again.encode("a night") - before).max() > 1e-3


def dense_settings(**changes):
    def make(folder):
        modules("Dense")(folder)
        edit(folder, "2_Dense/config.json", **changes)

    return make


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (dense_settings(in_features=33), "in_features is 33, what comes before gives 32"),
        (dense_settings(out_features=0), "out_features is 0, out of range"),
        (dense_settings(out_features=25), r"tensor linear.weight has shape \(24, 32\), not"),
        (dense_settings(bias=False), "tensor linear.bias is unexpected"),
        (dense_settings(activation_function="own.Act"), "'own.Act' is none of torch.nn's Ident"),
        (dense_settings(activation_function="torch.nn.Bilinear"), "is none of torch.nn's"),
        (dense_settings(module_input_name="token_embeddings"), "module_input_name is 'token_emb"),
        (dense_settings(scale=2), "scale is not known here"),
        (modules("LayerNorm", width=31), "dimension is 31, not 32"),
        (lambda f: [modules("Dropout")(f), edit(f, "2_Dropout/config.json", dropout=2)], "dropout"),
        (lambda f: edit(f, "2_Normalize/config.json", module_input_name="x"), "module_input_name"),
    ],
)
def test_a_module_that_is_malformed_or_not_implemented_is_named(tiny_copy, damage, message):
    (tiny_copy / "2_Normalize").mkdir()
    damage(tiny_copy)
    with pytest.raises(UserError, match=message) as caught:
        Encoder.from_pretrained(tiny_copy, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_head_in_a_pickle_is_refused_with_the_command_that_converts_it(tiny_copy):
    modules("Dense")(tiny_copy)
    folder = tiny_copy / "2_Dense"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin, a pickle.*weights_only=True"):
        Encoder.from_pretrained(tiny_copy, device="cpu")


def test_a_folder_that_lost_its_list_of_modules(tiny_copy):
    """What is left says mean pooling, as a plain BertModel has: opened. Else refused."""
    pooling_file = tiny_copy / "1_Pooling"
    shutil.copytree(pooling_file, tiny_copy.parent / "kept")
    plain(tiny_copy)
    shutil.copytree(tiny_copy.parent / "kept", pooling_file)
    assert Encoder.from_pretrained(tiny_copy).model.settings.normalize is False
    pooling("cls")(tiny_copy)
    with pytest.raises(UserError, match=r"has 1_Pooling but no modules\.json"):
        Encoder.from_pretrained(tiny_copy)
    pooling("mean")(tiny_copy)
    (tiny_copy / "2_Normalize").mkdir()
    with pytest.raises(UserError, match=r"has 2_Normalize but no modules\.json"):
        Encoder.from_pretrained(tiny_copy)


@pytest.mark.parametrize(
    "architecture",
    ["BertForSequenceClassification", "BertLMHeadModel", "BertForQuestionAnswering", "Unknown"],
)
def test_a_model_of_another_task_is_no_encoder(tiny_copy, architecture):
    plain(tiny_copy)
    edit(tiny_copy, "config.json", architectures=[architecture])
    with pytest.raises(UserError, match=rf"architectures is \['{architecture}'\], a model of"):
        Encoder.from_pretrained(tiny_copy)


def test_of_a_language_model_it_is_said_that_its_head_is_left_out(tiny_copy):
    plain(tiny_copy)
    edit(tiny_copy, "config.json", architectures=["BertForMaskedLM"])
    with pytest.warns(UserWarning, match="is a language model"):
        Encoder.from_pretrained(tiny_copy)


@pytest.mark.parametrize("kind", ["CrossEncoder", "SparseEncoder", "MultiVectorEncoder"])
def test_other_models_of_sentence_transformers_are_refused_by_name(tiny_copy, kind):
    edit(tiny_copy, "config_sentence_transformers.json", model_type=kind)
    with pytest.raises(UserError, match=f"model_type is '{kind}'"):
        Encoder.from_pretrained(tiny_copy)


def test_weights_that_are_not_finite_are_named_in_a_head_too(tiny_copy):
    modules("LayerNorm")(tiny_copy)
    tensors = {"norm.weight": torch.full((32,), torch.inf), "norm.bias": torch.zeros(32)}
    save_file(tensors, tiny_copy / "2_LayerNorm/model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"2_LayerNorm: tensor norm.weight holds a value that is"):
        Encoder.from_pretrained(tiny_copy)


def test_the_order_of_a_concatenation_survives_a_save(tiny_copy, tmp_path):
    write(tiny_copy, "1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]})
    opened = Encoder.from_pretrained(tiny_copy, device="cpu")
    opened.save(tmp_path / "saved")
    value = json.loads((tmp_path / "saved/1_Pooling/config.json").read_text())
    assert value["pooling_mode"] == ["mean", "cls"]
    assert Encoder.from_pretrained(tmp_path / "saved").model.settings.pooling == "mean+cls"
