"""README.md of a trained model: model_card_template.md, filled in with the facts of the run."""

from __future__ import annotations

import html
import math
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilm_retriever.progress import duration, json_text
from minilm_retriever.reports.run_record import RunRecord, map_texts, shorten

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

TEMPLATE = Path(__file__).with_name("model_card_template.md")
TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction"]
TAGS += ["generated_from_trainer", "minilm_retriever"]
LOSS_VARIANTS = {"false_negatives", "guide", "guide_margin", "guide_all", "symmetric", "matryoshka"}
LOSS_VARIANTS |= {"stay_near"}
LOSS_NAMES = {  # in sentence-transformers
    "infonce": "MultipleNegativesRankingLoss",
    "cosent": "CoSENTLoss",
    "cosine": "CosineSimilarityLoss",
}
SETTINGS_OF_LOSS = {
    "infonce": {"scale", "label_smoothing"},
    "cosent": {"scale"},
    "cosine": {"score_range"},
}


def model_card(record: RunRecord) -> str:
    """The card as the hub reads it: YAML front matter, then Markdown.

    The template gets every text escaped, except in code blocks."""
    from huggingface_hub import ModelCard

    facts: dict[str, Any] = map_texts(writable, asdict(record) | {"changed": record.changed})
    facts["samples"] = map_texts(shorten, facts["samples"])
    escaped = {name: map_texts(escape_markdown, value) for name, value in facts.items()}
    card = ModelCard.from_template(
        front_matter(facts),
        template_path=str(TEMPLATE),
        **escaped,
        code=code_blocks(facts),
        duration=duration(record.seconds),
    )
    return f"{card}\n"


def front_matter(facts: dict[str, Any]) -> ModelCardData:
    from huggingface_hub import EvalResult, ModelCardData

    evaluation = facts["evaluation"] or {"after": {}}
    task = "Information Retrieval" if evaluation.get("documents", 1) else "Semantic Similarity"
    results = [
        EvalResult(
            task_type=task.lower().replace(" ", "-"),
            task_name=task,
            dataset_type="unknown",
            dataset_name=evaluation["data"],
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in evaluation["after"].items()
        if math.isfinite(value)
    ]
    widget = [{"source_sentence": text, "sentences": texts} for text, texts in facts["widget"]]
    return ModelCardData(
        base_model=facts["base"] if facts["base_revision"] else None,
        language=facts["language"],
        license=facts["license"],
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[*TAGS, f"dataset_size:{facts['rows']}", f"loss:{LOSS_NAMES[facts['loss']]}"],
        widget=widget or None,
        model_name=facts["name"] if results else None,
        eval_results=results or None,
    )


def code_blocks(facts: dict[str, Any]) -> dict[str, str]:
    """The texts of the template's code blocks: one line each, so that none can end a block."""
    texts = [text for source, others in facts["widget"][:1] for text in (source, *others)]
    loss_parameters, shown = {"similarity_fct": "cos_sim"}, SETTINGS_OF_LOSS[facts["loss"]]
    loss_parameters |= {k: v for k, v in facts["settings"].items() if k in shown}
    loss_parameters |= {k: v for k, v in facts["changed"].items() if k in LOSS_VARIANTS}
    return {
        "sentences": "sentences = [\n" + "".join(f"    {text!r},\n" for text in texts) + "]",
        "shape": f"({len(texts)}, {facts['dimension']})",
        "similarities": facts["similarities"].replace("\n", "\n# "),
        "model": repr(facts["name"]),
        "shell_model": shlex.quote(" ".join(facts["name"].split())),
        "loss_parameters": json_text(loss_parameters),
    }


def writable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")  # no lone surrogates


def escape_markdown(text: str) -> str:
    """A text as one line of Markdown, where what could be markup is an entity."""
    one_line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\`*\[\]|~$]|\b_|_\b|(?<!\w)_", lambda hit: f"&#{ord(hit[0])};", one_line)
