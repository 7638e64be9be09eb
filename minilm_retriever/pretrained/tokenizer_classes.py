"""What the tokenizer classes of transformers make of their settings, and how a tokenizer.json may
differ from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from minilm_retriever.errors import UserError, named_errors
from minilm_retriever.pretrained.tokenizer_parts import Template, check_parts, walk

BERT = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
XLM = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"}
XLM |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
CLASSES = {  # and their special tokens; without any: tokenizer.json as it is
    "BertTokenizer": BERT,
    "DistilBertTokenizer": BERT,
    "XLMRobertaTokenizer": XLM,
    "PreTrainedTokenizer": {},
    "TokenizersBackend": {},
}


def of_class(
    kind: str,
    parsed: dict[str, Any],
    config: Mapping[str, Any],
    special: Mapping[str, dict[str, Any]],
    where: str,
) -> dict[str, Any]:
    """A tokenizer.json under the settings of its class, where the two differ in nothing else."""
    parts = (
        bert_parts(parsed, config, special) if CLASSES[kind] is BERT else xlm_parts(parsed, config)
    )
    names = ("cls_token", "sep_token") if CLASSES[kind] is BERT else ("bos_token", "eos_token")
    ids = {token["content"]: token["id"] for token in parsed["added_tokens"]}
    ends = [[special[name]["content"], ids[special[name]["content"]]] for name in names]
    if "normalizer" not in parsed:  # of vocab.txt
        processor = {"type": "BertProcessing", "cls": ends[0], "sep": ends[1]}
        return {**parsed, **parts, "post_processor": processor}
    different = difference(parsed, parts, where)
    if check_parts(parsed, where) != Template((ends[0][1],), (ends[1][1],)):
        different = "post_processor"
    if different:
        raise UserError(
            f"{where}: its {different} is not that of a {kind}, and versions of transformers differ"
            ' on which counts; if the file is right, set "tokenizer_class": '
            '"PreTrainedTokenizerFast" in tokenizer_config.json'
        )
    return {**parsed, "normalizer": parts["normalizer"]}


def bert_parts(
    parsed: Mapping[str, Any], config: Mapping[str, Any], special: Mapping[str, Any]
) -> dict[str, Any]:
    """Normalizer, pre-tokenizer and model of a BertTokenizer with these settings."""
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
            "strip_accents": config.get("strip_accents"),
            "lowercase": config.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "unk_token": special["unk_token"]["content"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": parsed["model"]["vocab"],
        },
    }


def xlm_parts(parsed: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an XLMRobertaTokenizer; of the normalizer transformers 5 keeps the character table,
    and several spaces are one to the split."""
    scheme = "always" if config.get("add_prefix_space", True) else "never"
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
    own = parsed.get("normalizer")
    pieces = list(walk(own, "normalizer", "tokenizer.json"))
    table = [piece for piece in pieces if piece["type"] == "Precompiled"][:1]
    spaces = [piece for piece in pieces if piece.get("pattern") == {"Regex": " {2,}"}]
    return {
        "normalizer": own if pieces == table + spaces else {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace],
        },
        "model": {
            "type": "Unigram",
            "unk_id": 3,
            "byte_fallback": False,
            "vocab": parsed["model"]["vocab"],
        },
    }


def difference(parsed: Mapping[str, Any], parts: Mapping[str, Any], where: str) -> str:
    """The first part in which a tokenizer.json is not its class's, whose own settings (lower case,
    accents, Chinese) may be others; "" where there is none."""
    own, wanted = canonical(parsed, where), canonical(parts, where)
    for name in ("model", "pre_tokenizer", "normalizer"):
        left, right = own[name] or {}, wanted[name] or {}
        if right.get("lowercase") and left.get("type") == "Sequence":
            left = without_lowercase(left)
        if left.get("type") == right.get("type") == "BertNormalizer":
            settings = ("lowercase", "strip_accents", "handle_chinese_chars")
            left = {**left, **{key: right[key] for key in settings}}
        if left != right:
            return name
    return ""


def without_lowercase(normalizer: dict[str, Any]) -> dict[str, Any]:
    """A BertNormalizer that lower-cases, from a Sequence with Lowercase before it: that changes
    nothing, and sentence-transformers 6.2.0 writes it."""
    members: list[dict[str, Any]] = normalizer["normalizers"]
    kinds = [member["type"] for member in members]
    return members[1] if kinds == ["Lowercase", "BertNormalizer"] else normalizer


def canonical(parts: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Parts as `tokenizers` writes them, old spellings read; without most of the vocabulary."""
    model = dict(parts["model"])
    unigram = model["type"] == "Unigram"
    model["vocab"] = model["vocab"][: max(model["unk_id"], 3) + 1] if unigram else {}
    if not unigram:
        model["merges"] = []
    whole: dict[str, Any] = {"version": "1.0", "added_tokens": [], "model": model}
    whole |= dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    whole |= {name: parts.get(name) for name in ("normalizer", "pre_tokenizer")}
    with named_errors(f"{where}: not a tokenizer of `tokenizers`"):
        result: dict[str, Any] = json.loads(
            Tokenizer.from_str(json.dumps(whole, allow_nan=False)).to_str()
        )
    return result
