"""A model on disk: the sentence-transformers folder layout, read (3.x and 6.x) and written (3.x,
which both open).

What pools, normalises and limits a model stands in its folder, never in a flag: `modules.json`,
`1_Pooling`, `sentence_bert_config.json`, `config_sentence_transformers.json`. A module we do not
have is refused by name."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from minilm_retriever.core.model import BertConfig, SentenceEncoder
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.load_weights import bert_from_tensors, bert_tensors
from minilm_retriever.pretrained.tokenizer import TextTokenizer
from minilm_retriever.storage import atomic_files, manifest
from minilm_retriever.storage.tensors import save_tensors

POOLING_FLAGS = (
    "cls_token",
    "mean_tokens",
    "max_tokens",
    "mean_sqrt_len_tokens",
    "weightedmean_tokens",
    "lasttoken",
)
POOLINGS = {"cls_token": "cls", "mean_tokens": "mean"}
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
LARGEST_JSON = (
    1 << 24
)  # bytes; a settings file is small, and one that is not must not fill the memory
LARGEST_TOKENIZER = 1 << 28
LAYOUT_VERSION = "3.4.1"  # the sentence-transformers release whose layout is written


@dataclass(frozen=True)
class Settings:
    """What a model folder says beside its weights."""

    pooling: str = "mean"
    normalize: bool = True
    max_length: int = 256
    lower_case: bool = False
    similarity: str = "cosine"
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    include_prompt: bool = True  # whether the tokens of a prompt are pooled with the text's


@dataclass(frozen=True)
class LoadedModel:
    """A model with what is needed to save it again, held in memory: its folder may go away
    meanwhile."""

    encoder: SentenceEncoder
    tokenizer: TextTokenizer
    settings: Settings
    config: Mapping[str, Any]  # config.json as it was
    tokenizer_files: Mapping[str, bytes]

    def fingerprint(self) -> str:
        """SHA-256 over all that decides a vector: weights, configuration, tokenizer, settings."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.encoder.bert.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().view("uint8").data)
        said = {"config": vars(self.encoder.bert.config), "settings": {**vars(self.settings)}}
        digest.update(json.dumps(said, sort_keys=True, default=dict).encode())
        digest.update(
            retargeted(
                "tokenizer.json", self.tokenizer_files["tokenizer.json"], self.settings.max_length
            )
        )
        return digest.hexdigest()


