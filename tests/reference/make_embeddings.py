"""Embed texts.json with sentence-transformers: embeddings.npz and embeddings.json beside each
other.

    PEER/bin/python tests/reference/make_embeddings.py --model checkpoints/all-MiniLM-L6-v2 --out DIR

Run with the Python of a peer environment (see interop.py); the committed files are those of 6.2.0.

embeddings.npz    `embeddings` float32 (N, 384), what `encode(texts)` returned with its default
batches of 32 embeddings.json   peer's versions, hashes of what went in, `token_ids` of each text
(truncated, with [CLS] and [SEP])"""

import argparse
from pathlib import Path

from peer import (
    TEXTS,
    peer_versions,
    read_texts,
    sha256,
    write_json,
)  # first: it keeps the hub out of the way

# isort: split
import numpy as np
from sentence_transformers import SentenceTransformer


def token_ids(model: SentenceTransformer, text: str) -> list[int]:
    """The peer's own tokenization of one text, cut to the model's limit."""
    tokenize = getattr(model, "preprocess", None) or model.tokenize  # 6.x renamed it
    ids: list[int] = tokenize([text])["input_ids"][0].tolist()
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write embeddings.npz and .json into"
    )
    args = parser.parse_args()

    texts = read_texts()
    model = SentenceTransformer(str(args.model), device="cpu")
    ids = [token_ids(model, text) for text in texts]
    embeddings = model.encode(texts)
    one_by_one = model.encode(texts, batch_size=1)
    record = {
        "peer": peer_versions(),
        "texts_sha256": sha256(TEXTS),
        "model_sha256": sha256(args.model / "model.safetensors"),
        "max_tokens": model.max_seq_length,
        # 3.x strips a text before it tokenizes, 6.x does not: no text of ours tells the two apart
        "changed_by_strip": [
            i for i, text in enumerate(texts) if token_ids(model, text.strip()) != ids[i]
        ],
        "max_difference_one_by_one": float(np.abs(embeddings - one_by_one).max()),
        "token_ids": ids,
    }
    write_json(args.out / "embeddings.json", record)
    np.savez_compressed(args.out / "embeddings.npz", embeddings=embeddings)
    print(f"{len(texts)} texts; one by one within {record['max_difference_one_by_one']:.2g}")


if __name__ == "__main__":
    main()
