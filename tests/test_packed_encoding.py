"""What a GPU's encoding is made of, here on a CPU: packing, pieces, halving, graphs of queries,
float16."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from minilm_retriever import Encoder, UserError
from minilm_retriever.encoder import encode_texts as module
from minilm_retriever.encoder import packed_batches
from minilm_retriever.encoder.packed_batches import Readback
from minilm_retriever.encoder.parallel import ahead
from minilm_retriever.encoder.precision import check_precision
from minilm_retriever.encoder.query_graphs import BEFORE, QueryGraphs
from minilm_retriever.kernels.fixed_layout import FixedLayout
from minilm_retriever.kernels.float_layers import pack_layer, run_fp16
from minilm_retriever.kernels.graphs import tf32_products
from tests.tiny import make_tiny_bert

WORDS = "data nurse cook engine river soil music night bread glass horse code paper metal".split()


def some_texts(count, seed=0):
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 40, count)
    return [" ".join(generator.choice(WORDS, n)) + f" {i}" * (i % 3) for i, n in enumerate(counts)]


@pytest.fixture()
def packs(monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr(module, "packs_on", lambda device: True)


@pytest.mark.parametrize(
    "options",
    [{}, {"normalize": False}, {"prompt": "find: "}, {"batch_size": 3}],
    ids=str,
)
def test_packed_vectors_are_those_of_padded_batches(tiny, monkeypatch, options):
    texts = ["", "nurse", *some_texts(150)]
    expected = tiny.encode(texts, **options)
    monkeypatch.setattr(module, "packs_on", lambda device: True)
    monkeypatch.setattr(module, "PIECE_TEXTS", 32)  # so in pieces, tokenised ahead
    monkeypatch.setattr(packed_batches, "PIECE_BYTES", 50 * 32 * 4)  # read back in parts
    counts = []
    monkeypatch.setattr(Readback, "receive", counted(Readback.receive, counts), raising=True)
    np.testing.assert_allclose(tiny.encode(texts, **options), expected, atol=1e-6)
    assert len(counts) >= 3


def counted(function, calls):
    def counting(*given):
        calls.append(given)
        return function(*given)

    return counting


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_packed_vectors_of_another_pooling_and_of_shortened_vectors(tmp_path, packs, pooling):
    encoder = Encoder(make_tiny_bert(tmp_path / pooling, pooling=pooling), device="cpu")
    texts = some_texts(40)
    packed = encoder.encode(texts)
    encoder.truncate_dim = 12
    short = encoder.encode(texts, normalize=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "packs_on", lambda device: False)
        np.testing.assert_allclose(encoder.encode(texts, normalize=True), short, atol=1e-6)
        encoder.truncate_dim = None
        np.testing.assert_allclose(encoder.encode(texts), packed, atol=1e-6)


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(tiny, packs, monkeypatch):
    texts = some_texts(64)
    expected = tiny.encode(texts)
    embed, sizes = module.embed_packed, []

    def scarce(encoder, tokens, rows, *others):
        sizes.append(len(rows))
        if len(rows) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embed(encoder, tokens, rows, *others)

    monkeypatch.setattr(module, "embed_packed", scarce)
    with pytest.warns(UserWarning, match="64 texts do not fit in memory: halving"):
        np.testing.assert_allclose(tiny.encode(texts), expected, atol=1e-6)
    assert sizes[0] == 64 and max(sizes[2:]) <= 32 and sum(s for s in sizes if s <= 20) == 64

    def none(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "embed_packed", none)
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning):
        tiny.encode(texts)


def test_the_progress_and_the_tokens_are_those_of_all_texts(tiny, packs, monkeypatch):
    monkeypatch.setattr(module, "PIECE_TEXTS", 16)
    texts, seen = some_texts(50), []
    model = tiny.model
    _, count = module.encode_distinct(
        model.encoder, model.tokenizer, texts, progress=lambda *done: seen.append(done)
    )
    tokens = model.tokenizer.tokenize(texts)
    assert seen[-1] == (50, count) and count == int(tokens.offsets[-1]) and len(seen) >= 4


def test_pieces_are_made_ahead_in_order_and_a_fault_arrives():
    made, taken = [], threading.Event()

    def make(number):
        if number == 9:
            raise UserError("the ninth")
        made.append(number)
        return number * number

    source = ahead(make, range(12), workers=2, started=4)
    assert next(source) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        taken.wait(0.01)
    assert sorted(made)[:4] == [0, 1, 2, 3]  # while nobody has asked for them
    assert [next(source) for _ in range(8)] == [n * n for n in range(1, 9)]
    with pytest.raises(UserError, match="the ninth"):
        next(source)


def test_float16_layers_are_near_those_of_float32(tiny):
    bert = tiny.model.encoder.bert
    lengths = torch.tensor([3, 11, 0, 7])
    layout = FixedLayout.make(lengths, 21, 12)
    ids = torch.arange(5, 26)
    with torch.inference_mode():
        x = bert.embeddings(ids, layout.positions)
        packed = [pack_layer(layer, torch.float16) for layer in bert.encoder["layer"].children()]
        out = run_fp16(packed, x, layout, 4, "gelu")
        expected = bert.run(ids, layout)
    assert out.dtype == torch.float16
    cosines = torch.nn.functional.cosine_similarity(out.float(), expected)
    assert float(cosines.min()) > 0.9999


@pytest.fixture()
def own(tmp_path):
    """A model that a test may change."""
    return Encoder(make_tiny_bert(tmp_path / "own"), device="cpu").model


def ask(graphs, model, text):
    """What the graphs give for a text, and what is right."""
    with torch.inference_mode():
        tokens = model.tokenizer.tokenize([text])
        expected = module.encode_tokens(model.encoder.eval(), tokens)
        return graphs.encode(model.encoder, tokens, None, 0), expected


def test_a_query_runs_from_a_graph_after_two_of_its_width(own):
    captured = []
    graphs = QueryGraphs(own.encoder, lambda run: captured.append(run) or run)
    for count in range(BEFORE):
        assert ask(graphs, own, f"nurse {count}")[0] is None
    for text in ("a cook", "night river soil", "night"):
        np.testing.assert_allclose(*ask(graphs, own, text), atol=1e-6)
    assert [ask(graphs, own, "x " * n)[0] for n in (20, 60, 70)] == [None] * 3
    np.testing.assert_allclose(*ask(graphs, own, "cook"), atol=1e-6)
    assert len(captured) == 1


def test_a_graph_sees_changed_numbers_and_is_dropped_with_replaced_parameters(own):
    graphs = QueryGraphs(own.encoder, lambda run: run)
    before = [ask(graphs, own, "a cook")[0] for _ in range(BEFORE + 1)][-1]
    bias = own.encoder.bert.encoder["layer"][0].output.dense.bias
    bias.data[:3] += 1.0  # uncounted
    assert graphs.is_current()
    vector, expected = ask(graphs, own, "a cook")
    np.testing.assert_allclose(vector, expected, atol=1e-6)
    assert np.abs(vector - before).max() > 1e-3
    dense = own.encoder.bert.encoder["layer"][0].output.dense
    dense.bias = torch.nn.Parameter(dense.bias.detach().clone())
    assert not graphs.is_current()


def test_where_a_query_cannot_be_captured_it_goes_on_without(own):
    def capture(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = QueryGraphs(own.encoder, capture)
    assert [ask(graphs, own, "a cook")[0] for _ in range(5)] == [None] * 5
    assert graphs.capture is None


@pytest.mark.parametrize("prompt_tokens", [0, 2])
def test_a_packed_batch_asks_the_device_nothing(own, monkeypatch, prompt_tokens):
    """Meta tensors have no numbers to ask for, and do not mix with those of a CPU."""
    encoder = own.encoder.to("meta").eval()
    ids, lengths = (torch.zeros(n, dtype=torch.int64, device="meta") for n in (20, 4))
    monkeypatch.setattr(torch, "tensor", None)
    monkeypatch.setattr(torch, "from_numpy", None)
    with torch.inference_mode():
        layout = FixedLayout.make(lengths, 20, 8)
        vectors = packed_batches.embed(encoder, ids, layout, True, prompt_tokens)
    assert vectors.shape == (4, 32) and vectors.device.type == "meta"


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_precisions_of_a_gpu_are_refused_on_a_cpu(tiny_folder, precision):
    with pytest.raises(UserError, match=f"precision {precision} is for a GPU, not for cpu"):
        Encoder(tiny_folder, device="cpu", precision=precision)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_precisions_of_a_cpu_are_refused_on_a_gpu(precision):
    check_precision("fp16", torch.device("cuda"))
    with pytest.raises(UserError, match=f"precision {precision} is for a CPU, not for cuda"):
        check_precision(precision, torch.device("cuda"))


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
def test_tf32_is_set_in_both_of_torchs_places_and_put_back(before):
    matmul, own = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    try:
        if before == "tf32":
            matmul.allow_tf32 = True
        else:
            matmul.fp32_precision = before
        with tf32_products():
            assert (matmul.fp32_precision, matmul.allow_tf32) == ("tf32", True)
            assert torch.get_float32_matmul_precision() == "high"  # an error where they differ
        assert matmul.fp32_precision == before and matmul.allow_tf32 == (before == "tf32")
    finally:
        matmul.allow_tf32 = False
        matmul.fp32_precision = own
