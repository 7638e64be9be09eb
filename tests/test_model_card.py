"""The card of a trained model: what the hub reads, what a person reads, and no word of what did not
happen."""

import ast
import re
import socket

import pytest
from huggingface_hub import ModelCard

from minilm_retriever.progress import duration
from minilm_retriever.reports.model_card import escape_markdown, model_card
from tests.run_records import BARE, HOSTILE, HOSTILE_TEXT, RUN

PUBLISHED_TAGS = (
    "sentence-transformers sentence-similarity feature-extraction generated_from_trainer "
    "dataset_size:100000 loss:MultipleNegativesRankingLoss"
).split()


def writable(text):
    """A lone surrogate has no place in UTF-8."""
    return text.replace("\ud800", "?")


def without_code(card):
    """The Markdown without front matter and code blocks."""
    body = card.split("\n---\n", 1)[1]
    return re.sub(r"^(`{3,}).*?\n\1$", "a code block", body, flags=re.M | re.S)


@pytest.mark.parametrize("record", [RUN, HOSTILE, BARE], ids=["usual", "hostile", "bare"])
def test_the_front_matter_is_what_the_hub_reads(record):
    data = ModelCard(model_card(record), ignore_metadata_errors=False).data.to_dict()
    assert data["library_name"] == "sentence-transformers"
    assert data["pipeline_tag"] == "sentence-similarity"
    assert (
        f"dataset_size:{record.rows}" in data["tags"]
        and "loss:MultipleNegativesRankingLoss" in data["tags"]
    )
    assert data.get("base_model") == (record.base if record.base_revision else None)
    assert data.get("language") == record.language
    assert [one["source_sentence"] for one in data.get("widget", [])] == [
        writable(one[0]) for one in record.widget
    ]
    assert [one["sentences"] for one in data.get("widget", [])] == [
        [writable(text) for text in others] for _, others in record.widget
    ]
    assert data.get("license") == (record.license and writable(record.license))


def test_the_sections_of_the_published_card_are_all_there():
    headings = [line for line in model_card(RUN).splitlines() if line.startswith("#")]
    titles = {heading.lstrip("# ") for heading in headings}
    assert titles >= {
        "job-skills",
        *(
            "Model details",
            "Architecture",
            "Usage",
            "Downstream use",
            "Intended use",
            "Model sources",
        ),
        *(
            "Bias, risks and limitations",
            "Recommendations",
            "Training details",
            "Training data",
            "Loss",
        ),
        *(
            "Hyperparameters",
            "Non-default hyperparameters",
            "All hyperparameters",
            "Evaluation",
            "Training log",
        ),
        *("Framework versions", "Citation", "Glossary"),
    }


def test_the_front_matter_has_the_tags_and_the_metrics():
    data = ModelCard(model_card(RUN)).data
    assert set(data.tags) >= set(PUBLISHED_TAGS)
    metrics = {result.metric_type: result.metric_value for result in data.eval_results}
    assert metrics == RUN.evaluation.after and data.model_name == "job-skills"
    hostile = ModelCard(model_card(HOSTILE)).data.eval_results
    assert [result.metric_value for result in hostile] == [0.5], "NaN is no result"


def test_the_figures_of_the_run_are_told():
    card = model_card(RUN)
    for figure in (
        "100,000 rows, 376 of them distinct",
        "| <code>sentence_0</code> | string | 14 |",
        "18,750 steps in 3 h 25 min on 2 x Some CPU, 8 GB",
        "| 0.08 | 500 | 0.0787 |",
        "| 2.96 | 18500 | 0.0361 |",
        "| mrr@10 | 0.7380 | 0.8150 | +0.0770 |",
        "320 queries against 320 documents; 2 of its rows are training rows too",
        "0.0374",
        "Resumed twice.",
        "- PyTorch: 2.13.0+cpu",
        "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    ):
        assert figure in card, figure


def test_non_default_settings_come_first_and_defaults_only_among_all():
    changed, every = model_card(RUN).split("#### All hyperparameters")
    changed = changed.split("#### Non-default hyperparameters")[1]
    assert re.findall(r"<code>(.*?)</code>", changed) == ["learning_rate"] and "5e-05" in changed
    assert re.findall("^- <code>(.*?)</code>", every, re.M) == list(RUN.settings)


def test_what_did_not_happen_is_not_told():
    card = model_card(BARE)
    for absent in (
        "Resumed",
        "Command",
        "| before |",
        "Training loss",
        "Samples",
        "widget",
        "language:",
        "floor",
    ):
        assert absent not in card, absent
    assert "Not evaluated" in card and "every setting has its default" in card
    for claim in ("Not stated", "license", "Intended use", "Out-of-scope", "authors", "contact"):
        assert claim not in card, claim


@pytest.mark.parametrize("record", [RUN, HOSTILE, BARE], ids=["usual", "hostile", "bare"])
def test_no_section_is_empty(record):
    text = without_code(model_card(record))
    for level, title, next_level in re.findall(r"^(#+) (.*)\n+(?=(#*) ?|\Z)", text, re.M):
        assert not next_level or len(next_level) > len(level), title


def test_an_evaluation_without_a_before_has_no_empty_columns():
    assert "| metric | after |\n" in model_card(HOSTILE)


@pytest.mark.parametrize("record", [RUN, HOSTILE, BARE], ids=["usual", "hostile", "bare"])
def test_the_python_examples_are_python_and_the_tables_have_even_rows(record):
    card = model_card(record)
    examples = re.findall(r"^(`{3,})python\n(.*?)\n\1$", card, re.M | re.S)
    assert len(examples) == 3
    for _, example in examples:
        ast.parse(example)
    for table in re.findall(r"(?:^\|.*\|\n)+", card, re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_the_transformers_example_pools_as_the_model_does():
    assert "mask.sum(1)" in model_card(RUN) and "normalize(embeddings" in model_card(RUN)
    assert "hidden[:, 0]" in model_card(BARE) and "normalize(embeddings" not in model_card(BARE)


def test_no_text_of_the_data_becomes_markup():
    card = model_card(HOSTILE)
    outside_code = without_code(card)
    for markup in ("<script>", "*bold*", "_x_", "[link]", "`code`", "~~gone~~"):
        assert markup not in outside_code, markup
    assert "x" * 2000 not in card, "a long sample is cut"
    assert "{{ 6 * 7 }} {% raw %} {# gone #}" in card, "no text of the data is a template"


def test_escaped_text_reads_as_it_was():
    import html

    assert html.unescape(escape_markdown(HOSTILE_TEXT)) == " ".join(HOSTILE_TEXT.split())


def test_a_card_is_made_without_a_network(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(socket, "getaddrinfo", None)
    model_card(RUN)


def test_the_card_can_always_be_written():
    assert "\ud800" not in model_card(HOSTILE)
    model_card(HOSTILE).encode("utf-8")
    assert model_card(RUN).endswith("ten.\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (725, "12 min 5 s"), (1e5, "27 h 46 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
