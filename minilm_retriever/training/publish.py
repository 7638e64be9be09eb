"""The end of a run: the best weights, the model card, the log and the report, as one folder."""

from __future__ import annotations

import json
import os
import platform
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from minilm_retriever.encoder.encoder import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.flags import flag_values
from minilm_retriever.keywords import run_file
from minilm_retriever.pretrained import hub
from minilm_retriever.pretrained.config import with_revision
from minilm_retriever.pretrained.model_folder import LoadedModel, write_model
from minilm_retriever.progress import say
from minilm_retriever.reports.html_report import report_html
from minilm_retriever.reports.model_card import model_card
from minilm_retriever.reports.run_record import (
    Column,
    Evaluation,
    General,
    MetricRow,
    RunRecord,
    map_texts,
    shorten,
)
from minilm_retriever.storage import atomic_files, atomic_folders, manifest, tensors
from minilm_retriever.storage.resume import RunFolder
from minilm_retriever.training.checkpoint import LOG, Position
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.prepare import TrainingRun
from minilm_retriever.training.share import mix_with_base
from minilm_retriever.training.sparse_embedding import train_all_words

PACKAGES = ("minilm_retriever", "torch", "transformers", "tokenizers", "safetensors", "numpy")
COUNTED_ROWS = 1000  # rows whose tokens are counted for the card
STATED = ("language", "license", "intended_use", "limits")  # by the user, about the model
SHOWN_SETTINGS = ("max_length", "pooling", "normalize", "similarity")  # of the model
PATHS = ("train", "eval", "general", "model", "guide")
FIXED = {"optimizer": "AdamW", "lr_schedule": "linear"}  # what no flag changes
METRICS = ("accuracy@1", "mrr@10", "recall@10", "ndcg@10", "spearman", "pearson", "loss")  # shown


@dataclass(frozen=True)
class FinishedRun:
    """What a run ends in: the model that is published, and all that stands beside it."""

    model: LoadedModel
    config: TrainConfig
    record: RunRecord
    log: list[MetricRow]
    settings: dict[str, Any]  # as they ran
    files: dict[str, bytes]  # the log, TensorBoard's events

    def write(self, out: Path, *, overwrite: bool) -> None:
        """Write the model's folder, whole or not at all."""
        record = replace(self.record, name=out.name)
        training = {"settings": self.settings, "versions": record.versions}
        training |= {"mix": asdict(record.mix)} if record.mix else {}
        extra = {"run": {"steps": record.steps}}
        with atomic_folders.staged_folder(out, overwrite=overwrite, extra=extra) as staged:
            dtype = self.config.save_dtype
            write_model(staged, self.model, card=model_card(record), dtype=dtype)
            atomic_files.write_text(staged / "report.html", report_html(record, self.log))
            atomic_files.write_json(staged / "training.json", training)
            atomic_files.write_text(staged / "run.toml", run_file(self.config))
            for name, data in self.files.items():
                atomic_files.write_bytes(staged / name, data)


def publish(run: TrainingRun, position: Position) -> FinishedRun:
    """Publish the best weights, or without evaluations the last, and remove the unfinished run."""
    finished, out = finish(run, position), Path(run.config.out)
    finished.write(out, overwrite=run.config.overwrite)
    notes = [f"published {out}.", *finished.record.notes]
    try:
        RunFolder(out).discard()
    except UserError as fault:  # something was put there meanwhile
        notes.append(f"The run's folder stays: {fault}.")
    say(" ".join(notes))
    return finished


def finish(run: TrainingRun, position: Position) -> FinishedRun:
    """Give the model its best weights, or the share of them that --mix says, and tell the run.

    Raises UserError where the model gives no finite vectors."""
    config, model, out = run.config, run.base, Path(run.config.out)
    notes = []
    if position.best_step is not None and position.best_step != position.step:
        best = run.folder / f"step-{position.best_step:08d}"
        manifest.verify_folder(best)
        model.encoder.load_state_dict(tensors.load_tensors(best / "model.safetensors"))
        of_these = "the last near the best" if config.tolerance else "the best"
        notes = [f"The weights are of step {position.best_step}, {of_these} by {run.metric}."]
    if position.step < run.total:
        notes += [f"Training stopped early, after {position.step} of {run.total} steps."]
    log = [json.loads(line) for line in (run.folder / LOG).read_text("utf-8").splitlines()]
    measured = evaluations(position, log)
    mix = None
    if config.mix is not None:
        mix, measured["after"] = mix_with_base(run, measured)
        notes += [f"The weights are base + {mix.share:g} x (fine-tuned - base). {mix.reason}"]
    settings, defaults = settings_and_defaults(run)
    losses = [row for row in log if "loss" in row]
    floors = [row["loss_floor"] for row in losses]
    record = RunRecord(
        name=out.name,
        notes=notes,
        steps=position.step,
        seconds=position.seconds,
        machine=machine(run.trainer.device),
        versions=versions(),
        settings=without_paths(settings) | FIXED,
        defaults=without_paths(defaults) | FIXED,
        log=[(row["epoch"], row["step"], row["loss"]) for row in losses],
        loss_floor=sum(floors) / len(floors) if any(floors) else None,
        evaluation=evaluation(run, measured),
        general=general(run, measured),
        mix=mix,
        **about_model(run),
        loss=config.loss,
        prompts={name: text for name, text in model.settings.prompts.items() if text},
        **about_data(run),
        **{name: getattr(config, name) for name in STATED},
    )
    events = (run.folder / "tensorboard").iterdir() if config.tensorboard else ()
    paths = [run.folder / LOG, *events]
    files = {str(path.relative_to(run.folder)): path.read_bytes() for path in paths}
    train_all_words(model.encoder)
    model.encoder.eval()
    return FinishedRun(model, config, record, log, settings, files)


