"""Open a model folder as other people will: in a sentence-transformers of their own, and in plain
transformers.

    PEER/bin/python tests/reference/check_folder.py --folder F --expected E.npz     exit status 1 on any deviation
    PEER/bin/python tests/reference/check_folder.py --folder F --save DIR           save it again, in the peer's layout

Run with the Python of a peer environment (see interop.py). E.npz holds `embeddings` of texts.json,
row for row."""

import argparse
import json
import logging
import warnings
from pathlib import Path

from peer import Checks, peer_versions, read_texts  # first: it keeps the hub out of the way

# isort: split
import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

LIMIT = 1e-6
KEYS = ("missing", "unexpected", "mismatched")
NOT_WEIGHTS = ("embeddings.position_ids",)  # a buffer that old checkpoints carry


class Complaints(logging.Handler):
    """Collects what the peer's libraries log at WARNING or above, and Python warnings, while the
    block runs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.name}: {record.getMessage()}")

    def __enter__(self) -> "Complaints":
        self.catcher = warnings.catch_warnings(record=True)
        self.caught = self.catcher.__enter__()
        warnings.simplefilter("always", UserWarning)
        for name in ("transformers", "sentence_transformers"):
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("transformers", "sentence_transformers"):
            logging.getLogger(name).removeHandler(self)
        self.catcher.__exit__(None, None, None)
        self.messages += [
            f"{w.category.__name__}: {w.message}" for w in self.caught if w.category is UserWarning
        ]


def embed_with_transformers(
    folder: Path, texts: list[str]
) -> tuple[np.ndarray, dict[str, list[str]]]:
    """What a reader of the model card does by hand, and the keys that were missing, unexpected or
    of another shape."""
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    limit = json.loads((folder / "sentence_bert_config.json").read_text("utf-8")).get(
        "max_seq_length"
    )
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text("utf-8"))
    first_token = pooling.get("pooling_mode_cls_token") or pooling.get("pooling_mode") == "cls"
    rows = []
    for text in texts:
        batch = tokenizer([text.strip()], truncation=True, max_length=limit, return_tensors="pt")
        with torch.inference_mode():
            states = model.eval()(**batch).last_hidden_state[0]  # (T, H)
        pooled = states[0] if first_token else states.mean(0)
        rows.append(torch.nn.functional.normalize(pooled, dim=0).numpy())
    problems = {
        kind: sorted(map(str, set(info[f"{kind}_keys"]) - set(NOT_WEIGHTS))) for kind in KEYS
    }
    return np.stack(rows), problems


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="model folder to open")
    parser.add_argument("--expected", type=Path, help=".npz with `embeddings` of texts.json")
    parser.add_argument("--save", type=Path, help="save the folder again with this peer, here")
    args = parser.parse_args()

    checks = Checks()
    texts = read_texts()
    with Complaints() as complaints:
        model = SentenceTransformer(str(args.folder), device="cpu")
        if args.expected:
            expected = np.load(args.expected)["embeddings"]
            by_transformers, problems = embed_with_transformers(args.folder, texts)
    if args.expected:
        for kind, keys in problems.items():
            checks.line(
                f"transformers finds no {kind} weights", not keys, ", ".join(keys) or "none"
            )
        checks.line(
            "nothing is warned about",
            not complaints.messages,
            "; ".join(dict.fromkeys(complaints.messages)) or "silent",
        )
        name = f"sentence-transformers {peer_versions()['sentence-transformers']}"
        for reader, embeddings in ((name, model.encode(texts)), ("transformers", by_transformers)):
            checks.at_most(
                f"{reader} gives the same embeddings",
                float(np.abs(embeddings - expected).max()),
                LIMIT,
            )
    if args.save:
        model.save(str(args.save))
    checks.exit()


if __name__ == "__main__":
    main()
