"""Weights read from any layout are those that transformers reads, or refused."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minilm_retriever.errors import UserError
from minilm_retriever.pretrained import hub, load_weights

REAL = Path(__file__).parents[1] / hub.BASE_FOLDER


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny random BERT as transformers saves it, and its state."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    model = BertModel(BertConfig(vocab_size=50, max_position_embeddings=16, **shape))
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    return folder, model.state_dict()


def variant(tiny, folder, tensors):
    """The tiny model's folder with other tensors in its model.safetensors."""
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny[0] / "config.json").read_bytes())
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def same(left, right):
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


def by_transformers(folder):
    """The weights as the route through transformers reads them, whatever their names."""
    tensors = load_weights.read_safetensors(folder)
    tensors.pop("embeddings.position_ids", None)
    return load_weights.through_transformers(folder, tensors)


def test_both_routes_are_bit_identical(tiny):
    folder, state = tiny
    assert same(load_weights.bert_tensors(folder), state)
    assert same(by_transformers(folder), state)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs `minilm-retriever fetch`")
def test_both_routes_are_bit_identical_on_the_real_weights():
    from transformers import BertModel

    direct = load_weights.bert_tensors(REAL)
    assert same(direct, by_transformers(REAL))
    assert same(direct, BertModel.from_pretrained(REAL).state_dict())
    assert len(direct) == 103 and sum(tensor.numel() for tensor in direct.values()) == 22_713_216


def test_position_ids_are_no_weight(tiny, tmp_path):
    old = tiny[1] | {"embeddings.position_ids": torch.arange(16)[None]}
    assert same(load_weights.bert_tensors(variant(tiny, tmp_path / "old", old)), tiny[1])


def old_names(tensors):
    return {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t
        for name, t in tensors.items()
    }


def prefixed(tensors):
    return {f"bert.{name}": t for name, t in tensors.items()}


@pytest.mark.parametrize("layout", ["prefixed", "gamma and beta", "both", "half", "sharded"])
def test_other_layouts_give_the_same_tensors(tiny, tmp_path, layout, capfd):
    folder, state = tiny
    if layout == "prefixed":
        folder = variant(tiny, tmp_path / "x", prefixed(state))
    elif layout == "gamma and beta":
        folder = variant(tiny, tmp_path / "x", old_names(state))
    elif layout == "both":
        folder = variant(tiny, tmp_path / "x", prefixed(old_names(state)))
    elif layout == "half":
        half = {name: tensor.half() for name, tensor in state.items()}
        state = {name: tensor.float() for name, tensor in half.items()}
        folder = variant(tiny, tmp_path / "x", prefixed(half))
    else:
        from transformers import BertModel

        BertModel.from_pretrained(folder).save_pretrained(tmp_path / "x", max_shard_size="20KB")
        folder = tmp_path / "x"
        assert len(list(folder.glob("*.safetensors"))) > 1
    capfd.readouterr()
    assert same(load_weights.bert_tensors(folder), state)
    assert capfd.readouterr() == ("", "")


def test_a_pooler_that_is_not_there_is_not_invented(tiny, tmp_path):
    rest = {name: tensor for name, tensor in tiny[1].items() if not name.startswith("pooler.")}
    head = {"cls.predictions.bias": torch.zeros(50)}
    folder = variant(tiny, tmp_path / "masked-lm", prefixed(rest) | head)
    assert same(load_weights.bert_tensors(folder), rest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.layer.1.output.dense.weight": None}, r"layer.1.output.dense.weight is missing"),
        ({"embeddings.LayerNorm.bias": None}, r"lacks 1 of BertModel's weights, the first is emb"),
        ({"pooler.dense.bias": torch.zeros(7)}, r"transformers cannot read a BertModel|has shape"),
        ({"encoder.layer.2.output.dense.bias": torch.zeros(32)}, r"layer.2.* is unexpected"),
        ({"pooler.dense.bias": torch.zeros(32, dtype=torch.int8)}, r"holds torch.int8"),
    ],
)
def test_weights_that_transformers_would_draw_or_leave_out_are_refused(
    tiny, tmp_path, changes, message
):
    tensors = {name: t for name, t in (tiny[1] | changes).items() if t is not None}
    folder = variant(tiny, tmp_path / "x", prefixed(tensors))
    with pytest.raises(UserError, match=message) as caught:
        load_weights.bert_tensors(folder)
    assert "\n" not in str(caught.value)