def settings_and_defaults(run: TrainingRun) -> tuple[dict[str, Any], dict[str, Any]]:
    """All settings as they ran, and their defaults; of a flag left open, the value in effect."""
    in_effect = {
        "dropout": run.base.encoder.bert.config.hidden_dropout_prob,
        "max_length": run.base.settings.max_length,
        "log_steps": run.log_steps,
        "query_prompt": run.data.prompts.query.text or None,
        "document_prompt": run.data.prompts.document.text or None,
        "metric": run.metric,
        "threads": torch.get_num_threads(),
        "device": str(run.trainer.device),
    }
    settings = flag_values(run.config, on_card=True)
    defaults = {name: getattr(TrainConfig, name) for name in settings}
    left_open = {name: value for name, value in in_effect.items() if settings[name] is None}
    return settings | left_open, defaults | left_open


def versions() -> dict[str, str]:
    """Python and the packages that had a part in the run, without importing them."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def machine(device: torch.device) -> str:
    """The GPU, or the processor and its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text("utf-8") if info.exists() else "")
    name = model[1].strip() if model else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {name: map_texts(public_name, settings[name]) for name in PATHS}


def public_name(path: str) -> str:
    """The last part of a local path; a hub name as it is."""
    place = Path(path)
    return place.absolute().name if place.is_absolute() or place.exists() else path


def about_model(run: TrainingRun) -> dict[str, Any]:
    model, name = run.base, with_revision(run.config.model, run.config.revision)
    base, revision = hub.origin(hub.resolve(name)) or (public_name(name), None)
    bert, settings = model.encoder.bert.config, model.settings
    return {
        "base": base,
        "base_revision": revision,
        "dimension": model.encoder.kept,
        "architecture": {
            "layers": bert.num_hidden_layers,
            "attention heads": bert.num_attention_heads,
            "activation": bert.hidden_act,
        },
        **{key: getattr(settings, key) for key in SHOWN_SETTINGS},
    }


def about_data(run: TrainingRun) -> dict[str, Any]:
    """Rows, tokens and samples; and example texts with the similarities that the model gives."""
    sources, model = run.data.sources, run.base
    columns, texts = sources[0].columns, sources[0].texts
    # Three queries, each with its own document and two others.
    queries, documents = ([shorten(text) for text in column[:3]] for column in texts[:2])
    encoder = Encoder(model, run.trainer.device)
    vectors = encoder.encode([queries[0], *documents])
    return {
        "data": [public_name(path) for path in run.config.train],
        "rows": sum(len(pairs) for pairs in sources),
        "distinct_pairs": len({row for pairs in sources for row in zip(*pairs.texts, strict=True)}),
        "columns": [
            Column(name, lengths[:COUNTED_ROWS].tolist())
            for name, lengths in zip(columns, run.data.lengths(0), strict=True)
        ],
        "samples": list(zip(*(column[:3] for column in texts), strict=True)),
        "widget": [(query, documents[i:] + documents[:i]) for i, query in enumerate(queries)],
        "similarities": str(encoder.similarity(vectors, vectors).round(4)),
    }


def evaluations(position: Position, log: list[Any]) -> dict[str, Any]:
    """The log's rows of the base model ("before") and of the best or last weights ("after")."""
    rows = {row["step"]: row for row in log if "eval" in row}
    steps = {"before": 0, "after": position.best_step or position.step}
    return {name: rows[step] for name, step in steps.items() if step in rows}


def evaluation(run: TrainingRun, measured: dict[str, Any]) -> Evaluation | None:
    """Results on the held-out data before training and of the published weights."""
    if run.validation is None:
        return None
    before, after = (measured.get(name, {}).get("eval", {}) for name in ("before", "after"))
    shown = [name for name in dict.fromkeys((run.metric, *METRICS)) if name in after]
    task, pairs = run.validation.task, run.validation.pairs
    return Evaluation(
        data=public_name(str(run.config.eval)),
        queries=len(task.queries if task else pairs or ()),
        documents=len(task.documents) if task else 0,
        before={name: before[name] for name in shown if before},
        after={name: after[name] for name in shown},
        also_in_training=run.validation.count_in(run.data.sources),
    )


def general(run: TrainingRun, measured: dict[str, Any]) -> General | None:
    """General ability before training and of the published weights."""
    if run.general is None or not measured.keys() >= {"before", "after"}:
        return None
    name = run.general.name
    values = (measured[when]["general"][name] for when in ("before", "after"))
    return General(run.general.data, name, *values)
