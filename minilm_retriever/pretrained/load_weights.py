"""Weights on disk to a BERT encoder: read, checked against the configuration, loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minilm_retriever.core.model import Bert, BertConfig
from minilm_retriever.errors import UserError, first_line
from minilm_retriever.kernels.ops import ACTIVATIONS
from minilm_retriever.pretrained.json_files import inside, read_json

WHOLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
POSITION_IDS = "embeddings.position_ids"  # 0, 1, 2, ...: a buffer of older transformers, no weight


# Settings of config.json under which BertModel computes something else, and the values that don't.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "model_type": ("bert",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "quantization_config": (),
    "auto_map": ({},),
}
MOST_LABELS = 1 << 16  # of a head that is not read; transformers makes a table of them


def parse_bert_config(config: Mapping[str, Any], where: str = "config.json") -> BertConfig:
    """The settings of a config.json that shape the computation.

    Raises UserError, beginning with `where`, on another architecture, a missing setting, or one of
    a wrong type or out of range."""
    for name, plain in UNSUPPORTED.items():
        if config.get(name) is not None and config[name] not in plain:
            value = shown(config[name])
            raise UserError(
                f"{where}: {name} is {value}; only BERT encoders (BertModel) can be opened"
            )
    settings = fields(BertConfig)
    missing = [
        item.name for item in settings if item.default is MISSING and item.name not in config
    ]
    if missing:
        raise UserError(f"{where}: lacks {', '.join(missing)}")
    for item in settings:
        most = 1 if item.name.endswith(("_prob", "_eps")) else 2**31
        value = config.get(item.name, item.default)
        check_setting(value, item.name, str(item.type), where, below=most)
    bert = BertConfig(**{item.name: config[item.name] for item in settings if item.name in config})
    heads, sizes = bert.num_attention_heads, (bert.vocab_size, bert.hidden_size)
    if min(*sizes, heads, bert.max_position_embeddings, bert.type_vocab_size) < 1:
        raise UserError(f"{where}: a size is 0")
    if bert.hidden_size % heads:
        raise UserError(f"{where}: hidden_size {bert.hidden_size} is no multiple of {heads} heads")
    if bert.hidden_act not in ACTIVATIONS:
        raise UserError(
            f"{where}: hidden_act {bert.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}"
        )
    rows = bert.vocab_size
    for name, least, below in (("num_labels", 0, MOST_LABELS), ("pad_token_id", -rows, rows)):
        if config.get(name) is not None:  # not used here; other readers fail on them
            check_setting(config[name], name, "int", where, least=least, below=below)
    return bert


def check_setting(
    value: object, name: str, kind: str, where: str, *, least: int = 0, below: int = 2**31
) -> None:
    """UserError where a setting of config.json is of another type than `kind`, or out of range."""
    types = {"int": (int,), "str": (str,), "float": (int, float)}[kind]
    if not isinstance(value, types) or isinstance(value, bool):
        raise UserError(f"{where}: {name} is {shown(value)}, which is not a {kind}")
    if isinstance(value, int | float) and not least <= value < below:
        raise UserError(f"{where}: {name} is {shown(value)}, out of range")


def shown(value: object) -> str:
    """A setting's value for an error's one line."""
    text = repr(value)
    return text if len(text) < 60 else f"{text[:56]} ..."


def bert_from_tensors(config: BertConfig, tensors: Mapping[str, Tensor], where: str) -> Bert:
    """A Bert in evaluation mode holding `tensors` (BertModel's names), as float32.

    Raises UserError naming the first missing or unexpected tensor, wrong shape, or value that is
    not finite."""
    tensors = {name: tensor for name, tensor in tensors.items() if name != POSITION_IDS}
    bert = empty_bert(config, tensors, where)
    bert.load_state_dict(check_tensors(tensors, bert.state_dict(), where), assign=True)
    return bert.eval()


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """The tensors as float32, in memory of their own: a file that changes later must not change
    the model.

    Raises UserError naming the first that is missing, unexpected, of another shape, or holds a
    value that is not finite."""
    for name in [*expected, *tensors]:
        if problem := _problem(tensors.get(name), expected.get(name)):
            raise UserError(f"{where}: tensor {name} {problem}")
    own = {name: tensors[name].to(torch.float32, copy=True).contiguous() for name in expected}
    for name, tensor in own.items():
        if not math.isfinite(float(tensor.sum())) and not bool(tensor.isfinite().all()):
            raise UserError(f"{where}: tensor {name} holds a value that is not finite")
    return own


def empty_bert(config: BertConfig, tensors: Mapping[str, Tensor], where: str) -> Bert:
    """A Bert without memory for its weights, no larger than what `tensors` hold.

    Names may have a prefix. config.json may state any size: UserError where it states more than
    there is, before that is made."""
    last = f"encoder.layer.{config.num_hidden_layers - 1}.output.dense.weight"
    if config.num_hidden_layers and not any(name.endswith(last) for name in tensors):
        raise UserError(f"{where}: tensor {last} is missing")
    try:
        with torch.device("meta"):
            bert = Bert(config, pooler="pooler.dense.weight" in tensors)
    except RuntimeError:
        raise UserError(f"{where}: config.json states a tensor of more than 2^63 bytes") from None
    return bert


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
    """BertModel's weights by BertModel's names: as they are where they are stored so, else (a
    `bert.` prefix, LayerNorm's old names gamma and beta) as transformers reads them."""
    tensors = read_safetensors(folder)
    tensors = {name: t for name, t in tensors.items() if not name.endswith(POSITION_IDS)}
    old_names = any(name.endswith((".gamma", ".beta")) for name in tensors)
    if "embeddings.word_embeddings.weight" in tensors and not old_names:
        return tensors
    return through_transformers(folder, tensors)


def through_transformers(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BertModel's weights as transformers maps a folder's tensors to them.

    transformers is given numbers that were checked and tensors that were read here; of the folder
    itself it sees nothing. Weights that it would draw at random, and weights of the encoder that
    it would leave out, are refused."""
    config = parse_bert_config(read_json(folder / "config.json"), str(folder / "config.json"))
    needed = sum(weight.numel() for weight in empty_bert(config, tensors, str(folder)).parameters())
    if needed > sum(tensor.numel() for tensor in tensors.values()):
        raise UserError(f"{folder}: config.json states {needed} weights, there are fewer")
    for name, tensor in tensors.items():
        if name.endswith(("weight", "bias")) and not tensor.is_floating_point():
            raise UserError(f"{folder}: tensor {name} {_problem(tensor, tensor)}")
    import transformers

    with _quiet_transformers():
        try:
            model, info = transformers.BertModel.from_pretrained(
                None,
                config=transformers.BertConfig(**asdict(config)),
                state_dict={name: tensor.float() for name, tensor in tensors.items()},
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError, KeyError) as problem:
            why = first_line(problem)
            raise UserError(f"transformers cannot read a BertModel from {folder}: {why}") from None
    drawn = {name.removeprefix("bert.") for name in info["missing_keys"]}
    if missing := sorted(name for name in drawn if not name.startswith("pooler.")):
        raise UserError(
            f"{folder} lacks {len(missing)} of BertModel's weights, the first is {missing[0]}"
        )
    parts = ("bert.", "embeddings.", "encoder.")
    if unread := sorted(name for name in info["unexpected_keys"] if name.startswith(parts)):
        raise UserError(f"{folder}: tensor {unread[0]} is unexpected")
    return {name: t for name, t in model.state_dict().items() if name not in drawn}


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No reports and no bars from transformers."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def read_safetensors(folder: Path, name: str = WHOLE) -> dict[str, Tensor]:
    """All tensors of a folder's weights: of the file, or of the shards that its index names."""
    index = folder / f"{name}.index.json"
    if (folder / name).is_file():
        paths = [folder / name]
    elif index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
            raise UserError(f"{index}: no weight_map of tensors to files")
        paths = [inside(folder, shard, index) for shard in sorted(set(shards.values()))]
    else:
        raise UserError(_no_weights(folder, name))
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= _read_file(path)
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as problem:
        why = f"cut short or no safetensors file ({problem}): get it again"
    with suppress(OSError), path.open("rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            why = "a Git LFS pointer, not the weights: run `git lfs pull`"
    raise UserError(f"{path} is {why}")


def _no_weights(folder: Path, name: str = WHOLE) -> str:
    """What to do about a folder without a safetensors file of this name."""
    stem = name.partition("_")[0] if name != WHOLE else ""
    pickles = sorted(path.name for path in folder.glob(f"{stem}*") if path.suffix in PICKLES)
    if not pickles:
        others = ", ".join(sorted(path.name for path in folder.glob("*.safetensors")))
        beside = f" (but {others})" if others else ""
        return f"{folder} has no {name}{beside}: no model folder, or its weights were not copied"
    place, config = repr(str(folder)), folder / "config.json"
    code = "from transformers import BertModel as B; "
    code += f"B.from_pretrained({place}).save_pretrained({place})"
    if stem or config.is_file() and "model_type" not in read_json(config):  # of an adapter, a Dense
        old, new = (repr(str(folder / file)) for file in (pickles[0], name))
        code = "import torch; from safetensors.torch import save_file; "
        code += f"save_file(torch.load({old}, weights_only=True), {new})"
    return (
        f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when read: if you "
        f'trust it, convert it with `python -c "{code}"`'
    )