def open_model(folder: Path) -> LoadedModel:
    """Open a model folder of either layout, or a plain BertModel folder (mean pooling, as
    sentence-transformers does).

    Raises UserError, naming the file, on anything missing, malformed, cut short, changed since it
    was written (where the folder has our manifest), of another architecture, or with a module or
    pooling that we do not have."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder")
    if manifest.has_manifest(folder):
        manifest.verify_folder(folder)
    root, pooling, include_prompt, normalize = read_modules(folder)
    config = read_json(root / "config.json")
    bert_config = BertConfig.from_dict(config, str(root / "config.json"))
    tokenizer_files = {
        name: read_file(root / name, LARGEST_TOKENIZER)
        for name in TOKENIZER_FILES
        if (root / name).is_file()
    }
    if "tokenizer.json" not in tokenizer_files:
        raise UserError(
            f'{root}: lacks tokenizer.json; python -c "from transformers import AutoTokenizer as A; '
            f"A.from_pretrained('{root}').save_pretrained('{root}')\" makes one"
        )
    max_length, lower_case = read_limits(root, bert_config)
    prompts = read_prompts(folder)
    settings = Settings(
        pooling, normalize, max_length, lower_case, *prompts, include_prompt=include_prompt
    )
    tokenizer = TextTokenizer(
        tokenizer_files["tokenizer.json"],
        max_length=max_length,
        lower_case=lower_case,
        where=str(root / "tokenizer.json"),
    )
    if tokenizer.vocab_size > bert_config.vocab_size:
        raise UserError(
            f"{root}: tokenizer.json gives token ids up to {tokenizer.vocab_size - 1}, "
            f"but config.json has a vocabulary of {bert_config.vocab_size}"
        )
    bert = bert_from_tensors(bert_config, bert_tensors(root), str(root))
    encoder = SentenceEncoder(bert, pooling=pooling, normalize=normalize).eval()
    return LoadedModel(encoder, tokenizer, settings, config, tokenizer_files)


def read_modules(folder: Path) -> tuple[Path, str, bool, bool]:
    """Where the transformer's files stand, the pooling, whether it takes prompts in, and whether
    vectors are unit."""
    path = folder / "modules.json"
    if not path.is_file():
        return folder, "mean", True, False
    modules = read_json(path, list)
    try:
        steps = [
            (str(m["type"]).rsplit(".", 1)[-1], inside(folder, str(m["path"]), path))
            for m in modules
        ]
    except (TypeError, KeyError):
        raise UserError(f"{path}: not a list of modules with a type and a path each") from None
    kinds = [kind for kind, _ in steps]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UserError(
                f"{path}: module {kind} is not one we have (Transformer, Pooling, Normalize)"
            )
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(
            f"{path}: modules {', '.join(kinds) or 'none'}; expected Transformer, Pooling and maybe Normalize"
        )
    pooling, include_prompt = read_pooling(steps[1][1] / "config.json")
    return steps[0][1], pooling, include_prompt, kinds[-1] == "Normalize"


def read_pooling(path: Path) -> tuple[str, bool]:
    """The pooling that 1_Pooling/config.json names, in 3.x's flags or 6.x's single name, and
    include_prompt."""
    config = read_json(path)
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        named = mode if isinstance(mode, list) else [mode]
    else:
        named = [
            POOLINGS.get(flag, flag) for flag in POOLING_FLAGS if config.get(f"pooling_mode_{flag}")
        ]
    if len(named) != 1 or named[0] not in POOLINGS.values():
        raise UserError(
            f"{path}: pooling {', '.join(map(str, named)) or 'none'}; only mean or cls can be used"
        )
    return str(named[0]), bool(config.get("include_prompt", True))


def read_limits(root: Path, config: BertConfig) -> tuple[int, bool]:
    """The token limit and whether text is lower-cased first (sentence_bert_config.json, else
    tokenizer_config.json)."""
    path = root / "sentence_bert_config.json"
    stated = read_json(path) if path.is_file() else {}
    limit = stated.get("max_seq_length")
    if limit is None:
        path = root / "tokenizer_config.json"
        limit = (read_json(path) if path.is_file() else {}).get(
            "model_max_length", config.max_position_embeddings
        )
    # transformers writes 1e30 for "no limit".
    if isinstance(limit, bool) or not isinstance(limit, int | float) or limit < 1:
        raise UserError(f"{path}: a token limit of {limit!r}")
    return int(min(limit, config.max_position_embeddings)), bool(stated.get("do_lower_case", False))


def read_prompts(folder: Path) -> tuple[str, dict[str, str], str | None]:
    """The similarity, the prompts and the default prompt's name of
    config_sentence_transformers.json."""
    path = folder / "config_sentence_transformers.json"
    config = read_json(path) if path.is_file() else {}
    similarity = config.get("similarity_fn_name") or "cosine"
    prompts = config.get("prompts") or {}
    default = config.get("default_prompt_name")
    if similarity not in SIMILARITIES:
        raise UserError(f"{path}: similarity {similarity!r} is none of {', '.join(SIMILARITIES)}")
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise UserError(f"{path}: prompts is not an object of strings")
    if default is not None and default not in prompts:
        raise UserError(
            f"{path}: default prompt {default!r} is not among the prompts ({', '.join(prompts) or 'none'})"
        )
    return similarity, prompts, default


def inside(folder: Path, relative: str, named_in: Path) -> Path:
    """folder / relative; UserError where that would leave the folder."""
    parts = PurePosixPath(relative.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{named_in}: path {relative!r} leaves the model folder")
    return folder / parts


def read_file(path: Path, largest: int = LARGEST_JSON) -> bytes:
    """A file's bytes; UserError where it is missing, unreadable, or larger than `largest` bytes."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UserError(
                f"{path}: not a regular file"
            )  # a device has no end, a pipe may have no beginning
        if found.st_size > largest:
            raise UserError(
                f"{path}: {found.st_size} bytes is too large for such a file (at most {largest})"
            )
        return path.read_bytes()
    except OSError as problem:
        raise UserError(f"{path}: {problem.strerror or problem}") from None


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON object (or list) of a file; UserError naming the file and line where it is none."""
    try:
        value = json.loads(read_file(path))
    except json.JSONDecodeError as problem:
        raise UserError(f"{path}:{problem.lineno}: not JSON: {problem.msg}") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as problem:
        raise UserError(f"{path}: not JSON: {problem}") from None
    if not isinstance(value, kind):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, not a {kind.__name__}")
    return value


def write_model(
    folder: Path,
    model: LoadedModel,
    *,
    card: str,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a model's files into `folder` (in the making: folders.staged_folder makes it whole or
    nothing).

    weights: BertModel-named tensors to write in place of the model's own (a best checkpoint's)."""
    settings = model.settings
    save_tensors(
        folder / "model.safetensors", weights or model.encoder.bert.state_dict(), {"format": "pt"}
    )
    for name, value in layout_files(model).items():
        (folder / name).parent.mkdir(exist_ok=True)
        atomic_files.write_json(folder / name, value)
    for name, data in model.tokenizer_files.items():
        atomic_files.write_bytes(folder / name, retargeted(name, data, settings.max_length))
    atomic_files.write_text(folder / "README.md", card)


