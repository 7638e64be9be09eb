"""report.html of a training run: one self-contained page, drawn from the run's record and its
metrics.jsonl."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from minilm_retriever.progress import duration
from minilm_retriever.reports.charts import (
    COLOURS,
    Line,
    Point,
    escape,
    histogram,
    line_chart,
    number,
)
from minilm_retriever.reports.run_record import Evaluation, MetricRow, RunRecord


def report_html(record: RunRecord, metrics: Sequence[MetricRow]) -> str:
    """The whole page. It asks for nothing from anywhere: no script, no font, no picture."""
    body = "\n".join(
        [
            f"<header><h1>{escape(record.name)}</h1><p>{_lead(record)}</p></header>",
            _tiles(record, metrics),
            _section(
                "Training",
                f'<div class="charts">{"".join(_curves(record, metrics))}</div>{_notes(record)}',
            ),
            _section("Before and after", "".join(map(_evaluation, record.evaluations)))
            if record.evaluations
            else "",
            _section("Data", _data(record)),
            _section("Settings", _settings(record)),
            _section("Versions", _facts({**record.versions, "machine": record.machine})),
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(record.name)}: training report</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _lead(record: RunRecord) -> str:
    base = record.base_model or record.base
    return (
        f"Fine-tuned from <b>{escape(base)}</b>, published in <code>{escape(record.folder)}</code>."
    )


# Figures at the top


def _tiles(record: RunRecord, metrics: Sequence[MetricRow]) -> str:
    tiles = []
    for evaluation in record.evaluations[:2]:
        for metric, after in list(evaluation.after.items())[:1]:
            before = evaluation.before.get(metric)
            change = (
                "" if before is None else f"from {before:.3f}, on {evaluation.queries:,} queries"
            )
            tiles.append((metric, f"{after:.3f}", change))
    losses = [row["loss"] for row in metrics if "loss" in row]
    if losses:
        floor = "" if record.loss_floor is None else f"floor {number(record.loss_floor)}"
        tiles.append(("training loss, last logged", f"{losses[-1]:.4f}", floor))
    tiles.append(("steps", f"{record.steps:,}", f"in {duration(record.seconds)}"))
    rates = [row["tokens_per_second"] for row in metrics if "tokens_per_second" in row]
    if rates:
        tiles.append(
            ("tokens a second", number(statistics.median(rates)), "median, padding not counted")
        )
    distinct = "" if record.distinct_pairs is None else f"{record.distinct_pairs:,} distinct"
    tiles.append(("rows", f"{record.rows:,}", distinct))
    cells = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(v)}<small>{escape(more)}</small></dd></div>"
        for name, v, more in tiles
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


# Curves


def _curves(record: RunRecord, metrics: Sequence[MetricRow]) -> Iterable[str]:
    evaluations: dict[str, list[Point]] = {}
    for row in metrics:
        for name, value in row.get("eval", {}).items():
            evaluations.setdefault(name, []).append((row["step"], value))
    loss = [Line("training", _points(metrics, "loss"))]
    if held_out := evaluations.pop("loss", None):
        loss.append(Line("held out", held_out))
    if floors := _points(
        metrics, "loss_floor"
    ):  # of the very batches of each row; better than one for the whole run
        loss.append(Line("floor", floors))
    yield line_chart("Loss", loss, record.steps, floor=None if floors else record.loss_floor)
    told = [
        name for evaluation in record.evaluations for name in evaluation.after
    ]  # what the table below shows
    names = [name for name in dict.fromkeys(told) if name in evaluations] or list(evaluations)
    shown = [Line(name, evaluations[name]) for name in names][:COLOURS]
    if shown:
        yield line_chart(
            "Held-out metrics" if len(shown) > 1 else shown[0].name,
            shown,
            record.steps,
            from_zero=False,
        )
    yield line_chart(
        "Learning rate", [Line("learning rate", _points(metrics, "learning_rate"))], record.steps
    )
    yield line_chart(
        "Tokens a second",
        [Line("tokens a second", _points(metrics, "tokens_per_second"))],
        record.steps,
    )


def _points(metrics: Sequence[MetricRow], name: str) -> list[Point]:
    return [(row["step"], float(row[name])) for row in metrics if name in row]  # type: ignore[literal-required]


def _notes(record: RunRecord) -> str:
    notes = list(record.notes)
    if record.loss_floor:
        notes.insert(
            0,
            "The floor is what duplicates within a batch keep the mean loss at, however good the model is.",
        )
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    command = f"<p><code>{escape(record.command)}</code></p>" if record.command else ""
    return (f"<ul>{items}</ul>" if items else "") + command


# Tables


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table, figures after so many columns of words; whoever made the cells has escaped them."""

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = ["words"] * words + ["figure"] * (len(row) - words)
        return "".join(
            f'<{tag} class="{kind}">{cell}</{tag}>' for kind, cell in zip(kinds, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells("th", header)}</tr></thead><tbody>{body}</tbody></table></div>'


def _evaluation(evaluation: Evaluation) -> str:
    rows = []
    for metric, after in evaluation.after.items():
        before, gain = evaluation.before.get(metric), evaluation.gains.get(metric)
        rows.append(
            [
                escape(metric),
                "",
                f"{after:.4f}",
                "",
                "" if gain is None else f"{gain[0]:+.4f} to {gain[1]:+.4f}",
            ]
        )
        if before is not None:
            rows[-1][1] = f"{before:.4f}"
            better = after <= before if metric == "loss" else after >= before
            rows[-1][3] = f'<span class="{"up" if better else "down"}">{after - before:+.4f}</span>'
    header = ["metric", "before", "after", "gain", "95 % interval"]
    used = [i for i in range(len(header)) if any(row[i] for row in rows)]
    table = _table([header[i] for i in used], [[row[i] for i in used] for row in rows])
    size = f"{evaluation.queries:,} queries"
    if evaluation.documents is not None:
        size += f", {evaluation.documents:,} documents"
    if evaluation.also_in_training:
        size += f"; {evaluation.also_in_training:,} of its rows stand in the training data, too"
    return f"<p><code>{escape(evaluation.data)}</code>: {size}.</p>{table}"


def _data(record: RunRecord) -> str:
    distinct = (
        "" if record.distinct_pairs is None else f", {record.distinct_pairs:,} of them distinct"
    )
    sources = "".join(f"<code>{escape(source)}</code>, " for source in record.data)
    charts = []
    for column in record.columns:
        counted = f"first {len(column.lengths):,} rows, mean {column.mean:.1f} tokens"
        cut = sum(length >= record.max_length for length in column.lengths)
        remark = f"{cut:,} of them reach the limit of {record.max_length} tokens." if cut else ""
        charts.append(histogram(f"{column.name}: {counted}", column.lengths, "tokens", remark))
    samples = ""
    if record.samples:
        texts = [
            [escape(text if len(text) <= 300 else text[:300] + "…") for text in row]
            for row in record.samples
        ]
        samples = _table(
            [escape(column.name) for column in record.columns], texts, words=len(record.columns)
        )
    return f'<p>{sources}{record.rows:,} rows{distinct}.</p><div class="charts">{"".join(charts)}</div>{samples}'


def _settings(record: RunRecord) -> str:
    rows = [
        [f"<code>{escape(name)}</code>", escape(value), escape(record.defaults.get(name, ""))]
        for name, value in record.changed.items()
    ]
    table = (
        _table(["setting", "ran with", "default"], rows, words=3)
        if rows
        else "<p>Every setting has its default.</p>"
    )
    return f"{table}<details><summary>All settings</summary>{_facts(record.settings)}</details>"


def _facts(facts: Mapping[str, object]) -> str:
    return _table(
        ["name", "value"],
        [[f"<code>{escape(k)}</code>", escape(v)] for k, v in facts.items()],
        words=2,
    )


STYLE = """
:root { color-scheme: light dark; --paper: #f7f7f5; --card: #fff; --ink: #1d2126; --soft: #626a73; --rule: #e4e5e2;
  --up: #1b7f4b; --down: #b3372f;
  --c0: #2563c9; --c1: #d1650c; --c2: #208a5c; --c3: #7d4cc2; --c4: #b8325e; --c5: #0d8593; }
@media (prefers-color-scheme: dark) { :root { --paper: #131519; --card: #1b1e23; --ink: #e6e8ea; --soft: #99a1aa;
  --rule: #2e3238; --up: #5cc98f; --down: #f08a80;
  --c0: #78a9ff; --c1: #f2a15c; --c2: #62c99a; --c3: #bb9af5; --c4: #f283a6; --c5: #5cc3d0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 12px; }
header p, small, .remark, .none, th, summary { color: var(--soft); }
header p { margin: 0; }
header b { color: var(--ink); font-weight: 600; }
code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin: 28px 0 0; }
.tiles div, figure, .wide { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.tiles div { padding: 12px 16px; }
.tiles dt { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.tiles dd { margin: 2px 0 0; font-size: 24px; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tiles small { display: block; font-size: 13px; font-weight: 400; line-height: 1.4; min-height: 1.4em; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 12px; }
figure { margin: 0; padding: 14px 16px 10px; min-width: 0; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 16px; margin-bottom: 8px; }
figcaption b { font-weight: 600; font-size: 14px; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13px; color: var(--soft); }
.key::before { content: ""; display: inline-block; width: 14px; border-top: 2px solid; margin-right: 6px;
  vertical-align: middle; }
.key.floor::before { border-top-style: dashed; }
.remark, .none { margin: 6px 0; font-size: 13px; }
.none { padding: 40px 0; text-align: center; }
svg { display: block; width: 100%; height: auto; font-size: 12px; font-variant-numeric: tabular-nums; }
svg text { fill: var(--soft); }
svg .grid { stroke: var(--rule); }
svg .floor { stroke: var(--soft); stroke-dasharray: 5 4; }
.line path { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.line circle { fill: transparent; }
.line circle:hover, .alone circle { fill: currentColor; }
.alone circle { r: 3.5px; }
.bar { fill: var(--c0); opacity: .75; }
.bar:hover { opacity: 1; }
.line.c0, .key.c0::before { color: var(--c0); }
.line.c1, .key.c1::before { color: var(--c1); }
.line.c2, .key.c2::before { color: var(--c2); }
.line.c3, .key.c3::before { color: var(--c3); }
.line.c4, .key.c4::before { color: var(--c4); }
.line.c5, .key.c5::before { color: var(--c5); }
.wide { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 8px 16px; vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 500; font-size: 13px; }
.words { min-width: 8em; }
td { border-top: 1px solid var(--rule); }
.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.up { color: var(--up); } .down { color: var(--down); }
ul { padding-left: 20px; } summary { cursor: pointer; }
@media (max-width: 560px) { main { padding-top: 24px; } th, td { padding: 7px 10px; } svg { font-size: 15.5px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px; } .tiles dd { font-size: 21px; } }
"""
