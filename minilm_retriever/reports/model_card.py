"""README.md of a trained model: the hub's front matter and every section of a model card, of what
happened alone."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Mapping, Sequence

from minilm_retriever.progress import duration
from minilm_retriever.reports import card_texts
from minilm_retriever.reports.run_record import RunRecord

LONGEST_SAMPLE = 1000  # characters of a text that is shown


def model_card(record: RunRecord) -> str:
    """The card as Markdown with YAML front matter, ready to be written as README.md."""
    sections = [
        _front_matter(record),
        f"# {_md(record.name)}\n\n{_introduction(record)}",
        f"## Model details\n\n{_description(record)}",
        f"### Architecture\n\n{_architecture(record)}",
        f"## Usage\n\n{_usage(record)}",
        _statements(record),
        f"## Training details\n\n{_training_data(record)}",
        f"### Loss\n\n{_loss(record)}",
        f"### Hyperparameters\n\n{_hyperparameters(record)}",
        f"### Evaluation\n\n{_evaluation(record)}",
        f"### Training log\n\n{_log(record)}",
        "### Framework versions\n\n"
        + "\n".join(f"- {_md(k)}: {_md(v)}" for k, v in record.versions.items()),
        f"## Citation\n\n{card_texts.CITATIONS}",
        f"## Glossary\n\n{card_texts.GLOSSARY}",
        f"## Model card authors\n\n{_md(record.authors or 'Not stated.')}",
        f"## Model card contact\n\n{_md(record.contact or 'Not stated.')}",
    ]
    return _writable("\n\n".join(sections) + "\n")


# Front matter. Strings are written in YAML's double quotes, every character that is not plainly
# printable escaped, so that no text of the data can end a string or be taken for a date, a number
# or a `no`.


def _front_matter(record: RunRecord) -> str:
    tags = [
        "sentence-transformers",
        "sentence-similarity",
        "feature-extraction",
        "minilm_retriever",
    ]
    tags += [f"dataset_size:{record.rows}", f"loss:{record.loss}", *record.tags]
    lines = ["---"]
    if record.language:
        lines.append(f"language: {_yaml(record.language)}")
    if record.license:
        lines.append(f"license: {_yaml(record.license)}")
    if record.base_model:
        lines.append(f"base_model: {_yaml(record.base_model)}")
    lines += ["pipeline_tag: sentence-similarity", "library_name: sentence-transformers", "tags:"]
    lines += [f"- {_yaml(tag)}" for tag in dict.fromkeys(tags)]
    if record.widget:
        lines.append("widget:")
    for source, sentences in record.widget:
        lines += [f"- source_sentence: {_yaml(_short(source))}", "  sentences:"]
        lines += [f"  - {_yaml(_short(sentence))}" for sentence in sentences]
    return "\n".join([*lines, "---"])


def _yaml(text: str) -> str:
    text = _writable(text)
    return (
        '"'
        + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in text)
        + '"'
    )


def _writable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be written


# Markdown


def _md(text: object) -> str:
    """Any text as itself in one line of Markdown, a table's cell included: what could be markup is
    an entity."""
    plain = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"[\\`*\[\]|~$]|\b_|_\b|(?<!\w)_", lambda hit: f"&#{ord(hit[0])};", plain)


def _code(text: object) -> str:
    return f"<code>{_md(text)}</code>"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_SAMPLE else text[:LONGEST_SAMPLE] + "…"


def _fenced(language: str, text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A Markdown table, figures to the right of so many columns of words; whoever made the cells
    has escaped them."""
    lines = [header, [":--"] * words + ["--:"] * (len(header) - words), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


# Sections


def _base(record: RunRecord, with_revision: bool = True) -> str:
    if not record.base_model:
        return _code(record.base)
    revision = (
        f", revision {_code(record.base_revision)}"
        if with_revision and record.base_revision
        else ""
    )
    return f"{_code(record.base_model)}{revision}"


def _introduction(record: RunRecord) -> str:
    return (
        f"A text encoder fine-tuned from {_base(record, False)}. It turns a sentence or short paragraph into a vector "
        f"of {record.dimension} numbers; texts that belong together, as those of a row of its training data do, get "
        f"vectors that lie close to each other. Use it for semantic search, similarity, clustering, deduplication."
    )


def _description(record: RunRecord) -> str:
    facts = {
        "Model type": "bi-encoder (sentence-transformers layout)",
        "Base model": _base(record),
        "Longest input": f"{record.max_length} tokens; what comes after is cut off",
        "Output": f"{record.dimension} dimensions" + (", unit length" if record.normalize else ""),
        "Similarity": _md(record.similarity),
        "Training data": ", ".join(_code(data) for data in record.data) or "not stated",
        "Language": _md(record.language or "not stated"),
        "License": _md(record.license or "not stated"),
        "Documentation of the layout": "[sentence-transformers](https://sbert.net)",
    }
    return "\n".join(f"- **{name}:** {fact}" for name, fact in facts.items())


def _architecture(record: RunRecord) -> str:
    bert = "".join(f", {name} {_plain(value)}" for name, value in record.bert.items())
    lines = [f"(0) Transformer: BertModel, at most {record.max_length} tokens{bert}"]
    lines.append(f"(1) Pooling: {record.pooling}, {record.dimension} dimensions")
    if record.normalize:
        lines.append("(2) Normalize: to unit length")
    return _fenced("", "\n".join(lines))


def _plain(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _usage(record: RunRecord) -> str:
    source, others = next(
        iter(record.widget), ("How do I reset my password?", ["Click on forgotten password."])
    )
    texts = [source, *others]
    mean = "(hidden * mask).sum(1) / mask.sum(1).clamp(min=1)  # the mean of the real tokens"
    parts = {
        "sentences": "sentences = [\n"
        + "".join(f"    {_short(text)!r},\n" for text in texts)
        + "]",
        "folder": repr(record.folder),
        "shape": f"({len(texts)}, {record.dimension})",
        "limit": record.max_length,
        "pooled": mean if record.pooling == "mean" else "hidden[:, 0]  # the vector of [CLS]",
        "unit": "embeddings = torch.nn.functional.normalize(embeddings, dim=1)\n"
        if record.normalize
        else "",
    }
    return "\n\n".join(
        [
            "With minilm_retriever:",
            _fenced("python", card_texts.OURS.format_map(parts)),
            "With sentence-transformers (`pip install sentence-transformers`):",
            _fenced("python", card_texts.SENTENCE_TRANSFORMERS.format_map(parts)),
            "With transformers alone, which leaves the pooling to you:",
            _fenced("python", card_texts.TRANSFORMERS.format_map(parts)),
            "### Downstream use\n\nTo fine-tune it further, to encode a file, and to search in what was encoded:",
            _fenced("bash", card_texts.COMMANDS.format(folder=shlex.quote(record.folder))),
        ]
    )


def _statements(record: RunRecord) -> str:
    """What the user says about use and limits, and beside it what the run itself shows."""
    limits = [f"Only the first {record.max_length} tokens of a text count."]
    if record.language:
        limits.append(f"Its training texts are in this language: {_md(record.language)}.")
    if record.loss_floor:
        limits.append(
            "Some batches held the same text twice, so the training treated some right answers as wrong."
        )
    overlap = sum(evaluation.also_in_training for evaluation in record.evaluations)
    if overlap:
        limits.append(
            f"{overlap:,} held-out rows stand in the training data, too: read the evaluation with that in mind."
        )
    limits.append("Biases of the base model and of the training data were not examined.")
    stated = f"{_md(record.limits)}\n\n" if record.limits else ""
    advice = record.recommendations or (
        "Measure it on queries of your own, which it has not seen, beside the base model, before you rely on it."
    )
    return "\n\n".join(
        [
            f"### Intended use\n\n{_md(record.intended_use or 'Not stated.')}",
            f"### Out-of-scope use\n\n{_md(record.out_of_scope or 'Not stated.')}",
            f"## Bias, risks and limitations\n\n{stated}"
            + "\n".join(f"- {limit}" for limit in limits),
            f"### Recommendations\n\n{_md(advice)}",
        ]
    )


def _training_data(record: RunRecord) -> str:
    distinct = (
        "" if record.distinct_pairs is None else f", {record.distinct_pairs:,} of them distinct"
    )
    counted = max((len(column.lengths) for column in record.columns), default=0)
    facts = [
        f"- Source: {', '.join(_code(data) for data in record.data) or 'not stated'}",
        f"- Size: {record.rows:,} rows{distinct}",
        f"- Columns: {', '.join(_code(column.name) for column in record.columns)}",
    ]
    lengths = [
        [_code(c.name), str(min(c.lengths)), f"{c.mean:.2f}", str(max(c.lengths))]
        for c in record.columns
        if c.lengths
    ]
    parts = ["### Training data", "\n".join(facts)]
    if lengths:
        parts += [
            f"Tokens of the first {counted:,} rows:",
            _table(["column", "min", "mean", "max"], lengths),
        ]
    if record.samples:
        rows = [[_code(_short(text)) for text in sample] for sample in record.samples]
        parts += [
            "Samples:",
            _table([_md(c.name) for c in record.columns], rows, words=len(record.columns)),
        ]
    return "\n\n".join(parts)


def _loss(record: RunRecord) -> str:
    further = " and with all texts of the further columns" if len(record.columns) > 2 else ""
    parts = [
        f"{_code(record.loss)}: for each text of the first column, cross-entropy over its similarities with the second "
        f"column's texts of the whole batch{further}, of which its own is the right one. Parameters:",
        _fenced("json", json.dumps(record.loss_parameters, indent=2, default=str)),
    ]
    if record.loss_floor is not None:
        parts.append(
            f"Texts that stand twice in a batch count as wrong answers to each other. For the batches of this run that "
            f"keeps the mean loss at {record.loss_floor:.4f} or above, however good the model is."
        )
    return "\n\n".join(parts)


def _hyperparameters(record: RunRecord) -> str:
    return "\n\n".join(
        [
            "#### Non-default hyperparameters",
            _settings(record.changed) or "None: every setting has its default.",
            "#### All hyperparameters",
            "<details><summary>Every setting, as it ran</summary>",
            _settings(record.settings),
            "</details>",
        ]
    )


def _settings(settings: Mapping[str, object]) -> str:
    return "\n".join(f"- {_code(name)}: {_md(value)}" for name, value in settings.items())


def _evaluation(record: RunRecord) -> str:
    if not record.evaluations:
        return "Not evaluated: the run was given no held-out data."
    parts = []
    for evaluation in record.evaluations:
        size = f"{evaluation.queries:,} queries"
        if evaluation.documents is not None:
            size += f" against {evaluation.documents:,} documents"
        if evaluation.also_in_training:
            size += f"; {evaluation.also_in_training:,} of its rows stand in the training data, too"
        rows = []
        for metric, after in evaluation.after.items():
            before, gain = evaluation.before.get(metric), evaluation.gains.get(metric)
            rows.append(
                [
                    _md(metric),
                    "" if before is None else f"{before:.4f}",
                    f"{after:.4f}",
                    "" if before is None else f"{after - before:+.4f}",
                    "" if gain is None else f"{gain[0]:+.4f} to {gain[1]:+.4f}",
                ]
            )
        header = ["metric", "before", "after", "gain", "95 % interval of the gain"]
        used = [i for i in range(len(header)) if i in (0, 2) or any(row[i] for row in rows)]
        table = _table([header[i] for i in used], [[row[i] for i in used] for row in rows])
        parts += [f"{_code(evaluation.data)}: {size}.", table]
    return "\n\n".join(parts)


def _log(record: RunRecord) -> str:
    facts = [f"{record.steps:,} steps in {duration(record.seconds)} on {_md(record.machine)}."]
    facts += [_md(note) for note in record.notes]
    if record.command:
        facts.append(f"Command: {_code(record.command)}")
    parts = ["\n".join(f"- {fact}" for fact in facts)]
    if record.log:
        rows = [
            [f"{round(epoch, 4):g}", str(step), f"{round(loss, 4):g}"]
            for epoch, step, loss in record.log
        ]
        parts.append(_table(["Epoch", "Step", "Training loss"], rows, words=0))
    return "\n\n".join(parts)
