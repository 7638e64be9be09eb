"""Poolings beside mean and cls, and what may follow a pooling: Dense, LayerNorm, Dropout and
Normalize, each as in sentence-transformers 6.2.0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minilm_retriever.core.model import (
    Pool,
    SentenceEncoder,
    at_least_float32,
    first_token,
    l2_normalize,
    masked_mean,
)
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.json_files import check_keys, read_json
from minilm_retriever.pretrained.load_weights import check_setting, check_tensors, read_safetensors
from minilm_retriever.pretrained.pipeline import Place


def largest(hidden: Tensor, mask: Tensor) -> Tensor:
    """Largest number of each dimension over a row's tokens."""
    hidden = at_least_float32(hidden).masked_fill(mask.unsqueeze(-1) == 0, -torch.inf)
    return hidden.max(dim=1).values


def mean_sqrt_length(hidden: Tensor, mask: Tensor) -> Tensor:
    """Sum over a row's tokens, divided by the square root of their number."""
    return masked_mean(hidden, mask) * mask.sum(dim=1, keepdim=True).sqrt()


def weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over a row's tokens, token t (from 1) with weight t."""
    hidden = at_least_float32(hidden)
    position = torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=hidden.dtype)
    weight = (mask * position).unsqueeze(-1)  # (B, T, 1)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """State of a row's last token; zeros where it has none."""
    last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return at_least_float32(hidden[rows, last]) * mask[rows, last].unsqueeze(-1)


POOLINGS: dict[str, Pool] = {  # by 6.x's names, in the order in which 3.x concatenates them
    "cls": first_token,
    "max": largest,
    "mean": masked_mean,
    "mean_sqrt_len_tokens": mean_sqrt_length,
    "weightedmean": weighted_mean,
    "lasttoken": last_token,
}


def pooling_of(names: Sequence[str]) -> Pool:
    """The pooling of a name, or several side by side."""
    poolings = [POOLINGS[name] for name in names]
    if len(poolings) == 1:
        return poolings[0]
    return partial(side_by_side, poolings)


def side_by_side(poolings: Sequence[Pool], hidden: Tensor, mask: Tensor) -> Tensor:
    """Poolings of hidden (B, T, H), one after the other."""
    return torch.cat([pool(hidden, mask) for pool in poolings], dim=-1)


ACTIVATIONS = {  # of torch.nn, element by element
    name: getattr(nn, name)
    for name in (
        *("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid"),
        *("ELU", "SELU", "Mish", "Softplus", "Softsign"),
    )
}


class HeadModule(nn.Module):
    """What may follow a pooling: vectors (B, inputs) to vectors (B, width)."""

    kind: str  # sentence-transformers' name of its class
    width: int
    settings: Mapping[str, Any]  # its config.json

    def __init__(self, settings: Mapping[str, Any], width: int, where: str) -> None:
        super().__init__()
        self.kind, self.settings, self.width = type(self).__name__, settings, width


class Dense(HeadModule):
    """A linear layer and its activation, perhaps beside what came in."""

    def __init__(self, settings: Mapping[str, Any], width: int, where: str) -> None:
        super().__init__(settings, width, where)
        for name in ("in_features", "out_features"):
            check_setting(settings.get(name), name, "int", where, least=1)
        inputs, outputs = int(settings["in_features"]), int(settings["out_features"])
        if inputs != width:
            raise UserError(f"{where}: in_features is {inputs}, what comes before gives {width}")
        path = str(settings.get("activation_function", "torch.nn.Tanh"))
        package, _, name = path.rpartition(".")
        if name not in ACTIVATIONS or package.split(".")[:2] != ["torch", "nn"]:
            known = ", ".join(ACTIVATIONS)
            raise UserError(f"{where}: activation_function {path!r} is none of torch.nn's {known}")
        self.linear = nn.Linear(inputs, outputs, bias=bool(settings.get("bias", True)))
        self.activation, self.use_residual = ACTIVATIONS[name](), settings.get("use_residual")
        if self.use_residual and inputs != outputs:
            self.residual = nn.Linear(inputs, outputs, bias=False)
        self.width = outputs

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_features) -> (B, out_features)."""
        out: Tensor = self.activation(self.linear(x))
        if not self.use_residual:
            return out
        return out + (self.residual(x) if hasattr(self, "residual") else x)


class LayerNorm(HeadModule):
    """Each vector to mean 0 and variance 1, then scaled and shifted."""

    def __init__(self, settings: Mapping[str, Any], width: int, where: str) -> None:
        super().__init__(settings, width, where)
        if settings.get("dimension") != width:
            raise UserError(f"{where}: dimension is {settings.get('dimension')!r}, not {width}")
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out


class Dropout(HeadModule):
    """In training alone."""

    def __init__(self, settings: Mapping[str, Any], width: int, where: str) -> None:
        super().__init__(settings, width, where)
        share = settings.get("dropout", 0.2)
        check_setting(share, "dropout", "float", where, below=1)
        self.dropout = nn.Dropout(share)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(x)
        return out


class Normalize(HeadModule):
    """Each vector to unit length."""

    def forward(self, x: Tensor) -> Tensor:
        return l2_normalize(x)


# By the names of sentence-transformers' classes: ours, and the settings that it may have.
INPUTS = ("module_input_name", "module_output_name")  # which of the vectors; here there is one
MODULES: dict[str, tuple[type[HeadModule], tuple[str, ...]]] = {
    "Dense": (
        Dense,
        ("in_features", "out_features", "bias", "activation_function", "use_residual", *INPUTS),
    ),
    "LayerNorm": (LayerNorm, ("dimension",)),
    "Dropout": (Dropout, ("dropout",)),
    "Normalize": (Normalize, INPUTS),
}


def read_head(modules: Sequence[Place], width: int) -> nn.Sequential | None:
    """The modules after a pooling that gives vectors of `width` numbers; None where there are none.

    Raises UserError naming the file for a setting or tensor that is missing, malformed, or not
    implemented here."""
    head = []
    for kind, folder in modules:
        make, known = MODULES[kind]
        path = folder / "config.json"
        settings = read_json(path) if path.is_file() or kind in ("Dense", "LayerNorm") else {}
        check_keys(settings, known, path)
        for name in INPUTS:
            if settings.get(name) not in (None, "sentence_embedding"):
                raise UserError(f"{path}: {name} is {settings[name]!r}, not sentence_embedding")
        own = {name: value for name, value in settings.items() if name not in INPUTS}
        with torch.device("meta"):
            module = make(own, width, str(path))
        if expected := module.state_dict():
            tensors = read_safetensors(folder)
            module.load_state_dict(check_tensors(tensors, expected, str(folder)), assign=True)
        head.append(module)
        width = module.width
    return nn.Sequential(*head) if head else None


def head_modules(encoder: SentenceEncoder) -> list[HeadModule]:
    """The modules after an encoder's pooling."""
    return [part for part in encoder.head or () if isinstance(part, HeadModule)]
