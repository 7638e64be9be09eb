"""The end of a run: the best weights, the card that tells what ran, the log and the report, as one
folder."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from minilm_retriever.data.pairs import Pairs
from minilm_retriever.encoder import encode_texts
from minilm_retriever.flags import flag_values
from minilm_retriever.pretrained import hub
from minilm_retriever.pretrained.model_folder import LoadedModel, write_model
from minilm_retriever.pretrained.tokenizer import TextTokenizer
from minilm_retriever.reports.html_report import report_html
from minilm_retriever.reports.model_card import model_card
from minilm_retriever.reports.run_record import Column, Evaluation, MetricRow, RunRecord
from minilm_retriever.storage import atomic_files, atomic_folders, manifest, tensors
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.metrics_log import RunLog
from minilm_retriever.training.validation import Validation

STATED_ROWS = 1000  # rows over which the card states token counts, as the published one does


def publish(
    out: Path,
    run: Path,
    base: LoadedModel,
    config: TrainConfig,
    sources: Sequence[Pairs],
    position: Position,
    log: RunLog,
    validation: Validation | None,
) -> str:
    """Publish the best weights (the last ones where nothing was evaluated), remove the run, and say
    what was done."""
    notes = []
    if position.best_step is not None and position.best_step != position.step:
        best = run / f"step-{position.best_step:08d}"
        manifest.verify_folder(best)
        base.encoder.load_state_dict(tensors.load_tensors(best / "model.safetensors"))
        notes.append(
            f"The weights are those of step {position.best_step}, the best by {config.metric}."
        )
    if position.step < log.total:
        notes.append(f"Training stopped early, after {position.step} of {log.total} steps.")
    base.encoder.eval()
    # Finite weights may still be too large to compute with: what gives no vectors is not published.
    encode_texts(base.encoder, base.tokenizer, [texts[0] for texts in sources[0].texts])
    record = record_of(out, base, config, sources, position, log, validation, notes)
    with atomic_folders.staged_folder(
        out, overwrite=config.overwrite, extra={"run": {"steps": position.step}}
    ) as making:
        write_model(making, base, card=model_card(record))
        atomic_files.write_text(making / "report.html", report_html(record, log.rows()))
        atomic_files.write_bytes(making / "metrics.jsonl", log.path.read_bytes())
        atomic_files.write_json(
            making / "training.json", {"settings": record.settings, "versions": record.versions}
        )
        if config.tensorboard:
            for events in (run / "tensorboard").iterdir():
                atomic_files.make_folder(making / "tensorboard")
                atomic_files.write_bytes(making / "tensorboard" / events.name, events.read_bytes())
    atomic_folders.discard(run)
    return " ".join([f"published {out}.", *notes])


def record_of(
    out: Path,
    base: LoadedModel,
    config: TrainConfig,
    sources: Sequence[Pairs],
    position: Position,
    log: RunLog,
    validation: Validation | None,
    notes: list[str],
) -> RunRecord:
    """What ran, for the card and the report."""
    known = hub.origin(hub.resolve(config.model))
    bert = base.encoder.bert.config
    settings = flag_values(config, on_card=True)
    defaults = {item.name: item.default for item in fields(TrainConfig) if item.name in settings}
    # What a flag that was not given came to: the card tells what ran.
    found: dict[str, object] = {
        "dropout": bert.hidden_dropout_prob,
        "max_length": base.settings.max_length,
        "log_steps": log.every,
    }
    found |= {
        "threads": torch.get_num_threads(),
        "device": str(next(base.encoder.parameters()).device),
    }
    for name in [name for name in found if settings[name] is None]:
        settings[name] = defaults[name] = found[name]
    rows = log.rows()
    floors = [row["loss_floor"] for row in rows if "loss_floor" in row]
    return RunRecord(
        name=out.name,
        folder=str(out),
        base=config.model,
        base_model=known and known[0],
        base_revision=known and known[1],
        max_length=base.settings.max_length,
        dimension=bert.hidden_size,
        pooling=base.settings.pooling,
        normalize=base.settings.normalize,
        similarity=base.settings.similarity,
        bert={
            "layers": bert.num_hidden_layers,
            "attention heads": bert.num_attention_heads,
            "act": bert.hidden_act,
        },
        data=list(config.train),
        rows=sum(len(pairs) for pairs in sources),
        distinct_pairs=len({pair for pairs in sources for pair in zip(*pairs.texts, strict=True)}),
        columns=token_counts(sources[0], base.tokenizer),
        samples=[
            list(row) for row in zip(*(column[:3] for column in sources[0].texts), strict=True)
        ],
        loss_parameters=loss_parameters(config),
        loss_floor=sum(floors) / len(floors) if any(floors) else None,
        settings={name: plain(value) for name, value in settings.items()},
        defaults={name: plain(value) for name, value in defaults.items()},
        steps=position.step,
        seconds=position.seconds,
        machine=machine(config),
        versions=versions(),
        log=[(row["epoch"], row["step"], row["loss"]) for row in rows if "loss" in row],
        evaluations=evaluations(rows, position, config, sources, validation),
        notes=notes,
        widget=widget(sources[0]),
        language=config.language,
        license=config.license,
        intended_use=config.intended_use,
        limits=config.limits,
    )


def loss_parameters(config: TrainConfig) -> dict[str, object]:
    """What the loss was, with the variants that were asked for."""
    variants = {
        "false_negatives": config.false_negatives if config.false_negatives != "keep" else None,
        "guide": config.guide,
        "guide_margin": config.guide_margin if config.guide else None,
        "symmetric": config.symmetric or None,
        "matryoshka_dims": list(config.matryoshka) or None,
    }
    base = {
        "scale": config.scale,
        "similarity_fct": "cos_sim",
        "label_smoothing": config.label_smoothing,
    }
    return {**base, **{name: value for name, value in variants.items() if value is not None}}


def token_counts(pairs: Pairs, tokenizer: TextTokenizer) -> list[Column]:
    """Token counts of each column's first rows."""
    return [
        Column(name, tokenizer.tokenize(texts[:STATED_ROWS]).lengths.tolist())
        for name, texts in zip(pairs.columns, pairs.texts, strict=True)
    ]


