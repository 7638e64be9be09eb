"""Settings of a model folder: pooling, normalisation, token limit, similarity and prompts, in the
layout of sentence-transformers 3.x or 6.x. Another module or pooling than those implemented here is
refused by name."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from minilm_retriever.errors import UserError

POOLINGS = {  # by the flag of layout 3.x; None: not implemented here
    "cls_token": "cls",
    "mean_tokens": "mean",
    "max_tokens": None,
    "mean_sqrt_len_tokens": None,
    "weightedmean_tokens": None,
    "lasttoken": None,
}
MODULES = ["Transformer", "Pooling", "Normalize"]
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
LARGEST_JSON_BYTES = 1 << 24  # a larger settings file must not fill the memory


@dataclass(frozen=True)
class Settings:
    """What shapes a vector besides the weights and the tokenizer."""

    pooling: str = "mean"
    normalize: bool = True
    max_length: int = 256  # tokens, [CLS] and [SEP] included
    lower_case: bool = False
    similarity: str = "cosine"
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    include_prompt: bool = True  # whether the tokens of a prompt are pooled with the text's


def read_modules(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the transformer's files, and the settings pooling, include_prompt, normalize.

    A plain BertModel folder is mean-pooled and not normalised, as in sentence-transformers."""
    path = folder / "modules.json"
    if not path.is_file():
        return folder, {"pooling": "mean", "normalize": False}
    try:
        modules = [(str(m["type"]), str(m["path"])) for m in read_json(path, list)]
    except (TypeError, KeyError):
        raise UserError(f"{path}: not a list of modules with a type and a path each") from None
    kinds = [kind.rsplit(".", 1)[-1] for kind, _ in modules]
    folders = [inside(folder, relative, path) for _, relative in modules]
    for kind in kinds:
        if kind not in MODULES:
            raise UserError(f"{path}: module {kind} is not implemented ({', '.join(MODULES)} are)")
    if kinds not in (MODULES[:2], MODULES):
        names = ", ".join(kinds) or "none"
        raise UserError(f"{path}: modules {names}; expected Transformer, Pooling, maybe Normalize")
    pooling = read_pooling(folders[1] / "config.json")
    return folders[0], {**pooling, "normalize": kinds[-1] == "Normalize"}


def read_pooling(path: Path) -> dict[str, Any]:
    """The settings pooling (flags in layout 3.x, one name in 6.x) and include_prompt."""
    config = read_json(path)
    named = [
        pooling or flag for flag, pooling in POOLINGS.items() if config.get(f"pooling_mode_{flag}")
    ]
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        named = mode if isinstance(mode, list) else [mode]
    if named not in (["mean"], ["cls"]):
        names = ", ".join(map(str, named)) or "none"
        raise UserError(f"{path}: pooling {names}; only mean or cls can be used")
    return {"pooling": named[0], "include_prompt": bool(config.get("include_prompt", True))}


def read_limits(root: Path, positions: int) -> dict[str, Any]:
    """The settings max_length and lower_case, for a model of so many positions."""
    path = root / "sentence_bert_config.json"
    config = read_json(path) if path.is_file() else {}
    limit = config.get("max_seq_length")
    if limit is None:
        path = root / "tokenizer_config.json"
        tokenizer_config = read_json(path) if path.is_file() else {}
        limit = tokenizer_config.get("model_max_length", positions)
    if isinstance(limit, bool) or not isinstance(limit, int | float) or limit < 1:
        raise UserError(f"{path}: a token limit of {limit!r}")
    # transformers writes 1e30 for "no limit".
    return {
        "max_length": int(min(limit, positions)),
        "lower_case": bool(config.get("do_lower_case", False)),
    }


def read_prompts(folder: Path) -> dict[str, Any]:
    """The settings similarity, prompts and default_prompt_name."""
    path = folder / "config_sentence_transformers.json"
    config = read_json(path) if path.is_file() else {}
    similarity = config.get("similarity_fn_name") or "cosine"
    prompts = config.get("prompts") or {}
    default = config.get("default_prompt_name")
    if similarity not in SIMILARITIES:
        raise UserError(f"{path}: similarity {similarity!r} is none of {', '.join(SIMILARITIES)}")
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise UserError(f"{path}: prompts is not an object of strings")
    if default is not None and not (isinstance(default, str) and default in prompts):
        known = ", ".join(prompts) or "none"
        raise UserError(f"{path}: default prompt {default!r} is not among the prompts ({known})")
    return {"similarity": similarity, "prompts": prompts, "default_prompt_name": default}


def inside(folder: Path, relative: str, named_in: Path) -> Path:
    """folder / relative; UserError where that would leave the folder."""
    parts = PurePosixPath(relative.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{named_in}: path {relative!r} leaves the model folder")
    return folder / parts


def read_file(path: Path, largest: int = LARGEST_JSON_BYTES) -> bytes:
    """A file's bytes; UserError where it cannot be read or has more than `largest` bytes."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a device has no end, a pipe may have no beginning
            raise UserError(f"{path}: not a regular file")
        if status.st_size > largest:
            raise UserError(f"{path}: {status.st_size} bytes, too large for such a file")
        return path.read_bytes()
    except OSError as problem:
        raise UserError(f"{path}: {problem.strerror or problem}") from None


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON object (or list) of a file; UserError naming the file and line where it is none."""
    return parse_json(read_file(path), path, kind)


def _finite(text: str) -> float:
    """A JSON number; ValueError for NaN and infinity, which no setting can be."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


def parse_json(data: bytes, path: Path, kind: type = dict) -> Any:
    """The JSON object (or list) in a file's bytes; see read_json."""
    try:
        value = json.loads(data, parse_constant=_finite, parse_float=_finite)
    except json.JSONDecodeError as problem:
        raise UserError(f"{path}:{problem.lineno}: not JSON: {problem.msg}") from None
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{path}: not JSON: {problem}") from None
    if not isinstance(value, kind):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, not a {kind.__name__}")
    return value
