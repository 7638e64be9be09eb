"""bf16 and int8 on a CPU: their bounds on the real weights, their refusal elsewhere, and what keeps
vectors of different precisions apart."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minilm_retriever import Encoder
from minilm_retriever.__main__ import main
from minilm_retriever.core.trainer import Batch, Hyperparameters, Trainer
from minilm_retriever.encoder import command
from minilm_retriever.errors import UserError
from minilm_retriever.kernels import processor
from minilm_retriever.kernels.processor import lacks_instructions

TEXTS = [f"{trade} number {n}" for n, trade in enumerate(["cook", "data analyst", "nurse"] * 9)]


def needs(precision):
    missing = lacks_instructions(precision)
    return pytest.mark.skipif(bool(missing), reason=f"this processor lacks {missing}")


# The least cosine to fp32, on the texts of tests/reference: of all, and on average.
BOUNDS = {"bf16": (0.9999, 0.99995), "int8": (0.985, 0.997)}
LOWER = [pytest.param(precision, marks=needs(precision)) for precision in BOUNDS]


@pytest.fixture()
def fresh(tiny_folder):
    """An encoder whose precision a test may change."""
    return Encoder.from_pretrained(tiny_folder, device="cpu")


@pytest.mark.parametrize("precision", LOWER)
def test_vectors_of_the_real_weights_are_near_those_of_fp32(
    precision, base_model, reference_texts, reference_embeddings
):
    encoder = Encoder.from_pretrained(base_model, device="cpu", precision=precision)
    vectors = encoder.encode(reference_texts)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6  # scaled in float32
    cosines = (vectors * reference_embeddings).sum(axis=1)
    worst, mean = BOUNDS[precision]
    assert worst < cosines.min() < 1 - 1e-6 and mean < cosines.mean()


@pytest.mark.parametrize("precision", LOWER)
def test_a_change_of_precision_is_one_of_the_next_vectors(precision, fresh):
    before = fresh.encode(TEXTS)
    fresh.precision = precision
    lower = fresh.encode(TEXTS)
    assert 1e-6 < np.abs(lower - before).max() < 0.05
    assert np.array_equal(fresh.encode(TEXTS), lower)
    fresh.precision = "fp32"
    assert np.array_equal(fresh.encode(TEXTS), before)


@pytest.mark.parametrize("precision", LOWER)
def test_copies_have_the_precision(precision, fresh):
    fresh.precision = precision
    model = fresh.model.encoder
    ids, mask = fresh.model.tokenizer.tokenize(TEXTS).batch(range(len(TEXTS)))
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]  # noqa: S301
    with torch.inference_mode():
        vectors = model(ids, mask)
        assert all(torch.equal(other(ids, mask), vectors) for other in copies)


@pytest.mark.parametrize("precision", LOWER)
def test_inference_that_cannot_be_in_the_precision_is_no_inference(precision, fresh):
    fresh.precision = precision
    fresh.model.encoder.double()
    with pytest.raises(RuntimeError, match=f"precision {precision} needs .* float32"):
        fresh.encode(TEXTS)
    with pytest.raises(UserError, match=f"precision {precision} is for a CPU, not for meta"):
        fresh.encode(TEXTS, device="meta")


@pytest.mark.parametrize("precision", LOWER)
def test_gradients_are_of_fp32(precision, fresh):
    fresh.precision = precision
    ids, mask = fresh.model.tokenizer.tokenize(TEXTS).batch(range(len(TEXTS)))
    vectors = fresh.model.encoder(ids, mask)
    fresh.precision = "fp32"
    assert torch.equal(vectors, fresh.model.encoder(ids, mask)) and vectors.requires_grad


@needs("bf16")
def test_gradients_of_training_in_bf16_are_near_those_of_fp32(base_model, reference_texts):
    model = Encoder.from_pretrained(base_model, device="cpu").model
    ids, mask = model.tokenizer.tokenize(reference_texts[:32]).batch(range(32))
    batch = Batch(None, ids, mask)
    gradients, losses = {}, {}
    for precision in ("fp32", "bf16"):
        settings = Hyperparameters(1, precision=precision)
        trainer = Trainer(model.encoder, halves_match, settings)  # without its step: no dropout
        loss = trainer.batch_loss(batch)
        parts = torch.autograd.grad(loss, trainer.parameters)
        gradients[precision] = torch.cat([part.flatten() for part in parts])
        losses[precision] = loss.item()
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["bf16"] != losses["fp32"]
    assert float(torch.cosine_similarity(*gradients.values(), dim=0)) > 0.999


def halves_match(vectors, _):
    """The published loss where text i of the first half belongs to text i of the second."""
    queries, documents = vectors.float().chunk(2)
    return F.cross_entropy(20 * queries @ documents.T, torch.arange(len(queries)))


FLAGS = {
    "AMX": ("GenuineIntel", "avx512_bf16 avx512_vnni amx_bf16 amx_int8", {"bf16", "int8"}),
    "Zen 4": ("AuthenticAMD", "avx512_bf16 avx512_vnni", {"bf16", "int8"}),
    "Cooper Lake": ("GenuineIntel", "avx512_bf16 avx512_vnni", {"int8"}),
    "Ice Lake": ("GenuineIntel", "avx512f avx512_vnni", {"int8"}),
    "Alder Lake": ("GenuineIntel", "avx2 avx_vnni", {"int8"}),
    "AVX2": ("AuthenticAMD", "avx2", set()),
    "no such file": ("", "", set()),
}


@pytest.fixture()
def processor_of(monkeypatch):
    """Sets what /proc/cpuinfo says."""

    def set_processor(vendor, flags):
        facts = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n"
        monkeypatch.setattr(processor.Path, "read_text", lambda *_: facts)
        monkeypatch.setattr(processor, "int8_is_exact", lambda: True)  # tried on this one
        clear()

    def clear():
        processor.bf16_is_fast.cache_clear()
        processor.int8_is_fast.cache_clear()

    yield set_processor
    monkeypatch.undo()
    clear()


@pytest.mark.parametrize(("vendor", "flags", "fast"), FLAGS.values(), ids=FLAGS.keys())
def test_the_processor_decides_which_precisions_are_faster(vendor, flags, fast, processor_of):
    processor_of(vendor, flags)
    assert {precision for precision in BOUNDS if not lacks_instructions(precision)} == fast
    assert not lacks_instructions("fp32")


@pytest.mark.parametrize("precision", BOUNDS)
def test_a_precision_that_would_be_slower_is_refused(precision, tiny_folder, processor_of):
    processor_of("GenuineIntel", "avx2")
    slower = f"precision {precision} would be slower .* lacks AMX-.*: choose fp32"
    with pytest.raises(UserError, match=slower):
        Encoder.from_pretrained(tiny_folder, device="cpu", precision=precision)
    with pytest.raises(UserError, match=slower):  # before a model is read
        command.open_for_command("no such model", "cpu", precision)
    encoder = Encoder.from_pretrained(tiny_folder, device="cpu")
    with pytest.raises(UserError, match=slower):
        encoder.precision = precision
    assert encoder.precision == "fp32"


def test_int8_is_refused_where_onednn_may_not_use_its_instructions():
    """There two products overflow oneDNN's 16-bit sums: vectors would be wrong, not only slow."""
    code = "from minilm_retriever.kernels.processor import lacks_instructions as lacks\n"
    code += "print(lacks('int8'))"
    held_back = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=held_back, capture_output=True, text=True, check=True
    )
    assert run.stdout == "AMX-INT8, AVX512-VNNI or AVX-VNNI\n"


def test_another_word_for_a_precision_is_refused(fresh):
    with pytest.raises(
        UserError, match="precision is 'float16'; it can be fp32, tf32, fp16, bf16, int8"
    ):
        fresh.precision = "float16"


@pytest.mark.parametrize("precision", LOWER)
def test_vectors_of_precisions_are_kept_apart(precision, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    encode = ["encode", "texts.txt", "--model", str(tiny_folder), "--cache", "cache", "--out"]
    assert main([*encode, "fp32"]) == 0
    assert main([*encode, precision, "--precision", precision]) == 0
    shutil.rmtree("cache")
    assert main([*encode, "again", "--precision", precision]) == 0
    vectors = {name: np.load(f"{name}/vectors-00000.npy") for name in ("fp32", precision, "again")}
    assert np.array_equal(vectors["again"], vectors[precision])  # none came from fp32's cache
    assert not np.array_equal(vectors["fp32"], vectors[precision])
    for name in ("fp32", precision):
        info = json.loads((tmp_path / name / "manifest.json").read_text())["vectors"]
        assert info["precision"] == name
        assert main(["search", name, TEXTS[0], "--model", str(tiny_folder)]) == 0
