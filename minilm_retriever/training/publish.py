"""The end of a run: the best weights, the model card, the log and the report, as one folder."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from minilm_retriever.data.pairs import Pairs
from minilm_retriever.encoder import Encoder
from minilm_retriever.pretrained import hub
from minilm_retriever.pretrained.model_folder import LoadedModel, write_model
from minilm_retriever.reports.html_report import report_html
from minilm_retriever.reports.model_card import model_card
from minilm_retriever.reports.run_record import Column, Evaluation, RunRecord, map_texts, shorten
from minilm_retriever.storage import atomic_files, atomic_folders, manifest, tensors
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.metrics_log import RunLog
from minilm_retriever.training.validation import HeldOut

COUNTED_ROWS = 1000  # rows whose tokens are counted for the card
STATED = ("language", "license", "intended_use", "limits")  # by the user, about the model
NOT_SETTINGS = {*STATED, "out", "overwrite", "dry_run"}
PATHS = ("train", "eval", "model", "guide")
VARIANTS = ("false_negatives", "guide", "guide_margin", "symmetric", "matryoshka")  # of the loss
FIXED = {"optimizer": "AdamW", "lr_schedule": "linear"}  # what no flag changes
METRICS = ("accuracy@1", "mrr@10", "recall@10", "ndcg@10", "loss")  # in the order of the card
PACKAGES = ("minilm_retriever", "torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class FinishedRun:
    """What training leaves behind, to be published."""

    config: TrainConfig
    model: LoadedModel
    sources: Sequence[Pairs]
    position: Position
    log: RunLog
    held_out: HeldOut | None

    def publish(self) -> str:
        """Publish the best weights (the last ones where nothing was evaluated) and remove the run;
        returns a line for people.

        Raises UserError where the model gives no finite vectors."""
        config, position = self.config, self.position
        out, run = Path(config.out), Path(f"{config.out}.run")
        notes = []
        if position.best_step is not None and position.best_step != position.step:
            best = run / f"step-{position.best_step:08d}"
            manifest.verify_folder(best)
            self.model.encoder.load_state_dict(tensors.load_tensors(best / "model.safetensors"))
            notes = [f"The weights are of step {position.best_step}, the best by {config.metric}."]
        if position.step < self.log.total:
            notes += [f"Training stopped early, after {position.step} of {self.log.total} steps."]
        record = self.record(notes)
        training = {"settings": self.settings()[0], "versions": record.versions}
        extra = {"run": {"steps": position.step}}
        with atomic_folders.staged_folder(out, overwrite=config.overwrite, extra=extra) as folder:
            write_model(folder, self.model, card=model_card(record))
            atomic_files.write_text(folder / "report.html", report_html(record, self.log.rows()))
            atomic_files.write_bytes(folder / "metrics.jsonl", self.log.path.read_bytes())
            atomic_files.write_json(folder / "training.json", training)
            if config.tensorboard:
                atomic_files.make_folder(folder / "tensorboard")
                for file in (run / "tensorboard").iterdir():
                    atomic_files.write_bytes(folder / "tensorboard" / file.name, file.read_bytes())
        atomic_folders.discard(run)
        return " ".join([f"published {out}.", *notes])

    def record(self, notes: Sequence[str]) -> RunRecord:
        """The facts for the card and the report: names in place of paths."""
        config, model, first = self.config, self.model, self.sources[0]
        bert = model.encoder.bert.config
        base, revision = hub.origin(hub.resolve(config.model)) or (public_name(config.model), None)
        settings, defaults = (
            {k: map_texts(public_name, v) if k in PATHS else v for k, v in values.items()} | FIXED
            for values in self.settings()
        )
        loss = {"scale": config.scale, "similarity_fct": "cos_sim"}
        loss["label_smoothing"] = config.label_smoothing
        loss |= {k: settings[k] for k in VARIANTS if settings[k] != defaults[k]}
        losses = [row for row in self.log.rows() if "loss" in row]
        floors = [row["loss_floor"] for row in losses]
        # Three queries, each with its own document and two others.
        queries, documents = ([shorten(text) for text in texts[:3]] for texts in first.texts[:2])
        encoder = Encoder(model, next(model.encoder.parameters()).device)
        vectors = encoder.encode([queries[0], *documents])
        return RunRecord(
            name=Path(config.out).name,
            base=base,
            base_revision=revision,
            max_length=model.settings.max_length,
            dimension=bert.hidden_size,
            pooling=model.settings.pooling,
            normalize=model.settings.normalize,
            similarity=model.settings.similarity,
            architecture={
                "layers": bert.num_hidden_layers,
                "attention heads": bert.num_attention_heads,
                "activation": bert.hidden_act,
            },
            data=[public_name(path) for path in config.train],
            rows=sum(len(pairs) for pairs in self.sources),
            distinct_pairs=len({row for p in self.sources for row in zip(*p.texts, strict=True)}),
            columns=[
                Column(name, model.tokenizer.tokenize(texts[:COUNTED_ROWS]).lengths.tolist())
                for name, texts in zip(first.columns, first.texts, strict=True)
            ],
            samples=list(zip(*(texts[:3] for texts in first.texts), strict=True)),
            widget=[(query, documents[i:] + documents[:i]) for i, query in enumerate(queries)],
            similarities=str(encoder.similarity(vectors, vectors).round(4)),
            loss_parameters=loss,
            loss_floor=sum(floors) / len(floors) if any(floors) else None,
            settings=settings,
            defaults=defaults,
            steps=self.position.step,
            seconds=self.position.seconds,
            machine=machine(config),
            versions=versions(),
            log=[(row["epoch"], row["step"], row["loss"]) for row in losses],
            evaluation=self.evaluation(),
            notes=notes,
            **{name: getattr(config, name) for name in STATED},
        )

    def settings(self) -> tuple[dict[str, object], dict[str, object]]:
        """All settings as they ran, and their defaults; for a flag left open, both are the value in
        effect."""
        in_effect = {
            "dropout": self.model.encoder.bert.config.hidden_dropout_prob,
            "max_length": self.model.settings.max_length,
            "log_steps": self.log.every,
            "threads": torch.get_num_threads(),
            "device": str(next(self.model.encoder.parameters()).device),
        }
        left_open = {k: v for k, v in in_effect.items() if getattr(self.config, k) is None}
        defaults = {f.name: f.default for f in fields(TrainConfig) if f.name not in NOT_SETTINGS}
        settings = {name: getattr(self.config, name) for name in defaults}
        return settings | left_open, defaults | left_open

    def evaluation(self) -> Evaluation | None:
        """Results on the held-out data before training and of the published weights."""
        if self.held_out is None:
            return None
        results = {row["step"]: row["eval"] for row in self.log.rows() if "eval" in row}
        after = results[self.position.best_step or self.position.step]
        shown = [name for name in dict.fromkeys((self.config.metric, *METRICS)) if name in after]
        return Evaluation(
            data=public_name(str(self.config.eval)),
            queries=self.held_out.queries,
            documents=self.held_out.documents,
            before={name: results[0][name] for name in shown if 0 in results},
            after={name: after[name] for name in shown},
            also_in_training=sum(self.held_out.repeats(pairs) for pairs in self.sources),
        )


def public_name(path: str) -> str:
    """The last part of a local path; a hub name as it is."""
    place = Path(path)
    return place.absolute().name if place.is_absolute() or place.exists() else path


def versions() -> dict[str, str]:
    """Python and the packages that had a part in the run, without importing them."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def machine(config: TrainConfig) -> str:
    """The GPU, or the processor and its cores."""
    if torch.cuda.is_available() and config.device != "cpu":
        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text("utf-8") if info.exists() else "")
    name = model[1].strip() if model else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores"
