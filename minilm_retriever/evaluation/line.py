"""`evaluate` with general ability: of each model, and along the line from one to another, drawn."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from minilm_retriever.encoder.command import open_for_command
from minilm_retriever.encoder.encoder import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.evaluation import bm25
from minilm_retriever.evaluation.comparison_table import ComparisonTable, short_name
from minilm_retriever.evaluation.config import EvaluateConfig
from minilm_retriever.evaluation.evaluate import (
    encode_functions,
    evaluate_models,
    measure_run,
    pair_scores,
    read_task,
)
from minilm_retriever.evaluation.general import GeneralMeasure, read_general
from minilm_retriever.evaluation.metrics import rank_correlation
from minilm_retriever.evaluation.ranking import rank_documents
from minilm_retriever.evaluation.tasks import RetrievalTask
from minilm_retriever.pretrained.mixing import check_same_architecture, mix_weights
from minilm_retriever.reports.html_report import line_page
from minilm_retriever.reports.run_record import SharePoint
from minilm_retriever.storage import atomic_files

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def evaluate(config: EvaluateConfig) -> ComparisonTable:
    """The models side by side; with --general what each keeps of the first, with --picture the line
    between two."""
    if config.picture:
        check_picture(config)
    report = evaluate_models(config)
    dense = [model for model in config.model if model != bm25.NAME]
    if config.picture or (config.general is not None and dense):
        encoder = open_for_command(dense[0], precision=config.precision)
        general = read_general(config.general or None, encoder.encode)
        kept = {short_name(model): kept_by(model, general, config) for model in dense}
        report = replace(report, general=(f"{general.name} on {general.data}", kept))
        if config.picture:
            write_picture(config, encoder, general)
    return report


def kept_by(model: str, general: GeneralMeasure, config: EvaluateConfig) -> float:
    encoder = open_for_command(model, precision=config.precision)
    return general.measure(encoder.encode, encoder.encode_query, encoder.encode_document)


def check_picture(config: EvaluateConfig) -> None:
    """UserError, before the work, for a picture that could not be drawn or written."""
    path = str(config.picture)
    if len(config.model) != 2 or bm25.NAME in config.model:
        raise UserError(
            "--picture shows the line between two models: give --model BASE --model TUNED"
        )
    atomic_files.check_not_input(path, (config.data, config.corpus, *config.model), "--picture")
    if os.path.lexists(path) and not config.overwrite:
        raise UserError(f"{path}: exists; choose another --picture, or replace it with --overwrite")


def write_picture(config: EvaluateConfig, base: Encoder, general: GeneralMeasure) -> None:
    """The page with the line from the first model to the second."""
    name, points = walk(config, base, general)
    title = f"{short_name(config.model[0])} to {short_name(config.model[1])}"
    kept = f"general {general.name}"
    page = line_page(title, Path(config.data).name, general.data, name, kept, points)
    atomic_files.write_text(str(config.picture), page)


def walk(
    config: EvaluateConfig, base: Encoder, general: GeneralMeasure
) -> tuple[str, list[SharePoint]]:
    """The name of the data's metric; it and general ability at each share of the second model."""
    tuned = open_for_command(config.model[1])
    check_same_architecture(base.model, tuned.model)
    task = read_task(config)
    encoder = Encoder(tuned.model, precision=config.precision)  # prompts and limit of the second
    first, second = (
        {name: tensor.clone() for name, tensor in model.encoder.bert.state_dict().items()}
        for model in (base.model, tuned.model)
    )
    points = []
    for share in SHARES:
        encoder.model.encoder.bert.load_state_dict(mix_weights(first, second, share))
        if isinstance(task, RetrievalTask):
            name = "mrr@10"
            encode = encode_functions(encoder, config.model[1], task, config)
            run = rank_documents(task, *encode, 10)
            own = measure_run(task, run, (10,)).metrics[name]
        else:
            name = "spearman"
            own = rank_correlation(pair_scores(encoder, task, config), task.scores or [])
        kept = general.measure(encoder.encode, encoder.encode_query, encoder.encode_document)
        points.append(SharePoint(share, own, kept))
    return name, points
