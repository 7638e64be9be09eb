"""report.html of a training run, from report_template.html: one self-contained page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from minilm_retriever.progress import duration
from minilm_retriever.reports import charts
from minilm_retriever.reports.charts import Chart, Line, Point, line_chart
from minilm_retriever.reports.run_record import (
    Column,
    MetricRow,
    RunRecord,
    SharePoint,
    map_texts,
    shorten,
)

if TYPE_CHECKING:
    from jinja2 import Environment

LONGEST_SAMPLE = 300  # characters of a text that is shown
# No page may hold lone surrogates or control characters.
PRINTABLE = dict.fromkeys(range(0xD800, 0xE000), "?")
PRINTABLE |= {code: "\ufffd" for code in range(32) if chr(code) not in "\n\t"}


def report_html(record: RunRecord, metrics: Sequence[MetricRow]) -> str:
    """The whole page. It loads nothing: no script, no font, no picture."""
    template = environment().get_template("report_template.html")
    rates = [row["tokens_per_second"] for row in metrics if "tokens_per_second" in row]
    return template.render(
        run=record,
        duration=duration(record.seconds),
        last_loss=next((row["loss"] for row in reversed(metrics) if "loss" in row), None),
        tokens_per_second=median(rates) if rates else None,
        curves=curves(record, metrics),
        samples=map_texts(lambda text: shorten(text, LONGEST_SAMPLE), record.samples),
        changed=[(k, v, record.defaults.get(k, "")) for k, v in record.changed.items()],
        histograms=[lengths_chart(column, record.max_length) for column in record.columns],
    )


def line_page(
    title: str, data: str, general: str, own: str, kept: str, points: Sequence[SharePoint]
) -> str:
    """A page with the line from one model to another: an own metric on `data`, and what is kept."""
    return (
        environment()
        .get_template("line_template.html")
        .render(
            title=title,
            data=data,
            general=general,
            own=own,
            kept=kept,
            points=points,
            chart=share_chart(points, own, kept),
        )
    )


def environment() -> Environment:
    """Templates of this folder, every text escaped and printable."""
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value.translate(PRINTABLE) if isinstance(value, str) else value,
    )
    templates.filters["number"] = charts.number
    return templates


def curves(record: RunRecord, metrics: Sequence[MetricRow]) -> list[Chart]:
    """Loss, held-out metrics, learning rate and speed over the steps."""
    evaluated: dict[str, list[Point]] = {}
    for row in metrics:
        for name, value in row.get("eval", {}).items():
            if value is not None:  # not finite
                evaluated.setdefault(name, []).append((row["step"], value))
    losses = [Line("training", points(metrics, "loss"))]
    if "loss" in evaluated:
        losses.append(Line("held out", evaluated.pop("loss")))
    if floors := points(metrics, "loss_floor"):  # of each row: better than one for the run
        losses.append(Line("floor", floors))
    last = record.steps
    figures = [line_chart("Loss", losses, last, floor=None if floors else record.loss_floor)]
    in_table = record.evaluation.after if record.evaluation else {}
    names = [name for name in in_table if name in evaluated] or list(evaluated)
    if shown := [Line(name, evaluated[name]) for name in names[: charts.COLOURS]]:
        title = "Held-out metrics" if len(shown) > 1 else shown[0].name
        figures.append(line_chart(title, shown, last, from_zero=False))
    figures += forgetting_charts(record, metrics, evaluated)
    rest = {"Learning rate": "learning_rate", "Tokens a second": "tokens_per_second"}
    for title, key in rest.items():
        figures.append(line_chart(title, [Line(title.lower(), points(metrics, key))], last))
    return figures


def forgetting_charts(
    record: RunRecord, metrics: Sequence[MetricRow], evaluated: Mapping[str, Sequence[Point]]
) -> Iterator[Chart]:
    """What was learned and what was kept: over the steps, and over the share of the weights."""
    if record.general is None:
        return
    kept = f"general {record.general.name}"
    own = next(iter(record.evaluation.after), "") if record.evaluation else ""
    values = [
        (row["step"], value)
        for row in metrics
        if (value := row.get("general", {}).get(record.general.name)) is not None
    ]
    lines = [Line(own, evaluated.get(own, ())), Line(kept, values)]
    drawn = [line for line in lines if line.points]
    yield line_chart("Learned and kept", drawn, record.steps, from_zero=False)
    if record.mix:
        yield share_chart(record.mix.points, own, kept, record.mix.share)


def share_chart(
    points: Sequence[SharePoint], own: str, kept: str, taken: float | None = None
) -> Chart:
    """An own metric and general ability on the line from the base model to the fine-tuned one."""
    lines = [
        Line(own, [(p.share, p.own) for p in points if p.own is not None]),
        Line(kept, [(p.share, p.general) for p in points if p.general is not None]),
    ]
    drawn = [line for line in lines if line.points]
    title = "From the base model to the fine-tuned one"
    return line_chart(title, drawn, 1, from_zero=False, x_name="share", marked=taken)


def points(metrics: Sequence[MetricRow], name: str) -> list[Point]:
    return [(row["step"], float(row[name])) for row in metrics if row.get(name) is not None]


def lengths_chart(column: Column, max_length: int) -> Chart:
    mean = sum(column.lengths) / max(1, len(column.lengths))
    title = f"{column.name}: first {len(column.lengths):,} rows, mean {mean:.1f} tokens"
    cut = sum(length >= max_length for length in column.lengths)
    remarks = [f"{cut:,} of them reach the limit of {max_length} tokens."] if cut else []
    return charts.histogram(title, column.lengths, "tokens", remarks)
