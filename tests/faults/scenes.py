"""Small jobs to inject faults into: a tiny model, pairs, texts, and the commands over them."""

from __future__ import annotations

import json
from pathlib import Path

from minilm_retriever.training.config import TrainConfig
from tests.tiny import make_tiny_bert

NOUNS = "data nurse cook engine river soil music night".split()
NOUNS += "bread glass horse code paper metal forest child".split()


def tiny_model(place: Path) -> Path:
    """The tiny model's folder, made once for a place."""
    folder = place / "model"
    return folder if folder.is_dir() else make_tiny_bert(folder)


def pairs_file(place: Path, rows: int = 42) -> Path:
    """Pairs of different texts."""
    path = place / f"pairs-{rows}.csv"
    if not path.exists():
        lines = ["sentence_0,sentence_1"]
        for i in range(rows):
            words = [NOUNS[(i * k + k) % len(NOUNS)] for k in (1, 3, 5, 7)]
            lines.append(
                f"works with {words[0]} and {words[1]} {i},{words[2]} {words[3]} number {i}"
            )
        path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def texts_file(place: Path, rows: int) -> Path:
    """Short texts with an id each, some of them repeated."""
    path = place / f"texts-{rows}.jsonl"
    if not path.exists():
        lines = [
            json.dumps({"id": f"a{n}", "text": f"text {n % 97} {NOUNS[n % len(NOUNS)]}"})
            for n in range(rows)
        ]
        path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def train_flags(
    place: Path, out: Path, *, steps: int = 18, save: int = 1, keep: int = 2
) -> list[str]:
    """`train` with a state after every `save` steps, dropout on."""
    flags = {
        "train": pairs_file(place),
        "model": tiny_model(place),
        "out": out,
        "batch-size": 8,
        "max-steps": steps,
    }
    flags |= {"save-steps": save, "keep": keep, "log-steps": 1, "threads": 1, "device": "cpu"}
    return ["train", *(str(x) for name, value in flags.items() for x in (f"--{name}", value))]


def train_config(
    place: Path, out: Path, *, steps: int = 6, save: int = 2, keep: int = 2
) -> TrainConfig:
    """The same for a run inside this process."""
    return TrainConfig(
        train=(str(pairs_file(place)),),
        model=str(tiny_model(place)),
        out=str(out),
        batch_size=8,
        max_steps=steps,
        save_steps=save,
        keep=keep,
        log_steps=1,
        threads=1,
        device="cpu",
    )


def encode_flags(place: Path, out: Path, *, rows: int = 1500, shard: int = 50) -> list[str]:
    """`encode` in 30 shards."""
    flags = {
        "model": tiny_model(place),
        "out": out,
        "shard-size": shard,
        "threads": 1,
        "device": "cpu",
    }
    source = texts_file(place, rows)
    return [
        "encode",
        str(source),
        *(str(x) for name, value in flags.items() for x in (f"--{name}", value)),
    ]
