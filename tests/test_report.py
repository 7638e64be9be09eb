"""report.html: whole, self-contained, every figure of the run in it, and no text of the data taken
for markup."""

import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from minilm_retriever.reports.charts import (
    MOST_POINTS,
    Line,
    histogram,
    line_chart,
    nice_ticks,
    number,
)
from minilm_retriever.reports.html_report import environment, report_html
from minilm_retriever.reports.run_record import Column, Evaluation
from tests.run_records import BARE, HOSTILE, HOSTILE_TEXT, RUN, metrics

NAN, INF = float("nan"), float("inf")


def drawn(chart):
    """A chart's HTML."""
    return str(environment().get_template("chart_template.html").module.figure(chart))


class Page(HTMLParser):
    """Reads a page: its words, its elements, and whether each element is closed where it should
    be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words, self.faults = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


@pytest.mark.parametrize(
    ("record", "rows"),
    [
        (RUN, metrics()),
        (HOSTILE, metrics()),
        (BARE, []),
        (BARE, [{"step": 1, "loss": 0.5}]),
        (
            RUN,
            [
                {"step": 1, "loss": NAN},
                {"step": 2, "loss": INF, "learning_rate": -INF},
                {"step": 2, "eval": {"x": NAN}},
            ],
        ),
        (RUN, [{"step": 0, "eval": {HOSTILE_TEXT: 0.5, "loss": 0.1}}]),
        (
            RUN,
            [{"step": 7, "loss": 1e308}, {"step": 8, "loss": -1e308}, {"step": 9, "loss": 1e-320}],
        ),
        (RUN, metrics(20_000, 1)),
        (replace(RUN, loss_floor=0.0, evaluation=None, columns=()), metrics(3, 1)),
    ],
    ids=[
        "usual",
        "hostile",
        "bare",
        "one point",
        "not finite",
        "evaluation alone",
        "extremes",
        "dense",
        "less",
    ],
)
def test_every_page_is_well_formed_and_asks_for_nothing(record, rows):
    text = report_html(record, rows)
    page = Page(text)
    assert not page.faults and not page.open
    assert {tag for tag, _ in page.elements}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "a"}
    )
    assert not any(
        name in ("src", "href") or name.startswith("on")
        for _, attrs in page.elements
        for name in attrs
    )
    assert not re.search(r"url\(|@import", text.split("<style>")[1].split("</style>")[0])
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(svg)
        assert "nan" not in re.sub(r">[^<]*<", "><", svg), "no place in a picture is not a number"
    text.encode("utf-8")


def test_the_figures_of_the_run_are_there():
    words = " ".join(Page(report_html(RUN, metrics())).words)
    for figure in (
        *(
            "sentence-transformers/all-MiniLM-L6-v2",
            "100,000",
            "376 of them distinct",
            "18,750",
            "3 h 25 min",
        ),
        *(
            "0.7380",
            "0.8150",
            "+0.0770",
            "floor 0.0374",
            "learning_rate",
            "2e-05",
        ),
        *(
            "PyTorch",
            "2.13.0+cpu",
            "2 x Some CPU, 8 GB",
            "Resumed twice.",
            "first 1,000 rows",
            "held out",
        ),
        "2 of its rows are training rows too",
    ):
        assert figure in words, figure


def test_every_logged_loss_has_a_tooltip():
    rows = metrics()
    titles = re.findall(r"<title>training, step ([\d,]+): ([^<]*)</title>", report_html(RUN, rows))
    assert titles == [(number(row["step"]), number(row["loss"])) for row in rows if "loss" in row]


def test_a_template_engine_is_only_imported_to_render():
    code = (
        "import sys, minilm_retriever.reports.html_report, minilm_retriever.reports.model_card\n"
        "print({'jinja2', 'huggingface_hub'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_floor_of_each_row_is_drawn_where_it_is_logged():
    assert "<title>floor, step 1: 0.03</title>" in report_html(
        RUN, [{"step": 1, "loss": 0.05, "loss_floor": 0.03}]
    )


def test_hostile_texts_read_as_they_are():
    words = "".join(Page(report_html(HOSTILE, [])).words)
    assert HOSTILE_TEXT.replace("\ud800", "?").replace("\x07", "\ufffd") in words


def test_texts_at_the_limit_are_told():
    assert "2 of them reach the limit of 8 tokens" in report_html(
        replace(BARE, columns=(Column("a", [8, 5, 8]),)), []
    )


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 5e-5, [0, 1e-5, 2e-5, 3e-5, 4e-5, 5e-5]),
        (0.66, 0.98, [0.6, 0.7, 0.8, 0.9, 1.0]),
        (0, 18750, [0, 5000, 10000, 15000, 20000]),
        (-3, 12, [-5, 0, 5, 10, 15]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (7, 7, [2, 4, 6, 8, 10, 12]),
    ],
)
def test_ticks_are_round_and_enclose_the_data(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12500, "12,500"),
        (0.0374, "0.0374"),
        (1.5e-5, "1.5e-5"),
        (5e-5, "5e-5"),
        (1234567, "1.23e6"),
        (NAN, "nan"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_a_point_stands_where_its_value_says():
    chart = drawn(line_chart("t", [Line("a", [(0, 0.0), (50, 0.5), (100, 1.0)])], 100))
    places = [
        (float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)
    ]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert math.isclose(x1, (x0 + x2) / 2, abs_tol=0.1) and math.isclose(
        y1, (y0 + y2) / 2, abs_tol=0.1
    )
    assert x0 < x2 and y0 > y2, "y grows upwards"
    grid = [float(y) for y in re.findall(r'class="grid"[^>]*y1="([\d.]+)"', chart)]
    assert max(grid) == y0 and min(grid) == y2


def test_a_dense_line_is_averaged_and_says_so():
    points = [(step, step % 2) for step in range(10 * MOST_POINTS)]
    chart = drawn(line_chart("t", [Line("a", points)], 10 * MOST_POINTS))
    assert chart.count("<circle") == MOST_POINTS and "mean of up to 10 values" in chart
    assert chart.count(": 0.5<") == MOST_POINTS


def test_a_value_that_is_not_finite_is_left_out_and_said():
    chart = line_chart("t", [Line("a", [(1, NAN), (2, 1.0), (3, INF)])], 3)
    assert "2 values not finite, left out" in drawn(chart)


def test_the_bars_of_a_histogram_hold_every_row():
    for lengths in ([5], [1, 2, 2, 3], list(range(3, 257)), [3] * 999 + [256]):
        chart = drawn(histogram("t", lengths, "tokens", []))
        counts = [int(count.replace(",", "")) for count in re.findall(r": ([\d,]+) rows", chart)]
        assert sum(counts) == len(lengths) and len(counts) <= 30


def test_a_lower_held_out_loss_is_told_as_a_gain_and_the_chart_shows_what_the_table_tells():
    evaluation = Evaluation(
        "pairs.csv", 9, 9, {"mrr@10": 0.8, "loss": 0.1}, {"mrr@10": 0.9, "loss": 0.3}
    )
    record = replace(RUN, evaluation=evaluation)
    rows = [
        {"step": step, "eval": {"accuracy@1": 0.1, "mrr@10": 0.9, "loss": 0.2}} for step in (0, 5)
    ]
    page = report_html(record, rows)
    assert '<span class="up">-0.2000</span>' in page and '<span class="down">-0.1000</span>' in page
    assert "mrr@10" in page and "accuracy@1" not in page
