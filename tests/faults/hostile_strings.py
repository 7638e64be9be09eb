"""Strings that nobody would write, through encoding and training."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import replace

import numpy as np
from safetensors.numpy import load_file

from minilm_retriever.core import model
from minilm_retriever.encoder import Encoder, encode_texts
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained import tokenizer
from minilm_retriever.training.run import train
from tests.conftest import BASE
from tests.faults.row import Outcome, Row, Scene, judge, patched
from tests.faults.scenes import tiny_model, train_config
from tests.texts import hostile_texts

# ruff: noqa: E501
HAND_MADE = (
    "", " ", "\n", "\t\r\n", "\x00", "\x00" * 500, "\x7f\x80\x9f", "\ufeff", "\ufffe", "\uffff", "\U0010ffff", "\U000e0001",
    "\u200b" * 300, "\u202e" + "abc" * 50, "\u2066\u2067\u2068\u2069", "a" + "\u0301" * 5000, "ﷺ" * 300, "ﷺ", "\u1680\u2003\u3000",
    "😀" * 400, "👩‍👩‍👧‍👦" * 60, "🇩🇪" * 100, "🏴\U000e0067\U000e0062\U000e007f", "한" * 400, "\u1100\u1161\u11a8" * 80, "中" * 5000,
    "x" * 100_000, "x " * 20_000, "[CLS]" * 200, "[SEP] [PAD] [MASK] [UNK]", "##ing ##ed", "'; DROP TABLE vectors; --",
    "<script>alert(1)</script>", "%s%n%x" * 50, "${jndi:ldap://x}", "../../etc/passwd", "\\x00\\ud800", "1e400 nan inf -0",
    "\ud800", "x\udc00y", "\udbff\udfff", "\r" * 100, "\x1b[31mred\x1b[0m",
)  # fmt: skip


def strings(scene: Scene, count: int) -> list[str]:
    """The hand-made ones and random ones; the same for a seed."""
    return [*HAND_MADE, *hostile_texts(max(0, count - len(HAND_MADE)), seed=scene.seed + 1)][:count]


def has_surrogate(text: str) -> bool:
    return any(0xD800 <= ord(character) < 0xE000 for character in text)


def hostile_strings(scene: Scene, count: int) -> Iterator[Outcome]:
    """Each is encoded, by the tiny model and by the real one where it is there, and trained on with
    its successor."""
    texts = strings(scene, count)
    good = [text for text in texts if not has_surrogate(text)]
    models = [
        tiny_model(scene.place),
        *([BASE] if count > 1000 and (BASE / "model.safetensors").exists() else []),
    ]
    scene.notes["models"], scene.notes["with a lone surrogate"] = (
        len(models),
        len(texts) - len(good),
    )
    problems: dict[str, str] = {}
    for folder in models:
        encoder = Encoder.from_pretrained(folder, device="cpu")
        for start in range(0, len(good), 500):
            problems |= wrong_vectors(encoder, good[start : start + 500])
    trained = trained_on(scene, [text for text in good if text.strip()])
    encoder = Encoder.from_pretrained(models[0], device="cpu")
    for text in texts:
        if has_surrogate(text):
            yield refused(encoder, text)
        else:
            problem = problems.get(text) or trained
            yield judge(not problem, "survived", f"{text[:40]!r}: {problem}")


def wrong_vectors(encoder: Encoder, texts: list[str]) -> dict[str, str]:
    """What is wrong with which text's vector."""
    try:
        vectors = encoder.encode(texts)
    except Exception as fault:
        return dict.fromkeys(texts, f"{type(fault).__name__}: {fault}")
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    good = np.isfinite(vectors).all(axis=1) & (np.abs(lengths - 1) <= 1e-5)
    return {
        text: f"a vector of length {length}"
        for text, fine, length in zip(texts, good, lengths, strict=True)
        if not fine
    }


def refused(encoder: Encoder, text: str) -> Outcome:
    """A lone surrogate is refused, and its text named."""
    try:
        encoder.encode(["good", text])
    except UserError as fault:
        return judge(str(fault).startswith("text 1 holds a lone surrogate"), "detected", str(fault))
    except Exception as fault:
        return Outcome("silent", f"{text[:40]!r}: {type(fault).__name__}: {fault}")
    return Outcome("silent", f"{text[:40]!r}: encoded")


def trained_on(scene: Scene, texts: list[str]) -> str:
    """One pass over pairs of them; what is wrong with the losses or the weights."""
    place = scene.room("trained")
    path = place / "pairs.jsonl"
    rows = [
        json.dumps({"sentence_0": a, "sentence_1": b})
        for a, b in zip(texts, texts[1:] + texts[:1], strict=True)
    ]
    path.write_text("".join(f"{row}\n" for row in rows), "utf-8")
    steps = math.ceil(len(rows) / 8)
    config = replace(
        train_config(scene.place, place / "out", steps=steps), train=(str(path),), save_steps=None
    )
    try:
        with redirect_stderr(io.StringIO()):
            train(config)
    except Exception as fault:
        return f"training: {type(fault).__name__}: {fault}"
    log = [
        json.loads(line)
        for line in (place / "out" / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    if len(log) != steps or not all(math.isfinite(row["loss"]) for row in log):
        return f"training: {len(log)} losses of {steps} steps, or one that is not finite"
    weights = load_file(place / "out" / "model.safetensors")
    return (
        ""
        if all(np.isfinite(tensor).all() for tensor in weights.values())
        else "training: weights that are not finite"
    )


def texts_unchecked() -> object:
    """Mutation: texts reach the tokenizer unchecked."""
    nothing = lambda *_: None  # noqa: E731
    return patched((tokenizer, "check_texts", nothing), (encode_texts, "check_texts", nothing))


def not_normalised() -> object:
    """Mutation: vectors are not normalised."""
    return patched((model, "l2_normalize", lambda x: x))


ROWS = (
    Row(
        "hostile-strings",
        "hostile strings in encode and train: every plane, controls, directions, runs, lone surrogates",
        "no crash, no value that is not finite, unit norms within 1e-5, half a character refused by its place",
        10_040,
        hostile_strings,
        {"texts not checked": texts_unchecked, "vectors not normalised": not_normalised},
        sample=240,
        mutated=120,
        minutes=20,
    ),
)
