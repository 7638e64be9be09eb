"""Weights on disk to a BERT encoder: read, checked against the configuration, loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minilm_retriever.core.model import Bert, BertConfig
from minilm_retriever.errors import UserError
from minilm_retriever.kernels.ops import ACTIVATIONS

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
POSITION_IDS = "embeddings.position_ids"  # 0, 1, 2, ...: a buffer of older transformers, no weight


def parse_bert_config(config: Mapping[str, Any], where: str = "config.json") -> BertConfig:
    """The settings of a config.json that shape the computation.

    Raises UserError, beginning with `where`, on another architecture, a missing setting, or one of
    a wrong type or out of range."""
    kind = config.get("model_type", "bert")
    position = config.get("position_embedding_type") or "absolute"
    if kind != "bert":
        raise UserError(
            f"{where}: model_type is {kind!r}; only BERT encoders (BertModel) can be opened"
        )
    if position != "absolute" or config.get("is_decoder"):
        raise UserError(
            f"{where}: position_embedding_type {position!r} or a decoder is not a BertModel encoder"
        )
    settings = fields(BertConfig)
    missing = [
        item.name for item in settings if item.default is MISSING and item.name not in config
    ]
    if missing:
        raise UserError(f"{where}: lacks {', '.join(missing)}")
    for item in settings:
        check_setting(config.get(item.name, item.default), item.name, str(item.type), where)
    bert = BertConfig(**{item.name: config[item.name] for item in settings if item.name in config})
    heads, sizes = bert.num_attention_heads, (bert.vocab_size, bert.hidden_size)
    if min(*sizes, heads, bert.max_position_embeddings) < 1:
        raise UserError(f"{where}: a size is 0")
    if bert.hidden_size % heads:
        raise UserError(f"{where}: hidden_size {bert.hidden_size} is no multiple of {heads} heads")
    if bert.hidden_act not in ACTIVATIONS:
        raise UserError(
            f"{where}: hidden_act {bert.hidden_act!r} is not one of gelu, gelu_new, relu"
        )
    return bert


def check_setting(value: object, name: str, kind: str, where: str) -> None:
    """UserError where a setting of config.json is of another type than `kind`, or out of range."""
    types = {"int": (int,), "str": (str,), "float": (int, float)}[kind]
    if not isinstance(value, types) or isinstance(value, bool):
        raise UserError(f"{where}: {name} is {value!r}, which is not a {kind}")
    if isinstance(value, int | float) and not 0 <= value < 2**31:
        raise UserError(f"{where}: {name} is {value!r}, out of range")


def bert_from_tensors(config: BertConfig, tensors: Mapping[str, Tensor], where: str) -> Bert:
    """A Bert in evaluation mode holding `tensors` (BertModel's names), as float32.

    Raises UserError naming the first missing or unexpected tensor, wrong shape, or value that is
    not finite."""
    tensors = {name: tensor for name, tensor in tensors.items() if name != POSITION_IDS}
    last = f"encoder.layer.{config.num_hidden_layers - 1}.output.dense.weight"
    if config.num_hidden_layers and last not in tensors:  # before millions of layers are made
        raise UserError(f"{where}: tensor {last} is missing")
    try:
        with torch.device("meta"):  # shapes without memory: config.json may state any size
            bert = Bert(config, pooler="pooler.dense.weight" in tensors)
    except RuntimeError:
        raise UserError(f"{where}: config.json states a tensor of more than 2^63 bytes") from None
    expected = bert.state_dict()
    for name in [*expected, *tensors]:
        if problem := _problem(tensors.get(name), expected.get(name)):
            raise UserError(f"{where}: tensor {name} {problem}")
    # Own memory, not the file's map: a file that changes later must not change the model.
    own = {name: tensors[name].to(torch.float32, copy=True).contiguous() for name in expected}
    for name, tensor in own.items():
        if not math.isfinite(float(tensor.sum())) and not bool(tensor.isfinite().all()):
            raise UserError(f"{where}: tensor {name} holds a value that is not finite")
    bert.load_state_dict(own, assign=True)
    return bert.eval()


def _problem(tensor: Tensor | None, expected: Tensor | None) -> str | None:
    if tensor is None:
        return "is missing"
    if expected is None:
        return "is unexpected"
    if tensor.shape != expected.shape:
        return f"has shape {tuple(tensor.shape)}, not {tuple(expected.shape)}"
    return (
        None if tensor.is_floating_point() else f"holds {tensor.dtype}, not floating-point numbers"
    )


def bert_tensors(folder: Path) -> dict[str, Tensor]:
    """BertModel's weights by BertModel's names, of model.safetensors or its shards.

    A `bert.` prefix is taken off, and with it heads of other tasks, which have none; LayerNorm's
    old names gamma and beta become weight and bias."""
    whole = folder / "model.safetensors"
    paths = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    if not paths:
        raise UserError(_no_weights(folder))
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= _read_safetensors(path)
    if any(name.startswith("bert.") for name in tensors):
        tensors = {name[5:]: t for name, t in tensors.items() if name.startswith("bert.")}
    for name in list(tensors):
        new_name = name.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias")
        tensors[new_name] = tensors.pop(name)
    tensors.pop(POSITION_IDS, None)
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as problem:
        why = f"cut short or no safetensors file ({problem}): get it again"
    with suppress(OSError), path.open("rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            why = "a Git LFS pointer, not the weights: run `git lfs pull`"
    raise UserError(f"{path} is {why}")


def _no_weights(folder: Path) -> str:
    """What to do about a folder without safetensors files."""
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if not pickles:
        return f"{folder} has no model.safetensors: no model folder, or its weights were not copied"
    place = repr(str(folder))
    return (
        f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when read: if you "
        'trust it, convert it with `python -c "from transformers import BertModel as B; '
        f'B.from_pretrained({place}).save_pretrained({place})"`'
    )
