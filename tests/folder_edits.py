"""Changes to a model folder, as people publish theirs: another pooling, module, tokenizer, adapter.

torch, safetensors, tokenizers alone: a peer's environment runs them, too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

HIDDEN, FFN, LAYERS = 32, 64, 2
Edit = Callable[[Path], None]


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Set keys of a JSON file; ... takes a key away."""
    path = folder / name
    value = json.loads(path.read_text("utf-8")) if path.exists() else {}
    value.update(changes)
    write(folder, name, {key: item for key, item in value.items() if item is not ...})


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value, indent=2), "utf-8")


def edited(name: str, **changes: Any) -> Edit:
    return lambda folder: edit(folder, name, **changes)


def both(*edits: Edit) -> Edit:
    return lambda folder: [each(folder) for each in edits][0]


def draw(*shape: int, seed: int = 0, scale: float = 0.3) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Pooling and what follows it.

FLAGS = {
    "cls": "cls_token",
    "mean": "mean_tokens",
    "max": "max_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}


def pooling(*names: str, include_prompt: bool = True) -> Edit:
    """By the flags of 3.x."""
    flags = {f"pooling_mode_{flag}": name in names for name, flag in FLAGS.items()}
    return edited("1_Pooling/config.json", **flags, include_prompt=include_prompt)


def pooling_by_name(*names: str) -> Edit:
    """By the names of 6.x, in this order."""
    value = {"embedding_dimension": HIDDEN, "pooling_mode": list(names), "include_prompt": True}
    return lambda folder: write(folder, "1_Pooling/config.json", value)


def modules(*kinds: str, width: int = HIDDEN, **settings: Any) -> Edit:
    """These modules after the pooling; settings: of every Dense."""

    def make(folder: Path) -> None:
        types = ["Transformer", "Pooling", *kinds]
        paths = ["", "1_Pooling", *(f"{n}_{kind}" for n, kind in enumerate(kinds, 2))]
        listed = [
            {"idx": n, "name": str(n), "path": p, "type": f"sentence_transformers.models.{kind}"}
            for n, (p, kind) in enumerate(zip(paths, types, strict=True))
        ]
        write(folder, "modules.json", listed)
        size = width
        for number, kind in enumerate(kinds, 2):
            path = folder / f"{number}_{kind}"
            path.mkdir(exist_ok=True)
            if kind == "Dense":
                size = dense(path, size, number, **settings)
            elif kind == "LayerNorm":
                write(path, "config.json", {"dimension": size})
                norm = {"norm.weight": 1 + draw(size, seed=1), "norm.bias": draw(size, seed=2)}
                save_file(norm, path / "model.safetensors", {"format": "pt"})
            elif kind == "Dropout":
                write(path, "config.json", {"dropout": 0.2})

    return make


def dense(
    path: Path,
    size: int,
    seed: int,
    outputs: int = 24,
    bias: bool = True,
    activation: str = "torch.nn.modules.activation.Tanh",
    **more: Any,
) -> int:
    value = {"in_features": size, "out_features": outputs, "bias": bias}
    write(path, "config.json", {**value, "activation_function": activation, **more})
    weights = {"linear.weight": draw(outputs, size, seed=seed, scale=0.1)}
    if bias:
        weights["linear.bias"] = draw(outputs, seed=seed + 1)
    if more.get("use_residual") and outputs != size:
        weights["residual.weight"] = draw(outputs, size, seed=seed + 2)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return outputs


# Weights.


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Edit:
    def make(folder: Path) -> None:
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return make


def prefixed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"bert.{name}": tensor for name, tensor in tensors.items()}


def old_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    new = {"Norm.weight": "Norm.gamma", "Norm.bias": "Norm.beta"}
    return {
        name.replace("Norm.weight", new["Norm.weight"]).replace("Norm.bias", new["Norm.bias"]): t
        for name, t in tensors.items()
    }


def with_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rest = {name: t for name, t in prefixed(tensors).items() if "pooler" not in name}
    return {**rest, "cls.predictions.bias": torch.zeros(640)}


def half(dtype: torch.dtype) -> Edit:
    name = str(dtype).removeprefix("torch.")
    return both(
        weights(lambda tensors: {key: tensor.to(dtype) for key, tensor in tensors.items()}),
        edited("config.json", dtype=name),
    )