def widget(pairs: Pairs) -> list[tuple[str, list[str]]]:
    """Three queries, each with its own document and two others, for the hub's widget."""
    rows = range(min(3, len(pairs)))
    return [(pairs.texts[0][i], [pairs.texts[1][(i + j) % len(pairs)] for j in rows]) for i in rows]


def evaluations(
    rows: list[MetricRow],
    position: Position,
    config: TrainConfig,
    sources: Sequence[Pairs],
    validation: Validation | None,
) -> list[Evaluation]:
    """Held-out results before training and of the weights that are published."""
    if validation is None:
        return []
    found: dict[int, Mapping[str, float]] = {
        row["step"]: row["eval"] for row in rows if "eval" in row
    }
    first = [config.metric, "accuracy@1", "mrr@10", "recall@10", "ndcg@10", "loss"]

    def ordered(values: Mapping[str, float]) -> dict[str, float]:
        return {name: values[name] for name in dict.fromkeys(first) if name in values}

    return [
        Evaluation(
            data=str(config.eval),
            queries=len(validation.task.queries),
            documents=len(validation.task.documents),
            before=ordered(found.get(0, {})),
            after=ordered(found[position.best_step or position.step]),
            also_in_training=validation.count_in(sources),
        )
    ]


def plain(value: object) -> object:
    """A value as JSON has it: a tuple is a list."""
    return json.loads(json.dumps(value))


def versions() -> dict[str, str]:
    """Python and the packages that had a part in the run, without importing them."""
    found = {"python": platform.python_version()}
    for package in (
        "minilm_retriever",
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "numpy",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine(config: TrainConfig) -> str:
    """The processor, or the GPU, in words."""
    if torch.cuda.is_available() and config.device != "cpu":
        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text("utf-8").splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    name = (
        names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
    )
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores"
