"""The tokenizer of a model folder as transformers resolves its files.

A tokenizer of a class of its own (BertTokenizer, ...) is that class under tokenizer_config.json's
settings, or their defaults: transformers 5 takes the vocabulary alone from tokenizer.json, 4 takes
all of it but those settings. Where that makes a difference, the folder is refused. vocab.txt stands
in for a missing tokenizer.json. Any other tokenizer is tokenizer.json as it is."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from minilm_retriever.errors import UserError, named_errors
from minilm_retriever.pretrained.settings import parse_json
from minilm_retriever.pretrained.tokenizer import TextTokenizer
from minilm_retriever.pretrained.tokenizer_parts import Template, check_parts, tokens, walk

CONFIG, SPECIAL_MAP, TOKENIZER, VOCABULARY = TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "vocab.txt",
)
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
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
# Settings that change ids in a way that is not implemented here, and the values that don't.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "padding_side": ("right",),  # positions, and so vectors, would depend on the batch
    "add_bos_token": (False,),
    "add_eos_token": (False,),
    "auto_map": ({},),
    "fast_tokenizer_files": ([],),
    "processor_class": (),
}
SIDES = {"truncation_side": "truncation", "padding_side": "padding"}  # in tokenizer.json
NEEDED = {"input_ids", "attention_mask"}  # of model_input_names


def read_tokenizer(
    root: Path,
    files: Mapping[str, bytes],
    model_config: Mapping[str, Any],
    *,
    max_length: int,
    lower_case: bool,
) -> TextTokenizer:
    """The tokenizer of the files of these names in `root`.

    Raises UserError naming the file and what in it is malformed, contradicts another file, or is
    not implemented."""
    try:
        parsed, settings = resolve(root, files, model_config)
    except (KeyError, TypeError, AttributeError, IndexError) as problem:
        problem_line = f"a setting of its tokenizer is missing or of another type ({problem})"
        raise UserError(f"{root}: {problem_line}") from None
    data = json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
    return TextTokenizer(data, max_length=max_length, lower_case=lower_case, **settings)


def resolve(
    root: Path, files: Mapping[str, bytes], model_config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json under the settings of the other files, and TextTokenizer's other settings."""
    config, special_map, parsed = (
        parse_json(files[name], root / name) if name in files else {}
        for name in (CONFIG, SPECIAL_MAP, TOKENIZER)
    )
    name = config.get("tokenizer_class") or model_config.get("tokenizer_class") or "BertTokenizer"
    kind = str(name).removesuffix("Fast")
    if kind not in CLASSES:
        known = ", ".join(CLASSES)
        raise UserError(f"{root / CONFIG}: tokenizer_class {name!r} is none of {known}")
    side = check_config(config, parsed, str(root / CONFIG))
    special = special_tokens(CLASSES[kind], config, special_map)
    where = str(root / TOKENIZER)
    if TOKENIZER not in files:
        parsed, where = from_vocabulary(kind, root, files), str(root / VOCABULARY)
    check_parts(parsed, where)
    listed = config.get("added_tokens_decoder")
    parsed["added_tokens"] = added_tokens(parsed, listed, special, bool(CLASSES[kind]), where)
    if CLASSES[kind]:
        parsed = of_class(kind, parsed, config, special, where)
    return parsed, {
        "truncation_side": side,
        "split_special": bool(config.get("split_special_tokens")),
        "special": [token["content"] for token in special.values()],
        "where": where,
    }


def check_config(config: Mapping[str, Any], parsed: Mapping[str, Any], where: str) -> str:
    """The truncation side; UserError where tokenizer_config.json (or tokenizer.json, for what that
    leaves open) asks for something that is not implemented."""
    sides = {side: (parsed.get(part) or {}).get("direction") for side, part in SIDES.items()}
    settings = {**{side: str(v).lower() for side, v in sides.items() if v}, **config}
    for key, plain in UNSUPPORTED.items():
        if settings.get(key) is not None and settings[key] not in plain:
            raise UserError(f"{where}: {key} is {settings[key]!r}, which is not implemented")
    if NEEDED - set(settings.get("model_input_names") or NEEDED):
        raise UserError(f"{where}: model_input_names lacks one of {', '.join(sorted(NEEDED))}")
    side = settings.get("truncation_side") or "right"
    if side not in ("left", "right"):
        raise UserError(f"{where}: truncation_side {side!r} is neither left nor right")
    return str(side)


