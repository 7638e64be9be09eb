"""tokenization.py: sentence-transformers' ids for any string, mistakes named, very long texts cut
without a trace."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer

from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.tokenizer import CJK, LONG_RUN, TextTokenizer, TokenizedTexts
from tests.conftest import REFERENCE
from tests.texts import hostile_texts, varied_texts


def ids_of(tokens: TokenizedTexts) -> list[list[int]]:
    return [
        tokens.ids[a:b].tolist() for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)
    ]


@pytest.fixture(scope="module")
def plain(base_model):
    """The library alone, truncating after it has tokenised the whole text."""
    tokenizer = Tokenizer.from_file(str(base_model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    return lambda texts: [tokenizer.encode(text.strip()).ids for text in texts]


def test_ids_equal_sentence_transformers(base, reference_texts):
    expected = json.loads((REFERENCE / "embeddings.json").read_text("utf-8"))["token_ids"]
    assert ids_of(base.model.tokenizer.tokenize(reference_texts)) == expected


def test_truncation_and_padding_of_the_file_are_ignored(base, base_model):
    written = json.loads((base_model / "tokenizer.json").read_text("utf-8"))
    assert written["truncation"]["max_length"] == 128  # what the hub's file says
    assert written["padding"] is not None
    assert base.model.tokenizer.tokenize(["word " * 300, "word"]).lengths.tolist() == [256, 3]


def test_varied_and_hostile_texts_give_the_librarys_ids(base, plain):
    texts = varied_texts(300) + [
        t for t in hostile_texts(600) if not any(0xD800 <= ord(c) < 0xE000 for c in t)
    ]
    assert ids_of(base.model.tokenizer.tokenize(texts)) == plain(texts)


LONG_TEXTS = {
    "prose": "The cooper bends staves over a small fire. " * 4000,
    "one word": "a" * 200_000,
    "one word, then more": "a" * 50_000 + " and then some words",
    "cjk": "学習" * 40_000,
    "no white space": "aé-9/" * 30_000,
    "letters beyond ASCII": "αβγ" * 40_000,
    "letters and CJK": ("x" * 300 + "学") * 500,
    "accents that stand alone": "e\u0301" * 50_000,
    "punctuation": "?!" * 50_000,
    "emoji": "😀" * 40_000,
    "white space": "a" + " " * 100_000 + "b",
    "control characters": "a\x01" * 50_000,
    "special tokens": "[SEP]" * 20_000,
    "special tokens across the cut": "a" * 8189 + "[SEP] " + "b " * 9000,
    "few tokens at first": ("y" * 5000 + " ") * 30 + "word " * 400,
    "words of exactly the longest length": ("z" * 100 + " ") * 2000,
    "words longer by one": ("z" * 101 + " ") * 2000,
    "combining after a long run": "k" * 300 + "\u0301" * 20_000 + " end",
}


@pytest.mark.parametrize("kind", LONG_TEXTS)
def test_a_very_long_text_is_cut_with_identical_ids(base, plain, kind):
    text = LONG_TEXTS[kind]
    for variant in (text, "x" + text, text + " tail"):
        assert ids_of(base.model.tokenizer.tokenize([variant])) == plain([variant])


def test_the_runs_that_are_shortened_hold_nothing_that_bert_would_split_or_drop(base):
    """Every character of LONG_RUN stays in its word: it is neither removed nor set apart by the
    normaliser."""
    normalizer = Tokenizer.from_str(base.model.tokenizer.json).normalizer
    pre_tokenizer = Tokenizer.from_str(base.model.tokenizer.json).pre_tokenizer
    inside = [
        c
        for c in map(chr, range(sys.maxunicode + 1))
        if c.isalnum() and LONG_RUN.fullmatch(c * 201)
    ]
    assert len(inside) > 30_000
    text = "\n".join(f"a{c}a" for c in inside)
    words = [word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))]
    assert len(words) == len(inside)
    assert all(len(word) >= 3 for word in words)


def test_cjk_is_what_the_normaliser_sets_apart(base):
    normalizer = Tokenizer.from_str(base.model.tokenizer.json).normalizer
    for span in (
        CJK.replace("-", "").strip()[:2],
        "\u3400\u4dbf",
        "\uf900\ufaff",
        "\U00020000\U0002a6df",
    ):
        for c in span:
            assert normalizer.normalize_str(f"a{c}a").split(" ").__len__() == 3


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "NoneType"),
        (7, "int"),
        (b"bytes", "bytes"),
        (float("nan"), "float"),
        (["a", "b"], "list"),
        (("a",), "tuple"),
    ],
)
def test_what_is_no_string_is_named_by_index(tiny, value, said):
    with pytest.raises(ValueError, match=f"^text 2 is of type {said}, not str$"):
        tiny.model.tokenizer.tokenize(["fine", "also fine", value])


def test_a_lone_surrogate_is_named_by_index_and_place(tiny):
    with pytest.raises(
        ValueError, match=r"^text 1 holds a lone surrogate \(U\+D83D\) at character 2$"
    ):
        tiny.model.tokenizer.tokenize(["fine", "ab\ud83d"])


def test_lower_case_is_the_folders_choice(tiny):
    whole = tiny.model.tokenizer.parsed
    parsed = {**whole, "normalizer": {**whole["normalizer"], "lowercase": False}}
    upper = TextTokenizer(parsed, max_length=64)
    lower = TextTokenizer(parsed, max_length=64, lower_case=True)
    assert ids_of(lower.tokenize(["DATA Nurse"])) == ids_of(
        tiny.model.tokenizer.tokenize(["data nurse"])
    )
    assert ids_of(upper.tokenize(["DATA Nurse"])) != ids_of(lower.tokenize(["DATA Nurse"]))


def test_a_batch_is_padded_to_its_longest_row():
    tokens = TokenizedTexts(np.array([1, 2, 3, 4, 5, 6], np.int32), np.array([0, 2, 3, 6]))
    ids, mask = tokens.batch([2, 1])
    assert ids.tolist() == [[4, 5, 6], [3, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_file_that_is_no_tokenizer_is_one_clear_line():
    with pytest.raises(UserError, match="not a tokenizer"):
        TextTokenizer({}, max_length=8)
    with pytest.raises(UserError, match="not a tokenizer"):
        TextTokenizer([], max_length=8)