def sharded(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, where = sorted(tensors), {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        part = {name: tensors[name] for name in names[number::3]}
        save_file(part, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    write(folder, "model.safetensors.index.json", {"metadata": {}, "weight_map": where})


def size(layers: int, hidden: int, heads: int, inner: int, **more: Any) -> Edit:
    """Another architecture, its weights drawn."""

    def make(folder: Path) -> None:
        old, new = load_file(folder / "model.safetensors"), {}
        sizes = {HIDDEN: hidden, FFN: inner, 64: more.get("max_position_embeddings", 64)}
        for name, tensor in old.items():
            shape = [sizes.get(n, n) for n in tensor.shape]
            if "position_embeddings" in name:
                shape = [more.get("max_position_embeddings", 64), hidden]
            elif "intermediate" in name:
                shape = [inner, hidden][: tensor.dim()]
            elif ".output.dense.weight" in name and "attention" not in name:
                shape = [hidden, inner]
            mean = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            for layer in range(layers):
                key = name.replace("layer.0.", f"layer.{layer}.")
                if "layer.1." not in name:
                    new[key] = mean + draw(*shape, seed=len(new), scale=0.15)
        save_file(new, folder / "model.safetensors", {"format": "pt"})
        edit(
            folder,
            "config.json",
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=inner,
            **more,
        )
        edit(folder, "1_Pooling/config.json", word_embedding_dimension=hidden)

    return make


# Adapters.


def adapter(
    *targets: str,
    rank: int = 4,
    ranks: dict[str, int] | None = None,
    beside: bool = True,
    **more: Any,
) -> Edit:
    """peft's files over these modules' names; beside: in the folder of the base weights, else the
    folder `base` next to it has them."""

    def make(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        delta: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            module = name.removesuffix(".weight")
            if not name.endswith(".weight") or not any(module.endswith(t) for t in targets):
                continue
            r = next((n for key, n in (ranks or {}).items() if module.endswith(key)), rank)
            rows, columns = tensor.shape
            seed, key = len(delta), f"base_model.model.{module}"
            if "embeddings" in module:
                delta[f"{key}.lora_embedding_A"] = draw(r, rows, seed=seed)
                delta[f"{key}.lora_embedding_B"] = draw(columns, r, seed=seed + 1)
            else:
                scale = 0.3 * HIDDEN / min(rows, columns)
                delta[f"{key}.lora_A.weight"] = draw(r, columns, seed=seed, scale=scale)
                delta[f"{key}.lora_B.weight"] = draw(rows, r, seed=seed + 1)
            if more.get("bias") == "all":
                delta[f"{key}.base_layer.bias"] = draw(rows, seed=seed + 2)
        base = folder.with_name(f"{folder.name}-base")
        shutil.copytree(folder, base)
        settings = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": rank}
        settings |= {"lora_alpha": 6, "target_modules": list(targets), "inference_mode": True}
        if ranks:
            settings["rank_pattern"] = ranks
        write(folder, "adapter_config.json", {**settings, **more})
        save_file(delta, folder / "adapter_model.safetensors", {"format": "pt"})
        if not beside:
            (folder / "model.safetensors").unlink()
            (folder / "config.json").unlink()

    return make


# Tokenizers.


def remove(*names: str) -> Edit:
    return lambda folder: [(folder / name).unlink() for name in names][0]


def of_tokenizer(**changes: Any) -> Edit:
    return edited("tokenizer_config.json", **changes)


def unigram(**config: Any) -> Edit:
    """SentencePiece's kind of tokenizer in place of BERT's."""

    def make(folder: Path) -> None:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        letters = [*"abcdefghijklmnopqrstuvwxyz.", "▁", "▁the", "an", "▁n", "in", "er", "ea", "▁a"]
        ends = {"cls": ["<s>", 0], "sep": ["</s>", 2], "type": "BertProcessing"}
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        split = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
        if config["tokenizer_class"] == "XLMRobertaTokenizer":
            split = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, split]}
        value = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": i, "content": token, "special": True, **plain}
                for i, token in enumerate(special)
            ],
            "normalizer": None,
            "pre_tokenizer": split,
            "post_processor": ends,
            "decoder": None,
            "model": {
                "type": "Unigram",
                "unk_id": 3,
                "byte_fallback": False,
                "vocab": [[piece, -0.1 * n] for n, piece in enumerate([*special, *letters])],
            },
        }
        write(folder, "tokenizer.json", value)
        (folder / "vocab.txt").unlink()
        (folder / "special_tokens_map.json").unlink()
        names = {"bos": 0, "eos": 2, "sep": 2, "cls": 0, "unk": 3, "pad": 1, "mask": 4}
        tokens = {f"{name}_token": special[i] for name, i in names.items()}
        write(folder, "tokenizer_config.json", {**tokens, "model_max_length": 64, **config})

    return make


# Whole folders.


def sixth(folder: Path) -> None:
    """The JSON files of layout 6.x."""
    kinds = {
        "": "base.modules.transformer.Transformer",
        "1_Pooling": "sentence_transformer.modules.pooling.Pooling",
        "2_Normalize": "base.modules.normalize.Normalize",
    }
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    names = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    write(folder, "modules.json", listed)
    write(folder, "1_Pooling/config.json", {"embedding_dimension": HIDDEN, "pooling_mode": "mean"})
    write(folder, "2_Normalize/config.json", names)
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    write(
        folder,
        "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": text},
            "module_output_name": "token_embeddings",
        },
    )
    write(
        folder,
        "config_sentence_transformers.json",
        {
            "__version__": {"sentence_transformers": "6.2.0"},
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def plain(folder: Path) -> None:
    """A BertModel's folder that sentence-transformers never wrote."""
    shutil.rmtree(folder / "1_Pooling")
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()


def prompts(default: str | None = None, **texts: str) -> Edit:
    return edited("config_sentence_transformers.json", prompts=texts, default_prompt_name=default)
