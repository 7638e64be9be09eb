"""tokenizer_parts.py: known components within bounds; whatever is left opens or is one line."""

from __future__ import annotations

import base64
import copy
import json
import random

import numpy as np
import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.tokenizer import TextTokenizer
from minilm_retriever.pretrained.tokenizer_parts import MOST_GROWTH, longest_replacement
from tests.tiny import tiny_tokenizer

TEXTS = ["a night in the old web ", "e" * 40, "Ａ naïve ﷺ ｅ", "", "[MASK]", "\u0301 \x00"]
WHOLE = json.loads(tiny_tokenizer().to_str())


def replace(content, pattern="e", count=1):
    part = {"type": "Replace", "pattern": {"String": pattern}, "content": content}
    return {"type": "Sequence", "normalizers": [part] * count}


def template(*single, ids=(2,)):
    special = {"[CLS]": {"id": "[CLS]", "ids": list(ids), "tokens": ["[CLS]"] * len(ids)}}
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": list(single),
        "pair": pair,
        "special_tokens": special,
    }


A, CLS = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
MODEL = WHOLE["model"]


def opened(**changes):
    return TextTokenizer({**copy.deepcopy(WHOLE), **changes}, max_length=16, where="tokenizer.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": replace("e" * 8, count=10)}, "make 1073741824 characters of one"),
        ({"normalizer": replace("e" * 65)}, "make 65 characters of one"),
        ({"normalizer": replace("ee", count=40)}, "too many parts"),
        ({"normalizer": replace("x", pattern="")}, "Replace without a pattern"),
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}},
            "expre",
        ),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 2000}}, "Prepend of a long text"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [replace("a")]}},
            "a Sequence in a Seq",
        ),
        ({"normalizer": {"type": "Evil"}}, "normalizer 'Evil' is none of BertNormalizer, Lower"),
        ({"normalizer": [1]}, "normalizer None is none of"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "a damaged"),
        (
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|a)*b"}}},
            "regular expression",
        ),
        ({"post_processor": template(*[A] * 50)}, "around one text"),
        ({"post_processor": template(CLS)}, "around one text"),
        ({"post_processor": template({"Sequence": {"id": "B", "type_id": 0}})}, "around one text"),
        ({"post_processor": template(A, *[CLS] * 5000)}, "around one text"),
        (
            {"post_processor": template(A, {"SpecialToken": {"id": "x", "type_id": 0}})},
            "around one",
        ),
        (
            {"post_processor": template({"Sequence": {"id": "A", "type_id": 1}})},
            "one text of type 0",
        ),
        ({"post_processor": template(A, CLS, ids=[-1])}, "around one text"),
        ({"post_processor": {"type": "BertProcessing", "cls": ["[CLS]"]}}, "around one text"),
        ({"model": {**MODEL, "vocab": {}}}, r"unknown token '\[UNK\]' is not in its vocabulary"),
        ({"model": {**MODEL, "max_input_chars_per_word": 10**9}}, "max_input_chars_per_word"),
        ({"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}}, "without unk_id"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5}},
            "BPE with dropout",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}, "merges 'a b'"),
        ({"model": {**MODEL, "vocab": []}}, "vocabulary is no object"),
        ({"added_tokens": [{"id": 0, "content": ""}]}, "an added token of 0 characters"),
        ({"added_tokens": {"a": 1}}, "added_tokens is no list"),
    ],
)
def test_a_part_beyond_its_bounds_is_one_line(changes, message, capfd):
    with pytest.raises(UserError, match=message) as caught:
        opened(**changes)
    assert "\n" not in str(caught.value) and "tokenizer.json" in str(caught.value)
    assert capfd.readouterr().err == "", "no panic of the library's"


def test_ids_of_the_post_processor_count_among_the_vocabulary():
    processor = {"type": "BertProcessing", "sep": ["[SEP]", 999_999], "cls": ["[CLS]", 888_888]}
    assert opened(post_processor=processor).vocab_size == 1_000_000


def test_growth_within_bounds_is_what_it_says():
    tokenizer = opened(normalizer=replace("e" * 8, count=2))
    assert len(tokenizer.fast.normalizer.normalize_str("e")) == 64 <= MOST_GROWTH


def charsmap(*pairs):
    """SentencePiece's table of single bytes: a double array of one block of children for each."""
    strings, units = b"", np.zeros(256 * (len(pairs) + 1), "<u4")
    units[0] = (256 * 0) << 10  # the root's children are at 0 ^ byte
    for number, (byte, text) in enumerate(pairs, 1):
        offset = byte ^ (256 * number)  # child's own place ^ offset = its block
        units[byte] = byte | 1 << 8 | offset << 10
        units[256 * number] = 1 << 31 | len(strings)
        strings += text.encode() + b"\0"
    data = units.tobytes()
    return base64.b64encode(len(data).to_bytes(4, "little") + data + strings).decode()


def test_a_character_table_is_read_as_the_library_reads_it():
    table = charsmap((ord("e"), "éé"), (ord("x"), ""), (ord("q"), "k"))
    assert longest_replacement(table, "t") == 5  # bytes, and the NUL
    tokenizer = opened(normalizer={"type": "Precompiled", "precompiled_charsmap": table})
    assert tokenizer.fast.normalizer.normalize_str("exqa") == "éééé"[:2] + "ka"
    with pytest.raises(UserError, match="characters of one"):
        opened(
            normalizer={
                "type": "Precompiled",
                "precompiled_charsmap": charsmap((ord("e"), "e" * 100)),
            }
        )


def test_a_damaged_character_table_is_refused_or_does_no_harm(capfd):
    good = base64.b64decode(charsmap((ord("e"), "éé"), (ord("x"), ""), (ord("q"), "k")))
    draw = random.Random(0)
    for _ in range(300):
        data = bytearray(good[: draw.choice([len(good), draw.randrange(len(good))])])
        for _ in range(draw.randrange(4)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        table = base64.b64encode(bytes(data)).decode()
        try:
            opened(normalizer={"type": "Precompiled", "precompiled_charsmap": table}).tokenize(
                TEXTS
            )
        except UserError:
            continue
    assert "panicked" not in capfd.readouterr().err


def mutate(value, draw):
    """The same JSON with one value somewhere in it put in place of another."""
    value = copy.deepcopy(value)
    places = []

    def collect(node):
        keys = node.keys() if isinstance(node, dict) else range(len(node))
        for key in list(keys)[:20]:
            places.append((node, key))
            if isinstance(node[key], dict | list):
                collect(node[key])

    collect(value)
    node, key = draw.choice(places)
    others = [None, -1, 0, 2**40, "", "x", [], {}, 1.5, True, "[UNK]", {"type": "Sequence"}]
    node[key] = draw.choice([*others, copy.deepcopy(draw.choice(places)[0])])
    return value


def test_any_change_of_a_tokenizer_opens_or_is_one_line(capfd):
    draw = random.Random(1)
    small = {**WHOLE, "model": {**MODEL, "vocab": dict(list(MODEL["vocab"].items())[:140])}}
    refused = 0
    for _ in range(400):
        value = mutate(small, draw)
        try:
            TextTokenizer(value, max_length=16).tokenize(TEXTS)
        except UserError as problem:
            refused += 1
            assert "\n" not in str(problem)
    assert 50 < refused < 400
    assert "panicked" not in capfd.readouterr().err
