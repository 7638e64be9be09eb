"""The share of the fine-tuned weights that is published (--mix): base + share * (tuned - base).

`auto` bisects the line for the largest share, to an eighth, whose general ability stays within its
bound (evaluation/general.py): that ability falls with the share. Of the shares that it met within
the bound it takes the one with the best --metric, without --eval the largest; where none is within,
the smallest that it met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

HALVINGS = 3  # of the line: to an eighth
Measured = dict[str, Any]  # an evaluation's row of metrics.jsonl, or a part of it


def mix_with_base(run: TrainingRun, rows: Mapping[str, Measured]) -> tuple[Mix, Measured]:
    """Give the model, whose weights are the fine-tuned ones, the share that --mix says or chooses;
    rows: the evaluations of the base model ("before") and of the fine-tuned weights ("after"), if
    there were any.

    Returns the choice, and the evaluation of the weights that were taken."""
    encoder, metric = run.base.encoder, run.metric
    name = with_revision(run.config.model, run.config.revision)
    base = load_pretrained(name).encoder.state_dict()
    tuned = {name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()}
    measured = {share: rows[key] for share, key in ((0.0, "before"), (1.0, "after")) if key in rows}

    def measure(share: float, *, own: bool = True) -> Measured:
        """What is not yet known of a share, which the model then has."""
        encoder.load_state_dict(mix_weights(base, tuned, share))
        row = measured.setdefault(share, {})
        if run.general and "general" not in row:
            encode = general_encoders(run.base, Ranks())  # on this process alone
            row["general"] = {run.general.name: run.general.measure(*encode)}
        if own and run.validation and "eval" not in row:
            row["eval"] = run.validation.evaluate(Ranks())
        return row

    if run.config.mix == "auto":
        assert run.general is not None
        bisect(run.general, measured, measure, has_own=run.validation is not None)
        share, reason = choose_share(share_points(measured, metric), run.general, metric)
    else:
        share, reason = float(str(run.config.mix)), "The share was given."
    taken = measure(share)
    say(f"share {share:g} of the fine-tuned weights: {reason}")
    return Mix(share, share_points(measured, metric), reason), taken


def bisect(
    general: GeneralMeasure,
    measured: Mapping[float, Measured],
    measure: Callable[..., Measured],
    *,
    has_own: bool,
) -> None:
    """Measure shares towards the largest one within the bound, the own metric of those within it;
    without an own metric none where the fine-tuned weights are."""

    def is_within(share: float) -> bool:  # None, of a log: it was not finite
        before, after = (measured[x]["general"][general.name] or 0.0 for x in (0.0, share))
        return general.is_within(before, after)

    low, high = 0.0, 1.0
    for _ in range(HALVINGS if has_own or not is_within(1.0) else 0):
        share = (low + high) / 2
        measure(share, own=False)
        if is_within(share):
            measure(share)
            low = share
        else:
            high = share


def share_points(measured: Mapping[float, Measured], metric: str) -> list[SharePoint]:
    return [
        SharePoint(
            share,
            row.get("eval", {}).get(metric),
            next(iter(row.get("general", {}).values()), None),
        )
        for share, row in sorted(measured.items())
    ]


def choose_share(
    points: Sequence[SharePoint], general: GeneralMeasure, metric: str
) -> tuple[float, str]:
    """The share of the points by the rule above, and a sentence that says why."""
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