HOSTILE = {  # settings that transformers would act on
    "attn_implementation": "someone/kernel",
    "_attn_implementation": "someone/kernel",
    "num_labels": 7,
    "pad_token_id": 49,
    "dtype": "float8_e4m3fn",
    "torch_dtype": "nonsense",
    "id2label": {"0": "x"},
    "chunk_size_feed_forward": -3,
    "output_hidden_states": True,
}


def test_transformers_is_given_checked_numbers_and_nothing_else(tiny, tmp_path, monkeypatch):
    """Of config.json, adapters and index files in the folder it sees nothing."""
    import transformers

    folder = variant(tiny, tmp_path / "x", prefixed(tiny[1]))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | HOSTILE))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    seen = {}
    real = transformers.BertModel.from_pretrained

    def spy(place, **arguments):
        seen.update(arguments, place=place)
        return real(place, **arguments)

    monkeypatch.setattr(transformers.BertModel, "from_pretrained", spy)
    assert same(load_weights.bert_tensors(folder), tiny[1])
    assert seen["place"] is None and seen.keys() == {
        "place",
        "config",
        "state_dict",
        "output_loading_info",
    }
    numbers = {item.name for item in fields(load_weights.BertConfig)}
    ours = transformers.BertConfig(**{name: settings[name] for name in numbers if name in settings})
    assert seen["config"].to_dict() == ours.to_dict()


@pytest.mark.parametrize(
    "size", [{"num_hidden_layers": 100_000}, {"vocab_size": 2**30}, {"intermediate_size": 2**20}]
)
def test_no_more_memory_is_taken_than_the_files_hold(tiny, tmp_path, size, monkeypatch):
    import transformers

    folder = variant(tiny, tmp_path / "x", prefixed(tiny[1]))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | size))
    monkeypatch.setattr(transformers.BertModel, "from_pretrained", lambda *_, **__: pytest.fail())
    with pytest.raises(UserError, match="is missing|there are fewer"):
        load_weights.bert_tensors(folder)


@pytest.mark.parametrize(
    "path", ["../outside.safetensors", "/etc/passwd", "..\\outside.safetensors"]
)
def test_an_index_does_not_lead_out_of_the_folder(tiny, tmp_path, path):
    variant(tiny, tmp_path / "model", tiny[1])
    folder = tmp_path / "model"
    (folder / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = {"weight_map": dict.fromkeys(tiny[1], path)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="leaves the model folder"):
        load_weights.bert_tensors(folder)


def test_a_shard_that_is_missing_and_an_index_without_a_map_are_named(tiny, tmp_path):
    folder = variant(tiny, tmp_path / "x", tiny[1])
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(UserError, match="model-00001-of-00002.safetensors"):
        load_weights.bert_tensors(folder)
    for value in ({}, {"weight_map": [1]}, {"weight_map": {"a": 1}}):
        index.write_text(json.dumps(value))
        with pytest.raises(UserError, match=r"index.json: no weight_map"):
            load_weights.bert_tensors(folder)


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "git lfs"])
def test_a_damaged_file_is_named(tiny, tmp_path, damage):
    folder = variant(tiny, tmp_path / "x", tiny[1])
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:53aa5117\nsize 90868376\n"
    file.write_bytes(
        {"cut": whole[:-10], "empty": b"", "garbage": b"\xff" * 500, "git lfs": lfs}[damage]
    )
    with pytest.raises(
        UserError, match="git lfs pull" if damage == "git lfs" else "cut short"
    ) as caught:
        load_weights.bert_tensors(folder)
    assert str(file) in str(caught.value)


def test_a_cut_shard_is_named(tiny, tmp_path):
    from transformers import BertModel

    BertModel.from_pretrained(tiny[0]).save_pretrained(tmp_path / "x", max_shard_size="20KB")
    shard = max((tmp_path / "x").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=shard.name):
        load_weights.bert_tensors(tmp_path / "x")


def test_pickles_are_refused_with_the_command_that_converts_them(tiny, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny[0] / "config.json").read_bytes())
    torch.save(tiny[1], folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin, a pickle") as caught:
        load_weights.bert_tensors(folder)
    python, _, code = shlex.split(str(caught.value).split("`")[1])
    assert python == "python"
    exec(code)
    assert same(load_file(folder / "model.safetensors"), tiny[1])


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match="no model.safetensors"):
        load_weights.bert_tensors(tmp_path)
