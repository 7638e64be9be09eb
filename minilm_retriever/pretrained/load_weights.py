"""Weights on disk to a BERT encoder: read, checked against the configuration, loaded."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilm_retriever.core.model import Bert, BertConfig
from minilm_retriever.errors import UserError, first_line


def bert_from_tensors(config: BertConfig, tensors: Mapping[str, Tensor], where: str) -> Bert:
    """A Bert in evaluation mode holding `tensors` (BertModel's names), as float32.

    Raises UserError naming the first missing or unexpected tensor, wrong shape, or non-finite
    value."""
    tensors = {name: t for name, t in tensors.items() if name != "embeddings.position_ids"}
    refuse_false_sizes(config, tensors, where)
    bert = Bert(config, pooler="pooler.dense.weight" in tensors)
    wanted = bert.state_dict()
    for name, blank in wanted.items():
        if name not in tensors:
            raise UserError(f"{where}: tensor {name} is missing")
        if tensors[name].shape != blank.shape:
            raise UserError(
                f"{where}: tensor {name} has shape {tuple(tensors[name].shape)}, not {tuple(blank.shape)}"
            )
        if not tensors[name].is_floating_point():
            raise UserError(
                f"{where}: tensor {name} holds {tensors[name].dtype}, not floating-point numbers"
            )
    for name in tensors:
        if name not in wanted:
            raise UserError(f"{where}: unexpected tensor {name}")
    # Own memory, not the file's map: a file that changes later must not change the model.
    own = {name: tensors[name].to(torch.float32, copy=True).contiguous() for name in wanted}
    for name, tensor in own.items():
        if not math.isfinite(float(tensor.sum())) and not bool(tensor.isfinite().all()):
            raise UserError(f"{where}: tensor {name} holds a value that is not finite")
    bert.load_state_dict(own, assign=True)
    if bert.pooler is not None:
        bert.pooler.requires_grad_(False)
    return bert.eval()


def refuse_false_sizes(config: BertConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """UserError where config.json claims other sizes than the file has, before memory is asked for
    and layers made."""
    last = f"encoder.layer.{config.num_hidden_layers - 1}"
    sizes = {
        "embeddings.word_embeddings.weight": (config.vocab_size, config.hidden_size),
        "embeddings.position_embeddings.weight": (
            config.max_position_embeddings,
            config.hidden_size,
        ),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, config.hidden_size),
        f"{last}.intermediate.dense.weight": (config.intermediate_size, config.hidden_size),
    }
    for name, size in sizes.items():
        if config.num_hidden_layers == 0 and name.startswith(last):
            continue
        if name not in tensors:
            raise UserError(f"{where}: tensor {name} is missing")
        if tuple(tensors[name].shape) != size:
            raise UserError(
                f"{where}: tensor {name} has shape {tuple(tensors[name].shape)}, not {size}"
            )


PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def bert_tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    """BertModel's weights by BertModel's names: read directly where stored so, else through
    transformers."""
    from safetensors.torch import load_file

    folder = Path(folder)
    names = _readable_weights(folder)
    if "embeddings.word_embeddings.weight" in names and not any(
        name.endswith((".gamma", ".beta")) for name in names
    ):
        tensors = load_file(folder / "model.safetensors")
    else:
        tensors = _through_transformers(folder)
    tensors.pop(
        "embeddings.position_ids", None
    )  # 0, 1, 2, ...: a buffer of older transformers, no weight
    return tensors


def _readable_weights(folder: Path) -> set[str]:
    """The tensor names in model.safetensors ("" of them when sharded), every safetensors file found
    whole."""
    from safetensors import SafetensorError, safe_open

    names: set[str] = set()
    stored = sorted(folder.glob("*.safetensors"))
    if not stored:
        raise UserError(_no_weights(folder))
    for path in stored:
        try:
            with safe_open(path, framework="pt") as tensors:
                if path.name == "model.safetensors":
                    names = set(tensors.keys())
        except (SafetensorError, OSError) as fault:
            with contextlib.suppress(OSError), path.open("rb") as file:
                if file.read(24) == b"version https://git-lfs.":
                    raise UserError(
                        f"{path} is a Git LFS pointer, not the weights: run `git lfs pull`"
                    ) from None
            raise UserError(
                f"{path} is cut short or no safetensors file ({fault}): get it again"
            ) from None
    return names


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if not pickles:
        return f"{folder} has no model.safetensors: it is no model folder, or its weights were not copied"
    return (
        f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when read: if you trust it, convert "
        f'it with `python -c "from transformers import BertModel as B; B.from_pretrained({str(folder)!r})'
        f'.save_pretrained({str(folder)!r})"`'
    )


def _through_transformers(folder: Path) -> dict[str, torch.Tensor]:
    """Shards, a `bert.` prefix, old names: BertModel knows them all. What it had to invent is
    refused."""
    from transformers import BertModel
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loaded: tuple[Any, dict[str, Any]] = BertModel.from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, local_files_only=True
        )
    except (OSError, RuntimeError, ValueError, KeyError) as fault:
        raise UserError(
            f"transformers cannot read a BertModel from {folder}: {first_line(fault)}"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    model, info = loaded
    invented = set(info["missing_keys"])
    tensors: dict[str, torch.Tensor] = {
        name: t for name, t in model.state_dict().items() if name not in invented
    }
    if missing := sorted(
        name for name in invented if not name.startswith("pooler.")
    ):  # nobody uses the pooler
        raise UserError(
            f"{folder} lacks {len(missing)} of BertModel's weights, the first is {missing[0]}"
        )
    return tensors