def layout_files(model: LoadedModel) -> dict[str, Any]:
    """The JSON files of the 3.x layout, by name."""
    settings = model.settings
    flags = {
        f"pooling_mode_{flag}": POOLINGS.get(flag) == settings.pooling for flag in POOLING_FLAGS
    }
    kinds = {"Transformer": "", "Pooling": "1_Pooling"} | (
        {"Normalize": "2_Normalize"} if settings.normalize else {}
    )
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds.items())
    ]
    return {
        "config.json": {**model.config, "architectures": ["BertModel"], "torch_dtype": "float32"},
        "modules.json": modules,
        "sentence_bert_config.json": {
            "max_seq_length": settings.max_length,
            "do_lower_case": settings.lower_case,
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": model.encoder.bert.config.hidden_size,
            **flags,
            "include_prompt": settings.include_prompt,
        },
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": LAYOUT_VERSION, "pytorch": torch.__version__},
            "prompts": dict(settings.prompts),
            "default_prompt_name": settings.default_prompt_name,
            "similarity_fn_name": settings.similarity,
        },
    }


def retargeted(name: str, data: bytes, max_length: int) -> bytes:
    """A tokenizer file that says the model's own limit: a leftover of 128 would cut texts short in
    other tools."""
    if name not in ("tokenizer.json", "tokenizer_config.json"):
        return data
    value = json.loads(data)
    if name == "tokenizer.json":
        value |= {"truncation": None, "padding": None}
    else:
        value |= {"model_max_length": max_length}
        for leftover in ("max_length", "stride", "pad_to_multiple_of", "truncation_strategy"):
            value.pop(leftover, None)
    return json.dumps(
        value, ensure_ascii=False, indent=None if name == "tokenizer.json" else 2
    ).encode("utf-8")


def plain_card(model: LoadedModel) -> str:
    """The README.md of a model saved without a training run behind it."""
    settings, size = model.settings, model.encoder.bert.config.hidden_size
    unit = ", unit length" if settings.normalize else ""
    return (
        "---\npipeline_tag: sentence-similarity\nlibrary_name: sentence-transformers\n"
        "tags:\n- sentence-transformers\n- sentence-similarity\n- feature-extraction\n---\n\n# Sentence encoder\n\n"
        f"A BERT encoder: {settings.pooling} pooling, {size} dimensions{unit}, at most {settings.max_length} tokens, "
        f"{settings.similarity} similarity. Saved by minilm_retriever; opens in sentence-transformers too.\n\n"
        '```python\nfrom minilm_retriever import Encoder\n\nencoder = Encoder.from_pretrained("path/to/this/folder")\n'
        'embeddings = encoder.encode(["A text.", "Another one."])\n```\n'
    )
