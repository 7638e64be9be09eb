"""What a model folder computes, one module after another, by modules.json."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.json_files import check_keys, inside, read_json
from minilm_retriever.pretrained.settings import MODEL_FILE, TRANSFORMER_FILES

MODULES_FILE = "modules.json"
MODULE_KEYS = ("idx", "name", "path", "type", "kwargs")
POOLING_FLAGS = {  # of layout 3.x: names of 6.x
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING_KEYS = ("word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt")
HEAD_MODULES = ("Dense", "LayerNorm", "Dropout", "Normalize")  # see modules.py
# Architectures of config.json that are encoders; of a language model's head nothing is read.
ENCODERS = ("BertModel",)
LANGUAGE_MODELS = ("BertForMaskedLM", "BertForPreTraining")


Place = tuple[str, Path]  # a module's class name and folder


class Modules(NamedTuple):
    """What modules.json lists: the transformer's folder, the head, settings of Settings."""

    root: Path
    head: list[Place]  # what follows the pooling
    settings: dict[str, Any]  # pooling, include_prompt, normalize


def read_modules(folder: Path) -> Modules:
    """What is computed, one after another.

    A plain BertModel folder is mean-pooled and not normalised, as in sentence-transformers."""
    path = folder / MODULES_FILE
    if not path.is_file():
        return plain_modules(folder)
    listed = read_json(path, list)
    if not all(isinstance(m, dict) and {"type", "path"} <= m.keys() for m in listed):
        raise UserError(f"{path}: not a list of modules with a type and a path each")
    for module in listed:
        check_keys(module, MODULE_KEYS, path)
    modules = [(str(m["type"]), inside(folder, str(m["path"]), path)) for m in listed]
    kinds = [kind.rsplit(".", 1)[-1] for kind, _ in modules]
    known = ("Transformer", "Pooling", *HEAD_MODULES)
    for kind, (name, _) in zip(kinds, modules, strict=True):
        if kind not in known or not name.startswith("sentence_transformers."):
            own = kind if kind not in known else name
            raise UserError(f"{path}: module {own} is not implemented ({', '.join(known)} are)")
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= set(HEAD_MODULES):
        names = ", ".join(kinds) or "none"
        others = ", ".join(HEAD_MODULES)
        raise UserError(f"{path}: modules {names}; expected Transformer, Pooling, maybe {others}")
    normalize = kinds[-1] == "Normalize"
    paths = [place for _, place in modules]
    head = list(zip(kinds, paths, strict=True))[2 : -1 if normalize else None]
    if normalize:
        check_normalize(paths[-1] / "config.json")
    settings = read_pooling(paths[1] / "config.json")
    return Modules(paths[0], head, {**settings, "normalize": normalize})


def plain_modules(folder: Path) -> Modules:
    """Those of a folder without modules.json: mean pooling, not normalised.

    Raises UserError where other files say that there was more, and warns where config.json is that
    of a language model."""
    plain = {"pooling": "mean", "include_prompt": True}
    own = [folder / name for name in (MODEL_FILE, *TRANSFORMER_FILES) if (folder / name).exists()]
    modules = sorted(path for path in folder.glob("[0-9]*_*") if path.is_dir())
    for path in [*own, *modules]:
        if path.name != "1_Pooling" or read_pooling(path / "config.json") != plain:
            raise UserError(
                f"{folder}: has {path.name} but no {MODULES_FILE}, which says what is computed: "
                "get the whole folder again"
            )
    path = folder / "config.json"
    named = (read_json(path) if path.is_file() else {}).get("architectures") or [*ENCODERS]
    if named not in ([name] for name in (*ENCODERS, *LANGUAGE_MODELS)):
        known = ", ".join((*ENCODERS, *LANGUAGE_MODELS))
        raise UserError(
            f"{path}: architectures is {named!r}, a model of another task (a reranker, a "
            f"classifier, a generator) and no encoder; supported are {known}"
        )
    if named[0] in LANGUAGE_MODELS:
        warnings.warn(
            f"{folder} is a language model ({named[0]}), not trained for similarity: its head is "
            "left out and its tokens are averaged",
            stacklevel=4,
        )
    return Modules(folder, [], {**plain, "normalize": False})


def check_normalize(path: Path) -> None:
    """UserError where a last Normalize works on something else than the text's vector."""
    for name, value in (read_json(path) if path.is_file() else {}).items():
        if name[:7] != "module_" or value not in (None, "sentence_embedding"):
            raise UserError(f"{path}: {name} is {value!r}, which is not implemented")


def read_pooling(path: Path) -> dict[str, Any]:
    """The settings pooling (flags in layout 3.x, one name or several in 6.x) and include_prompt."""
    config = read_json(path)
    check_keys(config, (*POOLING_KEYS, *POOLING_FLAGS), path)
    names = [name for flag, name in POOLING_FLAGS.items() if config.get(flag)]
    if config.get("pooling_mode") is not None:
        mode = config["pooling_mode"]
        names = mode if isinstance(mode, list) else [mode]
    if not names or not set(map(str, names)) <= set(POOLING_FLAGS.values()):
        others = ", ".join(sorted({*POOLING_FLAGS.values()} - {"mean", "cls"}))
        shown = ", ".join(map(str, names)) or "none"
        raise UserError(
            f"{path}: pooling {shown}; only mean or cls (or {others}, or several) can be used"
        )
    return {"pooling": "+".join(names), "include_prompt": bool(config.get("include_prompt", True))}
