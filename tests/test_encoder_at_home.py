"""An Encoder among what people use beside it: their containers, threads, processes, notebooks."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import minilm_retriever
from minilm_retriever import Encoder
from minilm_retriever.core.model import SentenceEncoder
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.modules import pooling_of
from tests.texts import varied_texts

TEXTS = ["cook", "nurse", "looks after people's teeth"]


@pytest.fixture()
def own(tiny_folder) -> Encoder:
    """An encoder that a test may change."""
    return Encoder(tiny_folder, device="cpu")


def containers():
    yield "generator", lambda: (text for text in TEXTS)
    yield "tuple", lambda: tuple(TEXTS)
    yield "dict's values", lambda: dict(enumerate(TEXTS)).values()
    yield "array of str", lambda: np.array(TEXTS)
    yield "array of objects", lambda: np.array(TEXTS, dtype=object)
    yield "Series", lambda: pytest.importorskip("pandas").Series(TEXTS, index=[7, 7, 9])
    yield "Index", lambda: pytest.importorskip("pandas").Index(TEXTS)
    yield "Arrow array", lambda: pytest.importorskip("pyarrow").array(TEXTS)
    yield (
        "Arrow column",
        lambda: pytest.importorskip("pyarrow").chunked_array([TEXTS[:1], TEXTS[1:]]),
    )


@pytest.mark.parametrize(("kind", "make"), containers(), ids=[kind for kind, _ in containers()])
def test_texts_come_in_any_container(tiny, kind, make):
    for encode in (tiny.encode, tiny.encode_query, tiny.encode_document):
        assert np.array_equal(encode(make()), tiny.encode(TEXTS)), kind


def test_one_text_is_one_vector_whatever_its_type(tiny):
    for one in ("cook", np.str_("cook"), np.array("cook"), np.array("cook", dtype=object)):
        assert np.array_equal(tiny.encode(one), tiny.encode("cook"))


def test_a_missing_value_in_a_series_is_named(tiny):
    series = pytest.importorskip("pandas").Series(["a", None, "b"])
    with pytest.raises(UserError, match=r"^text 1 is of type (NoneType|float)"):
        tiny.encode(series)


def test_queries_and_documents_take_all_options_of_encode(own):
    own.prompts = {"query": "query: ", "passage": "passage: ", "other": "other: "}
    for encode, prompt in ((own.encode_query, "query: "), (own.encode_document, "passage: ")):
        plain = own.encode([prompt + text for text in TEXTS])
        assert np.array_equal(encode(TEXTS), plain)
        raw = encode(TEXTS, convert_to="torch", normalize=False, batch_size=1, device="cpu")
        assert isinstance(raw, torch.Tensor) and np.abs(raw.norm(dim=1).numpy() - 1).max() > 0.1
        assert np.array_equal(encode(TEXTS, prompt=""), own.encode(TEXTS))
        assert np.array_equal(
            encode(TEXTS, prompt_name="other"), own.encode(TEXTS, prompt="other: ")
        )
        assert len(encode("cook", output="tokens")) == len(
            own.encode(prompt + "cook", output="tokens")
        )
        with pytest.raises(UserError, match="exclude each other"):
            encode(TEXTS, prompt="", prompt_name="other")


def test_settings_can_be_set(own):
    whole = own.encode(TEXTS)
    own.truncate_dim = 8
    assert own.dimension == 8 and np.allclose(own.encode(TEXTS), whole[:, :8])
    own.truncate_dim = None
    assert own.dimension == 32 and np.array_equal(own.encode(TEXTS), whole)
    own.max_length = 4  # [CLS], two tokens, [SEP]
    assert own.max_length == 4
    assert [len(states) for states in own.encode(["a b", "a b c"], output="tokens")] == [4, 4]
    own.prompts = {"query": "q "}
    assert dict(own.prompts) == {"query": "q "}
    with pytest.raises(TypeError):
        own.prompts["query"] = "r "  # is not the model's


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("truncate_dim", 0, "truncate_dim is 0; it can be from 1 to 32, or None"),
        ("truncate_dim", 33, "truncate_dim is 33"),
        ("max_length", 2, "max_length is 2; it can be from 3 to 64 tokens"),
        ("max_length", 65, "max_length is 65"),
        ("prompts", {"query": None}, "texts by name"),
        ("precision", "fp8", "precision is 'fp8'; it can be"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_and_changes_nothing(own, name, value, message):
    before, vectors = getattr(own, name), own.encode(TEXTS)
    with pytest.raises(UserError, match=message):
        setattr(own, name, value)
    assert getattr(own, name) == before and np.array_equal(own.encode(TEXTS), vectors)


def test_what_is_saved_has_the_settings_that_were_set(own, tmp_path):
    own.truncate_dim, own.max_length, own.prompts = 8, 16, {"query": "q: "}
    own.save(tmp_path / "saved")
    again = Encoder(tmp_path / "saved", device="cpu")
    assert (again.truncate_dim, again.max_length, dict(again.prompts)) == (8, 16, {"query": "q: "})
    assert again.fingerprint() == own.fingerprint()


def test_token_states_are_those_that_are_pooled(base):
    texts = varied_texts(20, seed=5)
    states = base.encode(texts, output="tokens")
    tokens = base.model.tokenizer.tokenize(texts)
    assert [part.shape for part in states] == [(n, 384) for n in tokens.lengths]
    means = np.stack([part.mean(axis=0) for part in states])
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert np.abs(unit - base.encode(texts)).max() <= 1e-6
    ones = base.encode(texts[:2], output="tokens", normalize=True, convert_to="torch")
    assert all(isinstance(part, torch.Tensor) for part in ones)
    assert np.abs(ones[0].norm(dim=1).numpy() - 1).max() <= 1e-5
    assert base.encode([], output="tokens") == []


def test_token_states_have_no_dropout_in_training(own):
    expected = own.encode("cook", output="tokens")
    own.model.encoder.train()
    assert np.abs(own.encode("cook", output="tokens") - expected).max() <= 1e-6
    assert own.model.encoder.training


def test_it_says_what_it_is(own, tiny_folder):
    shown = repr(own)
    assert shown.startswith(f"Encoder({tiny_folder}: 32 dimensions, at most 64 tokens, ")
    assert shown.endswith("mean pooling, cosine, cpu, fp32)")
    assert "in memory" in repr(Encoder(own.model, device="cpu"))
    names = {"encode", "encode_query", "truncate_dim", "prompts", "max_length", "similarity"}
    assert names <= set(dir(own))


def test_the_package_shows_its_public_names_alone():
    shown = {name for name in dir(minilm_retriever) if not name.startswith("_")}
    assert set(minilm_retriever.__all__) - {"__version__"} <= shown
    assert not shown & {"TYPE_CHECKING", "lazy_exports", "annotations"}


def through_a_pickle(thing):
    return pickle.loads(pickle.dumps(thing))  # noqa: S301 - as a process pool passes it


def test_pickles_hold_it_whole(own, tmp_path):
    own.prompts, own.truncate_dim = {"query": "q "}, 16
    vectors = own.encode_query(TEXTS)
    again = through_a_pickle(own)
    assert np.array_equal(again.encode_query(TEXTS), vectors) and repr(again) == repr(own)
    encoder = SentenceEncoder(own.model.encoder.bert, pooling=pooling_of(["cls", "mean"]))
    ids, mask = own.model.tokenizer.tokenize(TEXTS).batch(range(3))
    assert torch.equal(through_a_pickle(encoder)(ids, mask), encoder(ids, mask))


def test_threads_may_share_one(tiny_folder):
    texts = [f"{n} cooks and a nurse" for n in range(12)]
    for _ in range(3):  # each time nobody has packed the weights yet
        fresh = Encoder(tiny_folder, device="cpu")
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(fresh.encode, [texts[n % 4 :] for n in range(16)]))
        for n, vectors in enumerate(results):
            assert np.array_equal(vectors, fresh.encode(texts[n % 4 :]))


def test_threads_may_change_precision_meanwhile(own):
    """The layers and what runs them are of one precision, whatever is set between the two."""
    packed = own.model.encoder.bert.packed
    with torch.inference_mode():
        ready = packed.ready(torch.zeros(4, 32))
    if ready is None:
        pytest.skip("needs oneDNN")
    packed.precision, packed.packed = "bf16", None
    assert ready.precision == "fp32" and len(ready.layers) == 2


FORKED = """
import os, sys, time
import numpy as np, torch
from minilm_retriever import Encoder
torch.set_num_threads(2)
encoder = Encoder(sys.argv[1], device="cpu")
texts = [f"number {n} " * 25 for n in range(60)]
vectors = encoder.encode(texts)
torch.mm(torch.ones(600, 600), torch.ones(600, 600))  # both threads have worked
child = os.fork()
if child == 0:
    same = np.abs(encoder.encode(texts) - vectors).max() < 1e-5
    again = torch.mm(torch.ones(600, 600), torch.ones(600, 600))
    os._exit(0 if same and again.sum() > 0 else 1)
for _ in range(200):
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.05)
os.kill(child, 9)
sys.exit("the child hangs")
"""


def test_a_forked_process_encodes(tiny_folder):
    run = subprocess.run(
        [sys.executable, "-c", FORKED, str(tiny_folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
