"""tokenizer_files.py: the ids that transformers gives for the same folder, or a refusal by name."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.tokenizer_files import TOKENIZER_FILES, read_tokenizer
from tests.texts import varied_texts

TEXTS = [
    "He bakes bread.",
    "Naïve CAFÉ – It's 3,50 €",
    "東京は大きい都市です",
    "a river in [MASK] rivers",
    "a [MASK] and [SEP] and [CLS] b [UNK] [NEW]",
    "  two  spaces\tand\x85more ",
    "",
    "word " * 40 + "end",
    "e\u0301 \u200b \ufffd \x07",
    *varied_texts(20),
]


def edit(folder, name, **changes):
    path = folder / name
    value = json.loads(path.read_text("utf-8")) if path.exists() else {}
    value.update(changes)
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not ...}), "utf-8")


def ours(folder, lower_case=False):
    files = {n: (folder / n).read_bytes() for n in TOKENIZER_FILES if (folder / n).is_file()}
    config = json.loads((folder / "config.json").read_text("utf-8"))
    tokenizer = read_tokenizer(folder, files, config, max_length=24, lower_case=lower_case)
    return tokenizer, tokenizer.encode(TEXTS)


def theirs(folder):
    """As sentence-transformers 6.2.0 calls it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=24)
    return tokenizer, tokenizer(TEXTS, padding=False, truncation="longest_first")["input_ids"]


def token(content, **flags):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"content": content, **plain, "special": True, **flags}


CHOICES = {  # of tokenizer_config.json; ... takes the key away
    "do_lower_case": [True, False, ...],
    "strip_accents": [None, True, False, ...],
    "tokenize_chinese_chars": [True, False, ...],
    "truncation_side": ["right", "left", ...],
    "split_special_tokens": [False, True, ...],
    "tokenizer_class": ["BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", ...],
    "clean_up_tokenization_spaces": [True, ...],
    "extra_special_tokens": [["[NEW]"], {"new_token": "[MASK]"}, [], ...],
    "mask_token": ["[MASK]", token("[MASK]"), ...],
    "vocabulary only": [False, False, True],
}


def test_random_settings_give_transformers_ids(tiny_folder, tmp_path):
    """Of every setting each value, in random company; half of them beside a tokenizer.json that
    says otherwise."""
    draw, opened = random.Random(0), 0
    for number in range(60):
        folder = tmp_path / str(number)
        shutil.copytree(tiny_folder, folder)
        chosen = {key: values[number % len(values)] for key, values in CHOICES.items()}
        chosen |= {
            key: draw.choice(values) for key, values in CHOICES.items() if draw.random() < 0.6
        }
        if chosen.pop("vocabulary only"):
            (folder / "tokenizer.json").unlink()
        elif number % 2:
            parsed = json.loads((folder / "tokenizer.json").read_text("utf-8"))
            keys = ("lowercase", "strip_accents", "handle_chinese_chars")
            parsed["normalizer"] |= {key: draw.choice([True, False]) for key in keys}
            (folder / "tokenizer.json").write_text(json.dumps(parsed), "utf-8")
        edit(folder, "tokenizer_config.json", **chosen)
        try:
            tokenizer, ids = ours(folder)
        except UserError as refusal:
            assert "lacks tokenizer.json" in str(refusal)
            continue
        opened += 1
        reference, expected = theirs(folder)
        assert ids == expected, chosen
        assert tokenizer.special_ids == set(reference.all_special_ids), chosen
    assert opened >= 50


def test_added_tokens_of_tokenizer_config(tiny_copy):
    parsed = json.loads((tiny_copy / "tokenizer.json").read_text("utf-8"))
    decoder = {str(t["id"]): token(t["content"]) for t in parsed["added_tokens"]}
    mask = next(i for i, t in decoder.items() if t["content"] == "[MASK]")
    edit(tiny_copy, "tokenizer_config.json", added_tokens_decoder=decoder)
    assert ours(tiny_copy)[1] == theirs(tiny_copy)[1]
    word = token("river", special=False, single_word=True)
    word_id = parsed["model"]["vocab"]["river"]
    edit(tiny_copy, "tokenizer_config.json", added_tokens_decoder={**decoder, str(word_id): word})
    assert ours(tiny_copy)[1] == theirs(tiny_copy)[1]
    other = {**decoder, mask: token("[MASK]", lstrip=True)}
    edit(tiny_copy, "tokenizer_config.json", added_tokens_decoder=other)
    with pytest.raises(UserError, match=r"added_tokens_decoder has another token '\[MASK\]'"):
        ours(tiny_copy)
    parsed["added_tokens"].append({"id": word_id, **word})
    (tiny_copy / "tokenizer.json").write_text(json.dumps(parsed), "utf-8")
    edit(tiny_copy, "tokenizer_config.json", added_tokens_decoder=decoder)
    with pytest.raises(UserError, match="token 'river' is not in added_tokens_decoder"):
        ours(tiny_copy)


def test_special_tokens_map_counts_where_there_is_no_decoder(tiny_copy):
    edit(tiny_copy, "tokenizer_config.json", mask_token=...)
    edit(tiny_copy, "special_tokens_map.json", mask_token="river")
    tokenizer, ids = ours(tiny_copy)
    reference, expected = theirs(tiny_copy)
    assert ids == expected and tokenizer.special_ids == set(reference.all_special_ids)


