"""The share of the fine-tuned weights that is published (--mix): base + share * (tuned - base).

`auto` measures a few shares and takes the one with the best --metric among those whose general
ability stays within its bound (evaluation/general.py); without --eval the largest of these; where
none is, the smallest that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minilm_retriever.distributed import Ranks
from minilm_retriever.evaluation.general import GeneralMeasure
from minilm_retriever.pretrained.config import with_revision
from minilm_retriever.pretrained.mixing import mix_weights
from minilm_retriever.pretrained.model_folder import load_pretrained
from minilm_retriever.progress import say
from minilm_retriever.reports.run_record import Mix, SharePoint
from minilm_retriever.training.prepare import TrainingRun
from minilm_retriever.training.validation import general_encoders

SHARES = (0.25, 0.5, 0.625, 0.75)  # measured, between the base model and the fine-tuned one
Measured = dict[str, Any]  # an evaluation's row of metrics.jsonl


def mix_with_base(run: TrainingRun, rows: Mapping[str, Measured]) -> tuple[Mix, Measured]:
    """Give the model, whose weights are the fine-tuned ones, the share that --mix says or chooses;
    rows: the evaluations of the base model ("before") and of the fine-tuned weights ("after"), if
    there were any.

    Returns the choice, and the evaluation of the weights that were taken."""
    bert, metric = run.base.encoder.bert, run.metric
    name = with_revision(run.config.model, run.config.revision)
    base = load_pretrained(name).encoder.bert.state_dict()
    tuned = {name: tensor.detach().cpu().clone() for name, tensor in bert.state_dict().items()}
    measured = {
        share: rows[name] for share, name in ((0.0, "before"), (1.0, "after")) if name in rows
    }
    auto = run.config.mix == "auto"
    shares = SHARES if auto else [float(str(run.config.mix))]
    for share in shares:
        if share not in measured:
            bert.load_state_dict(mix_weights(base, tuned, share))
            measured[share] = evaluate(run)
    points = [share_point(share, measured[share], metric) for share in sorted(measured)]
    if auto:
        share, reason = choose_share(points, run.general, metric)
    else:
        share, reason = shares[0], "The share was given."
    bert.load_state_dict(mix_weights(base, tuned, share))
    say(f"share {share:g} of the fine-tuned weights: {reason}")
    return Mix(share, points, reason), measured[share]


def evaluate(run: TrainingRun) -> Measured:
    """The model as it is now, on this process alone."""
    encode = general_encoders(run.base, Ranks())
    values = run.validation.evaluate(Ranks()) if run.validation else {}
    general = {run.general.name: run.general.measure(*encode)} if run.general else {}
    return {"eval": values, "general": general}


def share_point(share: float, row: Measured, metric: str) -> SharePoint:
    general = row.get("general") or {}
    return SharePoint(share, row["eval"].get(metric), next(iter(general.values()), None))


def choose_share(
    points: Sequence[SharePoint], general: GeneralMeasure | None, metric: str
) -> tuple[float, str]:
    """The share of the points by the rule above, and a sentence that says why."""
    assert general is not None
    before = next(point.general or 0.0 for point in points if point.share == 0)
    bound = f"{general.name} is at least {before - general.most_lost:.4f}"
    mixed = [point for point in points if point.share > 0]
    kept = [point for point in mixed if general.is_within(before, point.general or 0.0)]
    if not kept:
        return mixed[0].share, f"At no share {bound}: the smallest was taken."
    if kept[0].own is None:
        return kept[-1].share, f"The largest at which {bound}."
    sign = -1.0 if metric == "loss" else 1.0
    best = max(kept, key=lambda point: (sign * (point.own or 0.0), -point.share))
    return best.share, f"The best {metric} among those at which {bound}."
