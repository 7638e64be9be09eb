"""A model on disk: opened in either layout of sentence-transformers, written in that of 3.x, which
both 3.x and 6.x open."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minilm_retriever.core.model import SentenceEncoder
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.hub import resolve
from minilm_retriever.pretrained.load_weights import (
    bert_from_tensors,
    bert_tensors,
    parse_bert_config,
)
from minilm_retriever.pretrained.settings import (
    POOLINGS,
    Settings,
    read_file,
    read_json,
    read_limits,
    read_modules,
    read_prompts,
)
from minilm_retriever.pretrained.tokenizer import TextTokenizer
from minilm_retriever.pretrained.tokenizer_files import TOKENIZER_FILES, read_tokenizer
from minilm_retriever.storage import atomic_files, manifest
from minilm_retriever.storage.tensors import save_tensors
from minilm_retriever.types import StrPath

LARGEST_TOKENIZER_BYTES = 1 << 28
LAYOUT_VERSION = "3.4.1"  # the sentence-transformers release whose layout is written


@dataclass(frozen=True)
class LoadedModel:
    """A model and what is needed to save it again, in memory: its folder may go away."""

    encoder: SentenceEncoder
    tokenizer: TextTokenizer
    settings: Settings
    config: Mapping[str, Any]  # config.json as it was
    tokenizer_files: Mapping[str, bytes]

    def fingerprint(self) -> str:
        """SHA-256 over all that decides a vector: weights, configuration, tokenizer, settings."""
        sha256 = hashlib.sha256()
        for name, tensor in sorted(self.encoder.bert.state_dict().items()):
            sha256.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            sha256.update(tensor.detach().cpu().contiguous().numpy().view("uint8").data)
        settings = {"config": vars(self.encoder.bert.config), "settings": vars(self.settings)}
        sha256.update(json.dumps(settings, sort_keys=True, default=dict, allow_nan=False).encode())
        tokenizer = self.tokenizer
        sha256.update(tokenizer.json.encode())
        sha256.update(f"{tokenizer.truncation_side} {tokenizer.split_special}".encode())
        return sha256.hexdigest()


def load_pretrained(name_or_folder: StrPath) -> LoadedModel:
    """Open a model folder of either layout, a plain BertModel folder, or a model of the hub.

    Raises UserError, naming the file, on what is missing, malformed, cut short, changed since it
    was written (where there is a manifest), of another architecture, or not implemented here."""
    folder = resolve(str(name_or_folder))
    if manifest.has_manifest(folder):
        manifest.verify_folder(folder)
    root, modules = read_modules(folder)
    config = read_json(root / "config.json")
    bert_config = parse_bert_config(config, str(root / "config.json"))
    limits = read_limits(root, bert_config.max_position_embeddings)
    settings = Settings(**modules, **limits, **read_prompts(folder))
    files = {
        name: read_file(root / name, LARGEST_TOKENIZER_BYTES)
        for name in TOKENIZER_FILES
        if (root / name).is_file()
    }
    tokenizer = read_tokenizer(root, files, config, **limits)
    files["tokenizer.json"] = tokenizer.file
    if tokenizer.vocab_size > bert_config.vocab_size:
        ids = f"token ids up to {tokenizer.vocab_size - 1} in {tokenizer.where}"
        raise UserError(f"{root}: {ids}, vocab_size {bert_config.vocab_size} in config.json")
    bert = bert_from_tensors(bert_config, bert_tensors(root), str(root))
    encoder = SentenceEncoder(bert, pooling=settings.pooling, normalize=settings.normalize).eval()
    return LoadedModel(encoder, tokenizer, settings, config, files)


def write_model(folder: Path, model: LoadedModel, *, card: str | None = None) -> None:
    """Write a model's files into a folder that atomic_folders.staged_folder is making; card: its
    README.md."""
    weights = model.encoder.bert.state_dict()
    save_tensors(folder / "model.safetensors", weights, {"format": "pt"})
    for name, value in layout_files(model).items():
        (folder / name).parent.mkdir(exist_ok=True)
        atomic_files.write_json(folder / name, value)
    for name, data in model.tokenizer_files.items():
        data = with_limit(name, data, model.settings.max_length)
        atomic_files.write_bytes(folder / name, data)
    atomic_files.write_text(folder / "README.md", card or plain_card(model))


def layout_files(model: LoadedModel) -> dict[str, Any]:
    """The JSON files of layout 3.x, by name."""
    settings = model.settings
    modules = {"Transformer": "", "Pooling": "1_Pooling"}
    if settings.normalize:
        modules["Normalize"] = "2_Normalize"
    poolings = {f"pooling_mode_{flag}": p == settings.pooling for flag, p in POOLINGS.items()}
    return {
        "config.json": {**model.config, "architectures": ["BertModel"], "torch_dtype": "float32"},
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(modules.items())
        ],
        "sentence_bert_config.json": {
            "max_seq_length": settings.max_length,
            "do_lower_case": settings.lower_case,
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": model.encoder.bert.config.hidden_size,
            **poolings,
            "include_prompt": settings.include_prompt,
        },
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": LAYOUT_VERSION, "pytorch": torch.__version__},
            "prompts": dict(settings.prompts),
            "default_prompt_name": settings.default_prompt_name,
            "similarity_fn_name": settings.similarity,
        },
    }


def with_limit(name: str, data: bytes, max_length: int) -> bytes:
    """A tokenizer file with the model's own limit: a leftover of 128 would cut texts short in other
    tools."""
    if name not in ("tokenizer.json", "tokenizer_config.json"):
        return data
    value = json.loads(data)
    if name == "tokenizer.json":
        value |= {"truncation": None, "padding": None}
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    value |= {"model_max_length": max_length}
    for leftover in ("max_length", "stride", "pad_to_multiple_of", "truncation_strategy"):
        value.pop(leftover, None)
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False).encode("utf-8")


def plain_card(model: LoadedModel) -> str:
    """The README.md of a model saved without a training run behind it."""
    template = Path(__file__).with_name("plain_card.md").read_text("utf-8")
    size = model.encoder.bert.config.hidden_size
    unit = ", unit length" if model.settings.normalize else ""
    return template.format(size=size, unit=unit, **vars(model.settings))
