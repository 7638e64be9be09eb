"""Settings of a model folder in the layout of sentence-transformers 3.x or 6.x: token limit,
similarity, prompts. A setting that is not known, or a value not implemented, is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.json_files import check_keys, check_plain, read_json

# Files of sentence-transformers, and the settings that they may hold: others are not known here,
# and may change a vector. docs/model_folders.md says what each does.
MODEL_FILE = "config_sentence_transformers.json"
MODEL_KEYS = (
    *("__version__", "model_type", "prompts", "default_prompt_name", "similarity_fn_name"),
    *("truncate_dim", "requirements"),
)
TRANSFORMER_FILES = [  # the first of them counts
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
TRANSFORMER_KEYS = ("max_seq_length", "do_lower_case", "processing_kwargs", "unpad_inputs")
TOKENIZER_ARGUMENTS = ("processor_kwargs", "tokenizer_args")  # of transformers
ARGUMENTS = (*TOKENIZER_ARGUMENTS, "model_args", "model_kwargs", "config_args", "config_kwargs")
# By key, the values that change nothing.
PLAIN_TRANSFORMER: dict[str, tuple[object, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "modality_config": (
        {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        {"text": {"method": "forward", "method_output_name": ["last_hidden_state"]}},
    ),
    "tokenizer_name_or_path": (),
    "query_length": (),
    "document_length": (),
    "query_expansion": (),
}
# Arguments that change no number here: weights are computed with in float32, whatever their type.
PLAIN_ARGUMENTS = ("torch_dtype", "dtype", "attn_implementation", "trust_remote_code", "use_fast")
PLAIN_TEXT: dict[str, tuple[object, ...]] = {  # processing_kwargs of texts
    "padding": (True, "longest", "max_length"),
    "truncation": (True, "longest_first", "only_first"),
    "return_tensors": ("pt",),
    "add_special_tokens": (True,),
}
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


@dataclass(frozen=True)
class Settings:
    """What shapes a vector besides the weights and the tokenizer."""

    pooling: str = "mean"  # several side by side: "cls+mean"
    normalize: bool = True
    max_length: int = 256  # tokens, [CLS] and [SEP] included
    lower_case: bool = False
    similarity: str = "cosine"
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    include_prompt: bool = True  # whether the tokens of a prompt are pooled with the text's
    truncate_dim: int | None = None  # leading numbers of a vector that are kept


def read_limits(root: Path, words: Path, positions: int) -> dict[str, Any]:
    """The settings max_length and lower_case, for a model of so many positions.

    root: the transformer's folder; words: its tokenizer's."""
    names = [name for name in TRANSFORMER_FILES if (root / name).is_file()]
    path = root / (names or TRANSFORMER_FILES)[0]
    config = read_json(path) if names else {}
    check_keys(config, (*TRANSFORMER_KEYS, *PLAIN_TRANSFORMER, *ARGUMENTS), path)
    check_plain(config, PLAIN_TRANSFORMER, path)
    limits = []  # by rank: of processing_kwargs, arguments, the model, the tokenizer
    processing = config.get("processing_kwargs") or {}
    for kind in ("common", "text"):
        options = dict(processing.get(kind) or {})
        limits.append((path, options.pop("max_length", None)))
        check_keys(options, tuple(PLAIN_TEXT), path)
        check_plain(options, PLAIN_TEXT, path)
    for key in ARGUMENTS:
        options = dict(config.get(key) or {})
        if key in TOKENIZER_ARGUMENTS:
            limits.append((path, options.pop("model_max_length", None)))
        check_keys(options, PLAIN_ARGUMENTS, path)
    limits.append((path, config.get("max_seq_length")))
    path = words / "tokenizer_config.json"
    tokenizer = read_json(path) if path.is_file() else {}
    limits.append((path, tokenizer.get("model_max_length", tokenizer.get("max_len"))))
    path, limit = next((pair for pair in limits if pair[1] is not None), (path, positions))
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 1:
        raise UserError(f"{path}: a token limit of {limit!r}")
    # transformers writes 1e30 for "no limit".
    return {
        "max_length": int(min(limit, positions)),
        "lower_case": bool(config.get("do_lower_case", False)),
    }


def read_prompts(folder: Path) -> dict[str, Any]:
    """The settings similarity, prompts, default_prompt_name and truncate_dim."""
    path = folder / MODEL_FILE
    config = read_json(path) if path.is_file() else {}
    check_keys(config, MODEL_KEYS, path)
    kind = config.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise UserError(f"{path}: model_type is {kind!r}; only a SentenceTransformer can be opened")
    similarity = config.get("similarity_fn_name") or "cosine"
    prompts = config.get("prompts") or {}
    default, size = config.get("default_prompt_name"), config.get("truncate_dim")
    if similarity not in SIMILARITIES:
        raise UserError(f"{path}: similarity {similarity!r} is none of {', '.join(SIMILARITIES)}")
    texts = prompts.values() if isinstance(prompts, dict) else [0]
    if not all(isinstance(prompt, str | None) for prompt in texts):
        raise UserError(f"{path}: prompts is not an object of strings")
    if default is not None and default not in (*prompts, "query", "document"):
        known = ", ".join(prompts) or "none"
        raise UserError(f"{path}: default prompt {default!r} is not among the prompts ({known})")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise UserError(f"{path}: truncate_dim is {size!r}; it must be at least 1")
    return {
        "similarity": similarity,
        "prompts": {name: prompt or "" for name, prompt in prompts.items()},
        "default_prompt_name": default if default in prompts else None,
        "truncate_dim": size,
    }
