"""adapters.py: W + scale B A in closed form; what an adapter may not do is refused by name.

Vectors against peft's own: test_variations.py."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minilm_retriever import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.adapters import merge, read_adapter
from tests.folder_edits import adapter, edit

QUERY = "encoder.layer.0.attention.self.query"


def test_a_merged_weight_in_closed_form(tiny_copy):
    adapter("query", rank=4, alpha_pattern={"layer.1.attention.self.query": 12})(tiny_copy)
    base = load_file(tiny_copy / "model.safetensors")
    factors = load_file(tiny_copy / "adapter_model.safetensors")
    for rslora in (False, True):
        edit(tiny_copy, "adapter_config.json", use_rslora=rslora)
        merged = merge(tiny_copy, read_adapter(tiny_copy), base)
        for layer, alpha in ((0, 6), (1, 12)):
            name = QUERY.replace("layer.0", f"layer.{layer}")
            a, b = (
                factors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB"
            )
            scale = alpha / (math.sqrt(4) if rslora else 4)
            expected = (base[f"{name}.weight"].double() + scale * (b @ a)).float()
            assert torch.equal(merged[f"{name}.weight"], expected)
        changed = {name for name in base if not torch.equal(base[name], merged[name])}
        assert changed == {f"encoder.layer.{n}.attention.self.query.weight" for n in (0, 1)}


def test_tensors_that_were_trained_whole_take_the_bases_place(tiny_copy):
    adapter("query")(tiny_copy)
    factors = load_file(tiny_copy / "adapter_model.safetensors")
    bias = torch.arange(32.0)
    factors["base_model.model.embeddings.LayerNorm.bias"] = bias
    save_file(factors, tiny_copy / "adapter_model.safetensors", {"format": "pt"})
    base = load_file(tiny_copy / "model.safetensors")
    merged = merge(tiny_copy, read_adapter(tiny_copy), base)
    assert torch.equal(merged["embeddings.LayerNorm.bias"], bias)


def test_an_adapter_is_saved_merged(tiny_copy, tmp_path):
    adapter("query", "value")(tiny_copy)
    opened = Encoder.from_pretrained(tiny_copy, device="cpu")
    opened.save(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("adapter*"))
    again = Encoder.from_pretrained(tmp_path / "saved", device="cpu")
    np.testing.assert_array_equal(again.encode("a night"), opened.encode("a night"))


def test_half_precision_factors_are_merged_in_float32(tiny_copy):
    adapter("query")(tiny_copy)
    factors = load_file(tiny_copy / "adapter_model.safetensors")
    base = load_file(tiny_copy / "model.safetensors")
    rounded = {name: tensor.half() for name, tensor in factors.items()}
    save_file({n: t.float() for n, t in rounded.items()}, tiny_copy / "adapter_model.safetensors")
    expected = merge(tiny_copy, read_adapter(tiny_copy), base)
    save_file(rounded, tiny_copy / "adapter_model.safetensors", {"format": "pt"})
    merged = merge(tiny_copy, read_adapter(tiny_copy), base)
    assert all(torch.equal(merged[name], expected[name]) for name in base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": ...}, "peft_type is 'no adapter'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices is \[1\]"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is"),
        ({"a_new_idea": 1}, "a_new_idea is not known here"),
        ({"r": 8}, "has no lora_A and lora_B of rank 8"),
        ({"r": "4"}, "r is '4', which is not a float"),
        ({"lora_alpha": float("nan")}, "NaN is no finite number"),
        ({"rank_pattern": {"query": 3}}, "has no lora_A and lora_B of rank 3"),
        ({"alpha_pattern": {"(a+)+$": 3}}, r"alpha_pattern has '\(a\+\)\+\$', not a layer's name"),
        ({"rank_pattern": [1]}, "of another type|not an object"),
    ],
)
def test_what_an_adapter_may_not_do_is_refused_by_name(tiny_copy, changes, message):
    adapter("query")(tiny_copy)
    edit(tiny_copy, "adapter_config.json", **changes)
    with pytest.raises(UserError, match=message) as caught:
        Encoder.from_pretrained(tiny_copy, device="cpu")
    assert "\n" not in str(caught.value) and "adapter" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("base_model.model.bert.pooler.dense.lora_A.weight", torch.ones(4, 32), "belongs to no"),
        ("base_model.model.nothing.weight", torch.ones(4), "belongs to no weight of the model"),
        ("base_model.model.pooler.dense.bias", torch.ones(4), "belongs to no weight of the model"),
        (f"base_model.model.{QUERY}.lora_B.weight", torch.ones(31, 4), r"is not \(32, 32\)"),
        (f"base_model.model.{QUERY}.lora_B.weight", torch.ones(32, 5), r"is not \(32, 32\)"),
        (f"base_model.model.{QUERY}.lora_magnitude_vector.weight", torch.ones(32), "belongs to no"),
        ("base_model.model.embeddings.LayerNorm.lora_A.weight", torch.ones(4, 32), "belongs to no"),
    ],
)
def test_a_tensor_that_belongs_nowhere_is_named(tiny_copy, name, tensor, message):
    adapter("query")(tiny_copy)
    factors = load_file(tiny_copy / "adapter_model.safetensors") | {name: tensor}
    save_file(factors, tiny_copy / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=message):
        Encoder.from_pretrained(tiny_copy, device="cpu")


def test_an_adapter_without_its_base_its_weights_or_its_settings(tiny_copy):
    adapter("query", beside=False)(tiny_copy)
    base = tiny_copy.with_name(f"{tiny_copy.name}-base")
    shutil.rmtree(base)
    with pytest.raises(
        UserError, match=f"holds an adapter of {base}, not whole weights: no folder"
    ):
        Encoder.from_pretrained(tiny_copy)
    edit(tiny_copy, "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(UserError, match="holds an adapter, not whole weights, and does not say"):
        Encoder.from_pretrained(tiny_copy)
    (tiny_copy / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="an adapter .* without its adapter_config.json"):
        Encoder.from_pretrained(tiny_copy)


def test_an_adapter_in_a_pickle_is_refused(tiny_copy):
    adapter("query")(tiny_copy)
    (tiny_copy / "adapter_model.safetensors").rename(tiny_copy / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model.bin"):
        Encoder.from_pretrained(tiny_copy)