def special_tokens(
    defaults: Mapping[str, str], config: Mapping[str, Any], special_map: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """By name, each as an added token: of the class, of tokenizer_config.json, and (where that
    has no added_tokens_decoder) of special_tokens_map.json."""
    named: dict[str, Any] = dict(defaults)
    for source in (config, {} if "added_tokens_decoder" in config else special_map):
        named |= {k: v for k, v in source.items() if k.endswith("_token") and k[:4] != "add_"}
        for key in ("extra_special_tokens", "additional_special_tokens"):
            more = source.get(key) or []
            more = more if isinstance(more, dict) else {f"{key} {n}": t for n, t in enumerate(more)}
            named |= more
        named |= source.get("model_specific_special_tokens") or {}
    return {name: as_token(value) for name, value in named.items() if value is not None}


def as_token(value: Any) -> dict[str, Any]:
    """A token as transformers' files hold it, by its name or with its properties."""
    properties = {"content": value} if isinstance(value, str) else dict(value)
    properties.pop("__type", None)
    return {**PLAIN, "special": True, **properties}


def added_tokens(
    parsed: Mapping[str, Any],
    listed: Mapping[str, Any] | None,
    special: Mapping[str, dict[str, Any]],
    rebuilt: bool,
    where: str,
) -> list[dict[str, Any]]:
    """tokenizer.json's added tokens, and those that the other files add to them.

    listed: added_tokens_decoder. rebuilt: whether transformers 5 reads those alone. Raises
    UserError where they contradict each other."""
    own = {token["content"]: token for token in tokens(parsed, where)}
    more = [{"id": int(i), **PLAIN, "special": False, **t} for i, t in (listed or {}).items()]
    for token in more:
        present = own.get(token["content"], token)
        if any(present.get(key) != value for key, value in token.items()):
            raise UserError(f"{where}: added_tokens_decoder has another token {token['content']!r}")
    more += special.values()
    if listed is not None and rebuilt:
        for content in own.keys() - {token["content"] for token in more}:
            raise UserError(f"{where}: token {content!r} is not in added_tokens_decoder")
    vocabulary = parsed["model"]["vocab"]
    is_map = isinstance(vocabulary, dict)
    ids = dict(vocabulary) if is_map else {piece[0]: i for i, piece in enumerate(vocabulary)}
    ids |= {content: token["id"] for content, token in own.items()}
    for token in more:
        if token["content"] not in own:
            number = ids.setdefault(token["content"], len(ids))
            own[token["content"]] = {**token, "id": number}
    return list(own.values())


def from_vocabulary(kind: str, root: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """What tokenizer.json would say, of vocab.txt, which has a token a line."""
    if VOCABULARY not in files or CLASSES[kind] is not BERT:
        code = f"AutoTokenizer.from_pretrained('{root}').save_pretrained('{root}')"
        code = f"from transformers import AutoTokenizer; {code}"
        raise UserError(f'{root}: lacks tokenizer.json; python -c "{code}" makes one')
    try:
        lines = io.StringIO(files[VOCABULARY].decode("utf-8"), newline=None)
    except UnicodeDecodeError as problem:
        raise UserError(f"{root / VOCABULARY}: not UTF-8: {problem}") from None
    vocabulary = {line.rstrip(): number for number, line in enumerate(lines)}
    model = {"type": "WordPiece", "vocab": vocabulary, "unk_token": next(iter(vocabulary), None)}
    return {"version": "1.0", "model": model}


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
    pieces = list(walk(own, "normalizer", TOKENIZER))
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
        if left.get("type") == right.get("type") == "BertNormalizer":
            settings = ("lowercase", "strip_accents", "handle_chinese_chars")
            left = {**left, **{key: right[key] for key in settings}}
        if left != right:
            return name
    return ""


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
