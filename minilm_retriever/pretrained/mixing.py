"""Weights between two models: base + share * (tuned - base).

Between a model and what it was fine-tuned to, the line mostly keeps both abilities (WiSE-FT, robust
fine-tuning of zero-shot models; M. Wortsman et al., 2022. LM-Cocktail; S. Xiao et al., 2023)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from minilm_retriever.errors import UserError
from minilm_retriever.keywords import run_file
from minilm_retriever.pretrained.config import MixConfig
from minilm_retriever.pretrained.model_folder import (
    LoadedModel,
    load_pretrained,
    plain_card,
    write_model,
)
from minilm_retriever.pretrained.modules import head_modules
from minilm_retriever.storage import atomic_files, atomic_folders

Weights = Mapping[str, Tensor]
SAME_SETTINGS = ("pooling", "normalize", "lower_case")  # others do not shape what weights mean
FREE_SETTINGS = ("hidden_dropout_prob", "attention_probs_dropout_prob")  # of training alone


def mix_weights(base: Weights, tuned: Weights, share: float) -> dict[str, Tensor]:
    """base + share * (tuned - base) of each tensor; shares 0 and 1 give the very bits of either."""
    if share in (0, 1):
        return {name: tensor.clone() for name, tensor in (tuned if share else base).items()}
    return {name: tensor.lerp(tuned[name], share) for name, tensor in base.items()}


def check_same_architecture(base: LoadedModel, tuned: LoadedModel) -> None:
    """UserError, naming what differs, where weights of the two do not stand for the same."""
    configs = [vars(model.encoder.bert.config) for model in (base, tuned)]
    settings = [vars(model.settings) for model in (base, tuned)]
    names = [name for name in configs[0] if name not in FREE_SETTINGS]
    pairs = {name: [config[name] for config in configs] for name in names}
    pairs |= {name: [setting[name] for setting in settings] for name in SAME_SETTINGS}
    heads = [head_modules(model.encoder) for model in (base, tuned)]
    pairs["modules"] = [[(part.kind, part.settings) for part in head] for head in heads]
    for name, (one, other) in pairs.items():
        if one != other:
            raise UserError(
                f"models of two architectures cannot be mixed: {name} {one} and {other}"
            )
    if json.loads(base.tokenizer.json) != json.loads(tuned.tokenizer.json):
        raise UserError(
            "models with two tokenizers cannot be mixed: their tokens mean other things"
        )


def mix(config: MixConfig) -> str:
    """Write the model at a share of the line between two; returns a line to print.

    It has the second model's limits and prompts; at share 0 it is the first in all."""
    atomic_files.check_not_input(config.out, (config.base, config.tuned))
    base, tuned = load_pretrained(config.base), load_pretrained(config.tuned)
    check_same_architecture(base, tuned)
    ends = (base.encoder.state_dict(), tuned.encoder.state_dict())
    mixed = mix_weights(*ends, config.share)
    model = tuned if config.share else base
    model.encoder.load_state_dict(mixed)
    names = [Path(name).name or name for name in (config.base, config.tuned)]
    line = f"{names[0]} + {config.share:g} x ({names[1]} - {names[0]})"
    with atomic_folders.staged_folder(Path(config.out), overwrite=config.overwrite) as staging:
        write_model(staging, model, card=f"{plain_card(model)}\nIts weights: `{line}`.\n")
        atomic_files.write_text(staging / "run.toml", run_file(config))
    return f"wrote {config.out}: {line}"
