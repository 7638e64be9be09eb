"""Results as HTML, as notebooks show them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from minilm_retriever import progress

LONGEST_CELL = 200  # characters


def html_table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    notes: Sequence[str] = (),
) -> str:
    """A table with lines above and below it; a text is shown, whatever it holds."""
    head = "".join(f"<th>{plain(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{plain(cell)}</td>' for cell in row)}</tr>" for row in rows)
    below = "".join(f"<div>{plain(note)}</div>" for note in notes)
    table = body and f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div><div><b>{plain(caption)}</b></div>{table}{below}</div>"


def sparkline(values: Sequence[float], name: str) -> str:
    """A line over values, as a small picture."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    points = " ".join(
        f"{240 * n / (len(finite) - 1):.1f},{44 - 40 * (value - low) / span:.1f}"
        for n, value in enumerate(finite)
    )
    line = f'<polyline fill="none" stroke="currentColor" points="{points}"/>'
    return f'<svg width="240" height="48" role="img" aria-label="{plain(name)}">{line}</svg>'


def plain(value: object) -> str:
    """A value as the text of an HTML page: figures with four places, long texts cut short."""
    text = f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)
    return escape(progress.escape(shorten(text)))


def shorten(text: str, longest: int = LONGEST_CELL) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"
