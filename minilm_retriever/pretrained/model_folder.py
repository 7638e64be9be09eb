"""A model on disk: opened in either layout of sentence-transformers, written in that of 3.x, which
both 3.x and 6.x open."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from minilm_retriever.core.model import Bert, SentenceEncoder
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.adapters import merge, read_adapter
from minilm_retriever.pretrained.config import SaveDtype
from minilm_retriever.pretrained.hub import resolve
from minilm_retriever.pretrained.json_files import read_file, read_json
from minilm_retriever.pretrained.load_weights import (
    WHOLE,
    bert_from_tensors,
    bert_tensors,
    parse_bert_config,
)
from minilm_retriever.pretrained.modules import HeadModule, head_modules, pooling_of, read_head
from minilm_retriever.pretrained.pipeline import POOLING_FLAGS, Place, read_modules
from minilm_retriever.pretrained.settings import Settings, read_limits, read_prompts
from minilm_retriever.pretrained.tokenizer import TextTokenizer
from minilm_retriever.pretrained.tokenizer_files import TOKENIZER_FILES, read_tokenizer
from minilm_retriever.storage import atomic_files, manifest
from minilm_retriever.storage.tensors import save_tensors
from minilm_retriever.types import StrPath

VOCABULARIES = ("tokenizer.json", "vocab.txt")
LARGEST_TOKENIZER_BYTES = 1 << 28
LAYOUT_VERSION = "3.4.1"  # the sentence-transformers release whose layout is written


@dataclass(frozen=True)
class LoadedModel:
    """A model and what is needed to save it again, in memory: its folder may go away."""

    encoder: SentenceEncoder
    tokenizer: TextTokenizer
    settings: Settings
    config: Mapping[str, Any]  # config.json as it was
    tokenizer_files: Mapping[str, bytes]  # those beside tokenizer.json

    def fingerprint(self) -> str:
        """SHA-256 over all that decides a vector: weights, configuration, tokenizer, settings."""
        sha256 = hashlib.sha256()
        for part in (self.encoder.bert, *head_modules(self.encoder)):
            for name, tensor in sorted(part.state_dict().items()):
                sha256.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                sha256.update(tensor.detach().cpu().contiguous().numpy().view("uint8").data)
        settings = {
            "config": vars(self.encoder.bert.config),
            "settings": vars(self.settings),
            "head": [(part.kind, part.settings) for part in head_modules(self.encoder)],
        }
        sha256.update(json.dumps(settings, sort_keys=True, default=dict, allow_nan=False).encode())
        tokenizer = self.tokenizer
        sha256.update(tokenizer.json.encode())
        sha256.update(f"{tokenizer.truncation_side} {tokenizer.split_special}".encode())
        return sha256.hexdigest()

    def with_max_length(self, limit: int) -> LoadedModel:
        """The model with another token limit, [CLS] and [SEP] included."""
        positions = self.encoder.bert.config.max_position_embeddings
        if not 3 <= limit <= positions:
            raise UserError(f"max_length is {limit}; it can be from 3 to {positions} tokens")
        settings = replace(self.settings, max_length=limit)
        return replace(self, tokenizer=self.tokenizer.with_max_length(limit), settings=settings)


def load_pretrained(name_or_folder: StrPath, revision: str | None = None) -> LoadedModel:
    """Open a model folder of either layout, a plain BertModel folder, or a model of the hub.

    Raises UserError, naming the file, on what is missing, malformed, cut short, changed since it
    was written (where there is a manifest), of another architecture, or not implemented here."""
    folder = resolve(str(name_or_folder), revision)
    if manifest.has_manifest(folder):
        manifest.verify_folder(folder)
    root, head, computed = read_modules(folder)
    adapter = read_adapter(root)
    base = root if adapter is None else base_of_adapter(root, adapter)
    config = read_json(base / "config.json")
    bert_config = parse_bert_config(config, str(base / "config.json"))
    words = root if any((root / name).is_file() for name in VOCABULARIES) else base
    limits = read_limits(root, words, bert_config.max_position_embeddings)
    settings = Settings(**computed, **limits, **read_prompts(folder))
    files = {
        name: read_file(words / name, LARGEST_TOKENIZER_BYTES)
        for name in TOKENIZER_FILES
        if (words / name).is_file()
    }
    tokenizer = read_tokenizer(words, files, config, **limits)
    files.pop("tokenizer.json", None)
    if tokenizer.vocab_size > bert_config.vocab_size:
        ids = f"token ids up to {tokenizer.vocab_size - 1} in {tokenizer.where}"
        raise UserError(f"{root}: {ids}, vocab_size {bert_config.vocab_size} in config.json")
    tensors = bert_tensors(base)
    tensors = tensors if adapter is None else merge(root, adapter, tensors)
    bert = bert_from_tensors(bert_config, tensors, str(base))
    encoder = make_encoder(bert, settings, head).eval()
    return LoadedModel(encoder, tokenizer, settings, config, files)


def base_of_adapter(root: Path, adapter: Mapping[str, Any]) -> Path:
    """The folder of the weights that an adapter adds to: its own, where it has whole weights
    beside it, else that of the model which it names."""
    if any((root / name).is_file() for name in (WHOLE, f"{WHOLE}.index.json")):
        return root
    name = adapter.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"{root}: holds an adapter, not whole weights, and does not say of what")
    try:
        return resolve(name, adapter.get("revision"))
    except UserError as problem:
        raise UserError(
            f"{root}: holds an adapter of {name}, not whole weights: {problem}"
        ) from None


def make_encoder(bert: Bert, settings: Settings, head: Sequence[Place]) -> SentenceEncoder:
    """BERT with its pooling and what follows it, read from these folders."""
    names = settings.pooling.split("+")
    encoder = SentenceEncoder(bert, pooling=pooling_of(names), normalize=settings.normalize)
    encoder.dimension *= len(names)
    encoder.head = read_head(head, encoder.dimension)
    encoder.dimension = [encoder.dimension, *(part.width for part in head_modules(encoder))][-1]
    encoder.kept = min(encoder.dimension, settings.truncate_dim or encoder.dimension)
    return encoder


def write_model(
    folder: Path, model: LoadedModel, *, card: str | None = None, dtype: SaveDtype = "float32"
) -> None:
    """Write a model's files into a folder that atomic_folders.staged_folder is making.

    card: its README.md. dtype: of the stored weights. Raises UserError where they are beyond its
    range."""
    if dtype not in get_args(SaveDtype):
        raise UserError(f"dtype is {dtype!r}; it can be {', '.join(get_args(SaveDtype))}")
    parts: dict[str, nn.Module] = {"": model.encoder.bert, **head_folders(model)}
    for name, value in layout_files(model, dtype).items():
        (folder / name).parent.mkdir(exist_ok=True)
        atomic_files.write_json(folder / name, value)
    for path, part in parts.items():
        if weights := part.state_dict():
            stored = {n: tensor.to(getattr(torch, dtype)) for n, tensor in weights.items()}
            for name, tensor in stored.items():
                if not bool(tensor.isfinite().all()):
                    raise UserError(f"tensor {name} holds a number beyond {dtype}'s range")
            save_tensors(folder / path / WHOLE, stored, {"format": "pt"})
    for name, data in model.tokenizer_files.items():
        if name == "tokenizer_config.json":
            data = with_limit(data, model.settings.max_length)
        atomic_files.write_bytes(folder / name, data)
    tokenizer = {**model.tokenizer.parsed, "truncation": None, "padding": None}
    data = json.dumps(tokenizer, ensure_ascii=False, allow_nan=False).encode("utf-8")
    atomic_files.write_bytes(folder / "tokenizer.json", data)
    atomic_files.write_text(folder / "README.md", card or plain_card(model))


def head_folders(model: LoadedModel) -> dict[str, HeadModule]:
    """The modules after the pooling, by the name of their folder; the last Normalize is none."""
    head = head_modules(model.encoder)
    return {f"{number}_{part.kind}": part for number, part in enumerate(head, 2)}


def layout_files(model: LoadedModel, dtype: SaveDtype = "float32") -> dict[str, Any]:
    """The JSON files of layout 3.x, by name."""
    settings, head = model.settings, head_folders(model)
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    kinds |= {path: path.partition("_")[2] for path in head}
    if settings.normalize:
        kinds[f"{len(kinds)}_Normalize"] = "Normalize"
    config = {name: value for name, value in model.config.items() if name != "dtype"}
    # Half the bytes, the same numbers: readers that would compute as the weights are stored are
    # told not to.
    half = {} if dtype == "float32" else {"model_args": {"torch_dtype": "float32"}}
    kept = {} if settings.truncate_dim is None else {"truncate_dim": settings.truncate_dim}
    return {
        "config.json": {**config, "architectures": ["BertModel"], "torch_dtype": dtype},
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds.items())
        ],
        "sentence_bert_config.json": {
            "max_seq_length": settings.max_length,
            "do_lower_case": settings.lower_case,
            **half,
        },
        "1_Pooling/config.json": pooling_file(model),
        **{f"{path}/config.json": part.settings for path, part in head.items() if part.settings},
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": LAYOUT_VERSION, "pytorch": torch.__version__},
            "prompts": dict(settings.prompts),
            "default_prompt_name": settings.default_prompt_name,
            "similarity_fn_name": settings.similarity,
            **kept,
        },
    }


def pooling_file(model: LoadedModel) -> dict[str, Any]:
    """1_Pooling/config.json: flags, or names where several stand in an order that 3.x has not."""
    names = model.settings.pooling.split("+")
    flags = {flag: name in names for flag, name in POOLING_FLAGS.items()}
    in_order = [name for flag, name in POOLING_FLAGS.items() if flags[flag]] == names
    return {
        "word_embedding_dimension": model.encoder.bert.config.hidden_size,
        **(flags if in_order else {"pooling_mode": names}),
        "include_prompt": model.settings.include_prompt,
    }


def with_limit(data: bytes, max_length: int) -> bytes:
    """tokenizer_config.json with the model's own limit: a leftover of 128 would cut texts short in
    other tools."""
    value = {**json.loads(data), "model_max_length": max_length}
    if value.get("tokenizer_class") == "TokenizersBackend":  # transformers 5's name, unknown to 4
        value["tokenizer_class"] = "PreTrainedTokenizerFast"
    for leftover in ("max_length", "stride", "pad_to_multiple_of", "truncation_strategy"):
        value.pop(leftover, None)
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False).encode("utf-8")


def plain_card(model: LoadedModel) -> str:
    """The README.md of a model saved without a training run behind it."""
    template = Path(__file__).with_name("plain_card.md").read_text("utf-8")
    encoder = model.encoder
    is_unit = encoder.normalize and encoder.kept == encoder.dimension
    unit = ", unit length" if is_unit else ""
    return template.format(size=encoder.kept, unit=unit, **vars(model.settings))
