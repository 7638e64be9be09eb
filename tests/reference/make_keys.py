"""Every file and top-level key that the peers' own writers put into a model folder.

    PEER/bin/python tests/reference/make_keys.py --into tests/reference/model_folder_keys.json

Run with the Python of each peer environment in turn (peft beside it): each adds what its versions
write. docs/model_folders.md has a row for each; tests/test_model_folder_table.py holds it to that."""

import argparse
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peer  # first: it keeps the hub out of the way

# isort: split
import sentence_transformers as st
import torch
from peft import LoraConfig, get_peft_model
from sentence_transformers import models
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)

from tests.tiny import make_tiny_bert

PACKAGES = ("sentence-transformers", "transformers", "tokenizers", "peft")
ADAPTERS: list[dict[str, Any]] = [
    {},
    {"use_rslora": True, "bias": "all"},
    {"rank_pattern": {"layer.1.attention.self.query": 2}, "alpha_pattern": {"query": 3}},
    {"modules_to_save": ["pooler"], "layers_to_transform": [0]},
    {"use_dora": True},
]


def sentence_encoders(base: Path) -> Iterator[Any]:
    """With every module and setting that can be saved."""
    transformer = models.Transformer(str(base), max_seq_length=32)
    width = 32
    for mode in ("cls", "max", "mean"):
        yield st.SentenceTransformer(modules=[transformer, models.Pooling(width, mode)])
    every = [
        transformer,
        models.Pooling(width, "mean"),
        models.Dense(width, 16),
        models.LayerNorm(16),
        models.Dropout(0.1),
        models.Normalize(),
    ]
    prompts = {"query": "query: ", "document": "passage: "}
    yield st.SentenceTransformer(
        modules=every, prompts=prompts, default_prompt_name="query", truncate_dim=8
    )
    yield st.SentenceTransformer(str(base), similarity_fn_name="dot", device="cpu")


def folders(place: Path) -> Iterator[Path]:
    """Each as a writer leaves it."""
    base = make_tiny_bert(place / "tiny")
    for number, model in enumerate(sentence_encoders(base)):
        model.save(str(place / f"st{number}"))
        yield place / f"st{number}"
    st.CrossEncoder(str(base), num_labels=1).save(str(place / "cross"))
    yield place / "cross"
    if hasattr(st, "SparseEncoder"):
        yield from sparse(base, place)
    config = BertConfig.from_pretrained(base)
    for kind in (BertModel, BertForMaskedLM, BertForPreTraining, BertForSequenceClassification):
        for dtype in (torch.float32, torch.float16):
            folder = place / f"{kind.__name__}-{dtype}"
            kind(config).to(dtype).save_pretrained(folder, max_shard_size="50KB")
            yield folder
    for number, options in enumerate(({}, {"do_lower_case": False}, {"truncation_side": "left"})):
        tokenizer = AutoTokenizer.from_pretrained(base, **options)
        tokenizer.add_tokens(["[NEW]"])
        tokenizer.save_pretrained(place / f"tokenizer{number}")
        yield place / f"tokenizer{number}"
    for number, options in enumerate(ADAPTERS):
        adapted = get_peft_model(BertModel(config), LoraConfig(target_modules=["query"], **options))
        adapted.save_pretrained(place / f"adapter{number}")
        yield place / f"adapter{number}"


def sparse(base: Path, place: Path) -> Iterator[Path]:
    try:
        model = st.SparseEncoder(str(base))
        model.save(str(place / "sparse"))
        yield place / "sparse"
    except Exception as problem:  # noqa: BLE001 - the tiny model has no head for it
        print(f"SparseEncoder: {problem}")


def keys_of(path: Path) -> list[str]:
    value = json.loads(path.read_text("utf-8"))
    rows = value if isinstance(value, list) else [value]
    return sorted({key for row in rows if isinstance(row, dict) for key in row})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--into", type=Path, required=True, help="JSON to add to, or to make")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    known = json.loads(args.into.read_text("utf-8")) if args.into.exists() else {}
    found: dict[str, set[str]] = {k: set(v) for k, v in known.get("files", {}).items()}
    with tempfile.TemporaryDirectory() as place:
        for folder in folders(Path(place)):
            for path in folder.rglob("*"):
                if not path.is_file():
                    continue
                name = re.sub(r"^\d+_", "", path.relative_to(folder).as_posix())
                name = re.sub(r"-\d{5}-of-\d{5}", "-N-of-N", name)
                keys = keys_of(path) if path.suffix == ".json" and path.name != "vocab.json" else []
                found.setdefault(name, set()).update(keys)
    versions = {package: version(package) for package in PACKAGES}
    others = [each for each in known.get("versions", []) if each != versions]
    peer.write_json(
        args.into,
        {
            "versions": [*others, versions],
            "files": {name: sorted(keys) for name, keys in sorted(found.items())},
        },
    )


if __name__ == "__main__":
    main()
