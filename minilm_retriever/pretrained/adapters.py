"""LoRA adapters (Hu et al., 2021) in peft's files, merged into the weights: W + scale B A.

peft itself is not needed. What an adapter may do beside that is refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.json_files import check_keys, check_plain, read_json
from minilm_retriever.pretrained.load_weights import check_setting, read_safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HONOURED = (
    *("base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
)
# Of training, or of which tensors there are: the file of weights shows it.
HARMLESS = (
    *("task_type", "target_modules", "exclude_modules", "modules_to_save", "bias", "revision"),
    *("layers_to_transform", "layers_pattern", "lora_dropout", "inference_mode", "auto_mapping"),
    *("fan_in_fan_out", "megatron_config", "megatron_core", "peft_version", "loftq_config"),
    *("eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "ensure_weight_tying"),
    *("runtime_config",),
)
PLAIN: dict[str, tuple[object, ...]] = {  # settings under which an adapter is W + scale B A
    "peft_type": ("LORA",),
    "use_dora": (False,),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # W itself unchanged
    "trainable_token_indices": (),
    "layer_replication": (),
    "target_parameters": ([],),
    "alora_invocation_tokens": (),
    "use_bdlora": (),
    "arrow_config": (),
    "kasa_config": (),
    "velora_config": (),
    "monteclora_config": (),
}
FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")


def read_adapter(folder: Path) -> dict[str, Any] | None:
    """An adapter's settings, None where the folder has none.

    Raises UserError naming what is malformed or not implemented."""
    path = folder / CONFIG
    if not path.is_file():
        if (folder / WEIGHTS).is_file():
            raise UserError(f"{folder}: an adapter ({WEIGHTS}) without its {CONFIG}")
        return None
    config: dict[str, Any] = read_json(path)
    check_keys(config, (*HONOURED, *HARMLESS, *PLAIN), path)
    check_plain({"peft_type": "no adapter", **config}, PLAIN, path)
    for name, default in (("r", 8), ("lora_alpha", 8)):
        config.setdefault(name, default)
        check_setting(config[name], name, "float", str(path))
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(name) or {}, dict):
            raise UserError(f"{path}: {name} is not an object of numbers by layer")
    return config


def merge(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights `tensors` (BertModel's names) with a folder's adapter merged into them.

    Raises UserError naming a tensor of the adapter that belongs to none of them."""
    path = folder / WEIGHTS
    factors: dict[str, dict[str, Tensor]] = {}
    merged = dict(tensors)
    for full_name, tensor in read_safetensors(folder, WEIGHTS).items():
        name = full_name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if match := FACTOR.fullmatch(name):
            module, embedding, side = match.groups()
            factors.setdefault(module, {})[side] = tensor
            weight = tensors.get(f"{module}.weight")
            is_table = "embeddings." in module
            if weight is None or is_table != bool(embedding):
                raise UserError(f"{path}: {full_name} belongs to no weight of the model")
        elif name in tensors and tensors[name].shape == tensor.shape:
            merged[name] = tensor  # trained whole: a bias, or one of modules_to_save
        elif name not in tensors and name.startswith("pooler."):
            continue  # of a base without one; no vector has a part of it
        else:
            raise UserError(f"{path}: {full_name} belongs to no weight of the model")
    for module, pair in factors.items():
        name = f"{module}.weight"
        merged[name] = merge_one(merged[name], pair, module, config, path)
    return merged


def merge_one(
    weight: Tensor, pair: Mapping[str, Tensor], module: str, config: Mapping[str, Any], path: Path
) -> Tensor:
    """W (out, in) + scale B (out, r) A (r, in), in float64; of a table (rows, H) the transpose."""
    rank = of_layer(config, "rank_pattern", module, config["r"], path)
    alpha = of_layer(config, "alpha_pattern", module, config["lora_alpha"], path)
    if pair.keys() != {"A", "B"} or pair["A"].shape[:1] != (rank,):
        raise UserError(f"{path}: {module} has no lora_A and lora_B of rank {rank}")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    is_table = "embeddings." in module
    try:
        delta = pair["B"].double() @ pair["A"].double() * scale
        delta = delta.T if is_table else delta
    except RuntimeError:
        delta = weight.new_empty(0)
    if delta.shape != weight.shape:
        raise UserError(f"{path}: {module}: lora_B times lora_A is not {tuple(weight.shape)}")
    merged: Tensor = (weight.double() + delta).float()
    return merged


def of_layer(config: Mapping[str, Any], key: str, module: str, default: Any, path: Path) -> Any:
    """A layer's own rank or alpha, by the first name that it ends in (from its beginning, after ^);
    else the default."""
    for pattern, value in (config.get(key) or {}).items():
        name = pattern.removeprefix("^")
        if not re.fullmatch(r"[\w.]+", name):
            raise UserError(f"{path.parent / CONFIG}: {key} has {pattern!r}, not a layer's name")
        check_setting(value, key, "float", str(path.parent / CONFIG))
        if module == name or (name == pattern and module.endswith(f".{name}")):
            return value
    return default
