"""The tokenizer of a model folder as transformers resolves its files.

A tokenizer of a class of its own (BertTokenizer, ...) is that class under tokenizer_config.json's
settings, or their defaults: transformers 5 takes the vocabulary alone from tokenizer.json, 4 takes
all of it but those settings. Where that makes a difference, the folder is refused. vocab.txt stands
in for a missing tokenizer.json. Any other tokenizer is tokenizer.json as it is."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.json_files import check_keys, check_plain, parse_json
from minilm_retriever.pretrained.tokenizer import TextTokenizer
from minilm_retriever.pretrained.tokenizer_classes import BERT, CLASSES, of_class
from minilm_retriever.pretrained.tokenizer_parts import check_parts, tokens

CONFIG, SPECIAL_MAP, TOKENIZER, VOCABULARY, ADDED = TOKENIZER_FILES = (
    *("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json", "vocab.txt"),
    "added_tokens.json",
)
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
# Settings that change ids in a way that is not implemented here, and the values that don't.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "padding_side": ("right",),  # positions, and so vectors, would depend on the batch
    "add_bos_token": (False,),
    "add_eos_token": (False,),
    "auto_map": ({},),
    "fast_tokenizer_files": ([],),
    "processor_class": (),
    "do_basic_tokenize": (True,),
    "never_split": ([],),
    "sp_model_kwargs": ({},),
}
# What else tokenizer_config.json may say: settings that are honoured here, or that change no id.
HONOURED = (
    *("tokenizer_class", "do_lower_case", "strip_accents", "tokenize_chinese_chars"),
    *("model_max_length", "max_len", "truncation_side", "split_special_tokens"),
    *("model_input_names", "added_tokens_decoder", "add_prefix_space"),
    *("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"),
)
HARMLESS = (
    *("name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "vocab_size"),
    *("clean_up_tokenization_spaces", "max_length", "stride", "truncation_strategy", "legacy"),
    *("pad_to_multiple_of", "pad_token_type_id", "backend", "is_local", "local_files_only"),
    *("use_fast", "from_slow", "chat_template", "init_inputs", "trust_remote_code", "verbose"),
    *("transformers_version", "files_loaded", "device_map", "errors", "trim_offsets"),
)
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
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as problem:
        problem_line = f"a setting of its tokenizer is missing or of another type ({problem})"
        raise UserError(f"{root}: {problem_line}") from None
    return TextTokenizer(parsed, max_length=max_length, lower_case=lower_case, **settings)


def resolve(
    root: Path, files: Mapping[str, bytes], model_config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json under the settings of the other files, and TextTokenizer's other settings."""
    config, special_map, parsed, added = (
        parse_json(files[name], root / name) if name in files else {}
        for name in (CONFIG, SPECIAL_MAP, TOKENIZER, ADDED)
    )
    name = config.get("tokenizer_class") or model_config.get("tokenizer_class") or "BertTokenizer"
    kind = str(name).removesuffix("Fast")
    if kind not in CLASSES:
        known = ", ".join(CLASSES)
        raise UserError(f"{root / CONFIG}: tokenizer_class {name!r} is none of {known}")
    side = check_config(config, parsed, root / CONFIG)
    special = special_tokens(CLASSES[kind], config, special_map)
    where = str(root / TOKENIZER)
    if TOKENIZER not in files:
        parsed, where = from_vocabulary(kind, root, files), str(root / VOCABULARY)
    check_parts(parsed, where)
    listed = config.get("added_tokens_decoder")
    parsed["added_tokens"] = added_tokens(parsed, listed, special, bool(CLASSES[kind]), where)
    ids = vocabulary_ids(parsed) | {t["content"]: t["id"] for t in parsed["added_tokens"]}
    for content, number in added.items():
        if ids.get(content) != number:
            raise UserError(f"{root / ADDED}: token {content!r} is not {number} in {where}")
    if CLASSES[kind]:
        parsed = of_class(kind, parsed, config, special, where)
    return parsed, {
        "truncation_side": side,
        "split_special": bool(config.get("split_special_tokens")),
        "special": [token["content"] for token in special.values()],
        "where": where,
    }


def check_config(config: Mapping[str, Any], parsed: Mapping[str, Any], where: Path) -> str:
    """The truncation side; UserError where tokenizer_config.json (or tokenizer.json, for what that
    leaves open) asks for something that is not implemented."""
    sides = {side: (parsed.get(part) or {}).get("direction") for side, part in SIDES.items()}
    settings = {**{side: str(v).lower() for side, v in sides.items() if v}, **config}
    special = tuple(key for key in config if key.endswith("_token"))
    check_keys(config, (*HONOURED, *HARMLESS, *UNSUPPORTED, *special), where)
    check_plain(settings, UNSUPPORTED, where)
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
    ids = vocabulary_ids(parsed)
    ids |= {content: token["id"] for content, token in own.items()}
    for token in more:
        if token["content"] not in own:
            number = ids.setdefault(token["content"], len(ids))
            own[token["content"]] = {**token, "id": number}
    return list(own.values())


def vocabulary_ids(parsed: Mapping[str, Any]) -> dict[str, int]:
    """The ids of a tokenizer.json's pieces, its added tokens left out."""
    vocabulary = parsed["model"]["vocab"]
    is_map = isinstance(vocabulary, dict)
    return dict(vocabulary) if is_map else {piece[0]: i for i, piece in enumerate(vocabulary)}


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