def unigram(folder, **changes):
    """The folder with SentencePiece's kind of tokenizer."""
    (folder / "vocab.txt").unlink()
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        "▁a",
        "a",
        "b",
        "re",
        "ad",
        "▁He",
        "e",
        "d",
        ".",
    ]
    parsed = {
        "version": "1.0",
        "added_tokens": [{"id": i, **token(p)} for i, p in enumerate(pieces[:4])],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {
                name: {"id": name, "ids": [i], "tokens": [name]}
                for name, i in (("<s>", 0), ("</s>", 2))
            },
        },
        "decoder": None,
        "model": {
            "type": "Unigram",
            "unk_id": 3,
            "byte_fallback": False,
            "vocab": [[piece, -float(i)] for i, piece in enumerate(pieces)],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps({**parsed, **changes}), "utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_text("{}")


SPLIT = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "WhitespaceSplit"},
        {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True},
    ],
}


def test_a_tokenizer_of_no_class_is_its_file(tiny_copy):
    unigram(tiny_copy)
    special = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    edit(tiny_copy, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **special)
    assert ours(tiny_copy)[1] == theirs(tiny_copy)[1]


def test_xlm_robertas_tokenizer_is_that_of_its_class(tiny_copy):
    unigram(tiny_copy, pre_tokenizer=SPLIT)
    edit(tiny_copy, "tokenizer_config.json", tokenizer_class="XLMRobertaTokenizer")
    assert ours(tiny_copy)[1] == theirs(tiny_copy)[1]
    edit(tiny_copy, "tokenizer.json", pre_tokenizer={"type": "WhitespaceSplit"})
    with pytest.raises(UserError, match="its pre_tokenizer is not that of a XLMRobertaTokenizer"):
        ours(tiny_copy)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "MPNetTokenizer"}, "tokenizer_class 'MPNet"),
        ("tokenizer_config.json", {"padding_side": "left"}, "padding_side is 'left'"),
        ("tokenizer_config.json", {"truncation_side": "both"}, "truncation_side 'both'"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}}, "auto_map is"),
        ("tokenizer_config.json", {"add_eos_token": True}, "add_eos_token is True"),
        ("tokenizer_config.json", {"model_input_names": ["input_ids"]}, "model_input_names lacks"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["a.json"]}, "fast_tokenizer_files is"),
        (
            "special_tokens_map.json",
            {"cls_token": "river"},
            "its post_processor is not that of a Bert",
        ),
        ("tokenizer_config.json", {"do_lower_case": "yes"}, "not a tokenizer of"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "of another type"),
        ("special_tokens_map.json", {"mask_token": 7}, "of another type"),
        (
            "tokenizer.json",
            {"pre_tokenizer": {"type": "WhitespaceSplit"}},
            "its pre_tokenizer is not",
        ),
        ("tokenizer.json", {"normalizer": None}, "its normalizer is not"),
        ("tokenizer.json", {"padding": {"direction": "Left"}}, "padding_side is 'left'"),
        ("tokenizer.json", {"model": ...}, "not a tokenizer"),
    ],
)
def test_what_is_not_implemented_or_contradicts_itself_is_refused(
    tiny_copy, file, changes, message
):
    edit(tiny_copy, file, **changes)
    with pytest.raises(UserError, match=message) as caught:
        ours(tiny_copy)
    assert "\n" not in str(caught.value)


def test_a_left_side_in_tokenizer_json_counts_where_the_configuration_is_silent(tiny_copy):
    cut = {"direction": "Left", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    edit(tiny_copy, "tokenizer.json", truncation=cut)
    assert ours(tiny_copy)[1] == theirs(tiny_copy)[1]
    assert ours(tiny_copy)[0].truncation_side == "left"


def test_lower_case_of_sentence_transformers_leaves_special_tokens(tiny_copy):
    edit(tiny_copy, "tokenizer_config.json", do_lower_case=False)
    tokenizer, ids = ours(tiny_copy, lower_case=True)
    reference = tokenizer.fast.token_to_id
    assert reference("[MASK]") in ids[4] and reference("[UNK]") in ids[4]
    upper = TEXTS.index("He bakes bread.")
    edit(tiny_copy, "tokenizer_config.json", do_lower_case=True)
    assert ids[upper] == ours(tiny_copy)[1][upper]


def test_the_vocabulary_is_read_as_bert_reads_it(tiny_copy):
    whole = ours(tiny_copy)[1]
    (tiny_copy / "tokenizer.json").unlink()
    lines = (tiny_copy / "vocab.txt").read_bytes()
    assert ours(tiny_copy)[1] == whole
    (tiny_copy / "vocab.txt").write_bytes(lines.replace(b"\n", b"\r\n").rstrip())
    assert ours(tiny_copy)[1] == whole
    (tiny_copy / "vocab.txt").write_bytes(lines.replace(b"[UNK]", b"[NONE]"))
    with pytest.raises(UserError, match=r"vocab.txt: its unknown token '\[UNK\]' is not in"):
        ours(tiny_copy)
    (tiny_copy / "vocab.txt").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"vocab.txt: not UTF-8"):
        ours(tiny_copy)


def test_the_prompts_length_leaves_out_a_special_token_at_its_end(tiny_copy):
    assert (
        ours(tiny_copy)[0].prompt_length("query: ")
        == len(theirs(tiny_copy)[0]("query: ").input_ids) - 1
    )
    unigram(tiny_copy, post_processor=None)
    edit(tiny_copy, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    tokenizer, _ = ours(tiny_copy)
    assert tokenizer.prompt_length("a b") == len(tokenizer.encode(["a b"])[0])
