"""model_folder.py: both layouts read, the 3.x layout written, everything else refused by name."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minilm_retriever import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.model_folder import load_pretrained
from tests.texts import varied_texts


def edit(folder, name, **changes):
    path = folder / name
    value = json.loads(path.read_text("utf-8"))
    value.update(changes)
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}), "utf-8")


def test_the_written_folder_is_the_3x_layout(base, tmp_path):
    base.save(tmp_path / "m")
    assert sorted(
        str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*") if p.is_file()
    ) == [
        "1_Pooling/config.json",
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "manifest.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    assert [m["type"] for m in json.loads((tmp_path / "m/modules.json").read_text())] == [
        "sentence_transformers.models.Transformer",
        "sentence_transformers.models.Pooling",
        "sentence_transformers.models.Normalize",
    ]
    assert json.loads((tmp_path / "m/sentence_bert_config.json").read_text()) == {
        "max_seq_length": 256,
        "do_lower_case": False,
    }
    pooling = json.loads((tmp_path / "m/1_Pooling/config.json").read_text())
    assert [k for k, v in pooling.items() if v is True] == [
        "pooling_mode_mean_tokens",
        "include_prompt",
    ]
    tokenizer = json.loads((tmp_path / "m/tokenizer.json").read_text("utf-8"))
    assert tokenizer["truncation"] is None and tokenizer["padding"] is None
    assert json.loads((tmp_path / "m/tokenizer_config.json").read_text())["model_max_length"] == 256


def test_weights_written_are_the_weights_read(base, base_model, tmp_path):
    base.save(tmp_path / "m")
    ours, theirs = (
        load_file(tmp_path / "m/model.safetensors"),
        load_file(base_model / "model.safetensors"),
    )
    theirs.pop("embeddings.position_ids")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_written_files_honour_the_umask(tiny, tmp_path):
    before = os.umask(0o027)
    try:
        tiny.save(tmp_path / "m")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "m").rglob("*") if p.is_file()}
    assert modes == {0o640}


def test_the_6x_layout_opens_with_the_same_vectors(tiny, tiny_copy):
    """The files that sentence-transformers 6.2.0 writes, but for the weights."""
    kinds = {
        "": "base.modules.transformer.Transformer",
        "1_Pooling": "sentence_transformer.modules.pooling.Pooling",
        "2_Normalize": "base.modules.normalize.Normalize",
    }
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (tiny_copy / "modules.json").write_text(json.dumps(modules))
    (tiny_copy / "sentence_bert_config.json").write_text(
        json.dumps({"transformer_task": "feature-extraction"})
    )
    (tiny_copy / "1_Pooling/config.json").write_text(
        json.dumps({"embedding_dimension": 32, "pooling_mode": "mean"})
    )
    edit(tiny_copy, "tokenizer_config.json", model_max_length=48)
    opened = Encoder.from_pretrained(tiny_copy, device="cpu")
    assert opened.max_length == 48
    texts = [t for t in varied_texts(30) if len(t) < 20]
    assert np.array_equal(opened.encode(texts), tiny.encode(texts))


def test_a_plain_bert_folder_is_mean_pooled_and_not_normalised(tiny, tiny_copy):
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (tiny_copy / name).unlink()
    edit(tiny_copy, "tokenizer_config.json", model_max_length=10**30)
    opened = Encoder.from_pretrained(tiny_copy, device="cpu")
    assert opened.max_length == 64  # the positions there are
    np.testing.assert_array_equal(opened.encode("a cook"), tiny.encode("a cook", normalize=False))


def test_the_limit_is_the_folders(tiny_copy):
    edit(tiny_copy, "sentence_bert_config.json", max_seq_length=8)
    opened = Encoder.from_pretrained(tiny_copy, device="cpu")
    assert opened.model.tokenizer.tokenize(
        ["one two three four five six seven eight nine"]
    ).lengths.tolist() == [8]
    edit(tiny_copy, "sentence_bert_config.json", max_seq_length=9999)
    assert Encoder.from_pretrained(tiny_copy, device="cpu").max_length == 64


def test_cls_pooling_and_settings_survive_a_save(tiny_copy, tmp_path):
    edit(
        tiny_copy,
        "1_Pooling/config.json",
        pooling_mode_mean_tokens=False,
        pooling_mode_cls_token=True,
    )
    prompts = {"query": "search: "}
    edit(tiny_copy, "config_sentence_transformers.json", prompts=prompts, similarity_fn_name="dot")
    first = Encoder.from_pretrained(tiny_copy, device="cpu")
    first.save(tmp_path / "again")
    second = Encoder.from_pretrained(tmp_path / "again", device="cpu")
    assert second.model.settings == first.model.settings
    assert (second.model.settings.pooling, second.model.settings.similarity) == ("cls", "dot")
    assert second.model.fingerprint() == first.model.fingerprint()


def test_half_precision_weights_are_read_as_float32(tiny_copy):
    tensors = {n: t.half() for n, t in load_file(tiny_copy / "model.safetensors").items()}
    save_file(tensors, tiny_copy / "model.safetensors")
    opened = Encoder.from_pretrained(tiny_copy, device="cpu")
    assert opened.encode("a cook").dtype == np.float32
    assert next(opened.model.encoder.parameters()).dtype == torch.float32


def test_the_fingerprint_tells_models_apart(tiny, tiny_copy):
    same = load_pretrained(tiny_copy).fingerprint()
    assert same == tiny.model.fingerprint()
    edit(tiny_copy, "sentence_bert_config.json", max_seq_length=32)
    assert load_pretrained(tiny_copy).fingerprint() != same


def unlink(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def write(name, text):
    return lambda folder: (folder / name).write_bytes(
        text.encode() if isinstance(text, str) else text
    )


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


DENSE = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
]
CNN = {"idx": 2, "name": "2", "path": "2_CNN", "type": "sentence_transformers.models.CNN"}
OWN = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "modeling_own.Pooling"}
MAX = {"pooling_mode": "mean", "pooling_mode_median": True}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unlink("config.json"), r"config\.json: No such file"),
        (unlink("model.safetensors"), r"safetensors"),
        (unlink("tokenizer.json", "vocab.txt"), r"lacks tokenizer\.json"),
        (unlink("1_Pooling/config.json"), r"1_Pooling/config\.json: No such file"),
        (write("config.json", "{"), r"config\.json:1: not JSON"),
        (write("config.json", "[1]"), r"config\.json: holds a JSON list"),
        (write("config.json", b"\xff\xfe{}"), r"config\.json:?\d?: not JSON"),
        (write("config.json", "[" * 100_000), r"config\.json"),
        (write("tokenizer.json", "{}"), r"tokenizer\.json: not a tokenizer"),
        (
            write("modules.json", json.dumps(DENSE)),
            r"2_Dense/config\.json: No such file",
        ),
        (
            write("modules.json", json.dumps([*DENSE[:2], CNN])),
            r"modules\.json: module CNN is not implemented",
        ),
        (
            write("modules.json", json.dumps([DENSE[0], OWN])),
            r"modules\.json: module modeling_own.Pooling is not implemented",
        ),
        (
            write("modules.json", json.dumps([*DENSE[:2], {**DENSE[1], "idx": 2}])),
            r"modules\.json: modules Transformer, Pooling, Pooling; expected",
        ),
        (
            write("modules.json", json.dumps([DENSE[0], {**DENSE[1], "device": 1}])),
            r"modules\.json: device is not known here",
        ),
        (unlink("modules.json"), r"has config_sentence_transformers\.json but no modules\.json"),
        (
            write("modules.json", json.dumps(DENSE[:1])),
            r"modules\.json: modules Transformer; expected",
        ),
        (write("modules.json", '[{"type": 1}]'), r"modules\.json: not a list of modules"),
        (
            write("modules.json", json.dumps([DENSE[0], {**DENSE[1], "path": "../../etc"}])),
            r"'\.\./\.\./etc' leaves the model folder",
        ),
        (
            write("1_Pooling/config.json", '{"pooling_mode": "median"}'),
            r"pooling median; only mean or cls",
        ),
        (write("1_Pooling/config.json", json.dumps(MAX)), r"pooling_mode_median is not known here"),
        (write("1_Pooling/config.json", "{}"), r"pooling none; only mean or cls"),
        (write("sentence_bert_config.json", '{"max_seq_length": -1}'), r"a token limit of -1"),
        (
            write("config_sentence_transformers.json", '{"prompts": {"q": 1}}'),
            r"prompts is not an object of strings",
        ),
        (cut("model.safetensors", 1000), r"model\.safetensors"),
        (write("model.safetensors", b"\xff" * 64), r"model\.safetensors"),
        (lambda folder: edit(folder, "config.json", hidden_size=64), r"has shape|tensor"),
        (lambda folder: edit(folder, "config.json", vocab_size=10), r"token ids up to|has shape"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(tiny_copy, damage, message):
    damage(tiny_copy)
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(tiny_copy)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_under_our_manifest_is_noticed(tiny, tmp_path):
    tiny.save(tmp_path / "m")
    for name in ("model.safetensors", "tokenizer.json", "config.json", "vocab.txt"):
        data = bytearray((tmp_path / "m" / name).read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / "m" / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            load_pretrained(tmp_path / "m")
        data[len(data) // 2] ^= 1
        (tmp_path / "m" / name).write_bytes(data)
    (tmp_path / "m" / "README.md").write_text("people edit cards")
    load_pretrained(tmp_path / "m")


def test_a_file_or_nothing_is_no_model_folder(tmp_path):
    with pytest.raises(UserError, match="no such model folder|no folder"):
        load_pretrained(tmp_path / "absent")


def test_what_transformers_5_alone_knows_is_saved_under_its_old_name(tiny_copy, tmp_path):
    path = tiny_copy / "tokenizer_config.json"
    value = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**value, "tokenizer_class": "TokenizersBackend"}), "utf-8")
    Encoder.from_pretrained(tiny_copy).save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/tokenizer_config.json").read_text("utf-8"))
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
