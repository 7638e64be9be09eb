"""What people import: encoder/."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from minilm_retriever import Encoder
from minilm_retriever.encoder import command
from minilm_retriever.errors import UserError
from tests.conftest import REFERENCE
from tests.texts import hostile_texts, varied_texts


def test_embeddings_equal_sentence_transformers(base, reference_texts, reference_embeddings):
    ours = base.encode(reference_texts)
    assert ours.shape == (264, 384) and ours.dtype == np.float32
    assert np.abs(ours - reference_embeddings).max() <= 1e-6


def published(kind):
    return json.loads((REFERENCE / "published.json").read_text("utf-8"))[kind]


def computed(base, entry):
    """Our values for a published entry, pooled as it says."""
    pooling = entry["pooling"].split(" ")[0]
    if pooling == "mean":
        vector = base.encode(entry["text"], normalize=bool(entry["normalized"]))
        return (
            vector / np.linalg.norm(vector[:128])
            if "first 128" in str(entry["normalized"])
            else vector
        )
    with torch.inference_mode():
        states = base.model.encoder.bert(
            *base.model.tokenizer.tokenize([entry["text"]]).batch([0])
        )[0].numpy()
    return states[0] if pooling == "cls" else states


@pytest.mark.parametrize("entry", published("embeddings"), ids=lambda entry: entry["id"])
def test_published_embeddings_of_other_projects(base, entry):
    theirs = np.asarray(entry["values"] if "values" in entry else entry["first_dims"])
    ours = computed(base, entry)[..., : theirs.shape[-1]]
    tolerance = entry["tolerance"]
    cosine = (
        (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    )
    assert (cosine > tolerance.get("cosine_gt", tolerance.get("cosine_gt_per_token", 0.999))).all()
    assert np.abs(ours - theirs).max() <= tolerance.get("abs", np.inf)


@pytest.mark.parametrize("entry", published("similarities"), ids=lambda entry: entry["id"])
def test_published_similarities_of_other_projects(base, entry):
    settings = replace(
        base.model.settings, similarity="manhattan" if "manhattan" in entry["metric"] else "cosine"
    )
    encoder = Encoder(replace(base.model, settings=settings), device="cpu")
    ours = encoder.similarity(
        encoder.encode(entry["sentences1"]), encoder.encode(entry["sentences2"])
    )
    np.testing.assert_allclose(ours, np.asarray(entry["matrix"]), atol=entry["tolerance"], rtol=0)


def test_order_is_kept_and_batches_change_nothing(base):
    texts = varied_texts(60, seed=3)
    whole = base.encode(texts)
    alone = np.stack([base.encode(text) for text in texts])
    assert np.abs(whole - alone).max() <= 1e-6
    assert np.abs(whole - base.encode(texts, batch_size=7)).max() <= 1e-6
    shuffled = np.random.default_rng(0).permutation(len(texts))
    assert np.abs(whole[shuffled] - base.encode([texts[i] for i in shuffled])).max() <= 1e-6


def test_repeated_texts_are_computed_once_and_get_the_same_bytes(tiny, monkeypatch):
    rows = []
    forward = tiny.model.encoder.forward
    monkeypatch.setattr(
        tiny.model.encoder,
        "forward",
        lambda ids, mask, **k: rows.append(len(ids)) or forward(ids, mask, **k),
    )
    vectors = tiny.encode(["cook", "nurse", "cook", "cook"])
    assert sum(rows) == 2
    assert (vectors[0] == vectors[2]).all() and (vectors[0] == vectors[3]).all()


def test_shapes(tiny):
    assert tiny.encode([]).shape == (0, 32)
    assert tiny.encode("one").shape == (32,)
    assert tiny.encode(["one"]).shape == (1, 32)
    assert tiny.encode(("a", "b")).shape == (2, 32)
    assert tiny.encode([""]).shape == (1, 32)
    as_torch = tiny.encode(["one", "two"], convert_to="torch")
    assert isinstance(as_torch, torch.Tensor) and as_torch.shape == (2, 32)
    assert tiny.dimension == 32 and tiny.max_length == 64


def test_rows_are_unit_unless_asked_otherwise(tiny):
    texts = varied_texts(40)
    np.testing.assert_allclose(np.linalg.norm(tiny.encode(texts), axis=1), 1, atol=1e-5)
    raw = tiny.encode(texts, normalize=False)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.1
    np.testing.assert_allclose(
        raw / np.linalg.norm(raw, axis=1, keepdims=True), tiny.encode(texts), atol=1e-6
    )


def test_a_stream_yields_ids_and_vectors_a_shard_at_a_time(tiny):
    texts = [f"text {n % 4}" for n in range(10)]
    taken = []

    def one_by_one():
        for text in texts:
            taken.append(text)
            yield text

    stream = tiny.encode_stream(one_by_one(), shard_size=4)
    ids, vectors = next(stream)
    assert ids == ["0", "1", "2", "3"] and len(taken) == 4
    rest = list(stream)
    assert [i for part, _ in rest for i in part] == ["4", "5", "6", "7", "8", "9"]
    together = np.concatenate([vectors, *(part for _, part in rest)])
    assert np.abs(together - tiny.encode(texts)).max() <= 1e-6
    assert [ids for ids, _ in tiny.encode_stream([("a", "one"), ("b", "two", "in.txt:2")])] == [
        ["a", "b"]
    ]
    assert list(tiny.encode_stream([])) == []


def test_hostile_strings_give_finite_unit_vectors_or_a_named_error(tiny):
    texts = hostile_texts(2000)
    good = [t for t in texts if not any(0xD800 <= ord(c) < 0xE000 for c in t)]
    assert len(good) < len(texts)
    vectors = tiny.encode(good)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for index, text in enumerate(texts):
        if any(0xD800 <= ord(c) < 0xE000 for c in text):
            with pytest.raises(ValueError, match=rf"^text {index} holds a lone surrogate"):
                tiny.encode(texts)
            break


def test_the_index_in_an_error_is_the_callers_though_repeats_are_folded(tiny):
    with pytest.raises(ValueError, match="^text 3 is of type int"):
        tiny.encode(["a", "a", "a", 5])


def test_bad_arguments_are_one_line(tiny):
    with pytest.raises(UserError, match="batch_size is 0"):
        tiny.encode(["a"], batch_size=0)
    with pytest.raises(UserError, match="convert_to is 'list'"):
        tiny.encode(["a"], convert_to="list")


def test_similarity_is_cosine_and_pairwise_its_diagonal(tiny):
    a, b = (
        tiny.encode(["a", "b", "c"], normalize=False),
        tiny.encode(["d", "e", "f"], normalize=False),
    )
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(tiny.similarity(a, b), a @ b.T / norms, atol=1e-6)
    np.testing.assert_allclose(tiny.similarity_pairwise(a, b), np.diag(a @ b.T / norms), atol=1e-6)
    assert isinstance(tiny.similarity(torch.from_numpy(a), torch.from_numpy(b)), torch.Tensor)
    assert tiny.similarity(a[0], b).shape == (1, 3)
    with pytest.raises(UserError, match="of 3 and 2 rows"):
        tiny.similarity_pairwise(a, b[:2])


def test_a_batch_that_does_not_fit_is_halved_with_one_warning(tiny, monkeypatch):
    texts = [f"text number {i}" for i in range(9)]
    expected = tiny.encode(texts)
    forward = tiny.model.encoder.forward

    def scarce(ids, mask, **kwargs):
        if len(ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return forward(ids, mask, **kwargs)

    monkeypatch.setattr(tiny.model.encoder, "forward", scarce)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vectors = tiny.encode(texts)
    assert np.abs(vectors - expected).max() <= 1e-6
    assert [str(w.message) for w in caught] == [
        "9 texts do not fit in memory: halving (see batch_size)"
    ]


def test_another_error_in_the_model_is_not_taken_for_a_lack_of_memory(tiny, monkeypatch):
    def broken(ids, mask, **kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(tiny.model.encoder, "forward", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        tiny.encode(["a", "b"])


def test_a_saved_model_opens_again_with_the_same_bits(tiny, tmp_path):
    texts = varied_texts(30)
    tiny.save(tmp_path / "saved")
    again = Encoder.from_pretrained(tmp_path / "saved", device="cpu")
    assert np.array_equal(again.encode(texts), tiny.encode(texts))
    with pytest.raises(UserError, match="exists"):
        tiny.save(tmp_path / "saved")
    tiny.save(tmp_path / "saved", overwrite=True)


def test_importing_and_encoding_need_neither_transformers_nor_other_heavy_packages(tiny_folder):
    code = (
        "import sys, minilm_retriever\n"
        "assert {'Encoder', 'UserError', 'train', '__version__'} <= set(dir(minilm_retriever))\n"
        "assert 'torch' not in sys.modules\n"
        "from minilm_retriever import Encoder\n"
        f"Encoder.from_pretrained({str(tiny_folder)!r}).encode('one text')\n"
        "heavy = {'transformers', 'huggingface_hub', 'pandas', 'scipy', 'sklearn', 'pyarrow'}\n"
        "heavy |= {'faiss', 'ray', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[]", run.stderr


def test_commands_keep_freed_memory_and_making_an_encoder_does_not(tiny_folder, monkeypatch):
    kept = []
    monkeypatch.setattr(command, "keep_freed_memory", kept.append)
    Encoder.from_pretrained(tiny_folder, device="cpu").encode("one text")
    assert kept == []
    command.open_for_command(str(tiny_folder), "cpu")
    assert kept == [256 << 20]


def test_progress_bears_the_label_that_is_given(tiny, monkeypatch, capsys):
    monkeypatch.setattr("minilm_retriever.progress.LINE_SECONDS", 0.0)
    tiny.encode(["one", "two"], show_progress="encoding queries")
    tiny.encode(["one", "two"], show_progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["encoding queries", "encoding"]
