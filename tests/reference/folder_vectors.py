"""The vectors that a peer gives for every model folder DIR/*/NAME, into DIR/*/NAME-PEER.npz.

    PEER/bin/python tests/reference/folder_vectors.py --folders DIR [--name model]

A folder that the peer does not open has in their place a file without arrays. Computed in float32,
one text at a time: padding must not reach the last bits."""

import argparse
import json
import logging
import warnings
from functools import partial
from pathlib import Path

from peer import peer_versions  # first: it keeps the hub out of the way

# isort: split
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from tests.variations import METHODS, TEXTS


def vectors(folder: Path) -> dict[str, np.ndarray]:
    """By method, (texts, H); 3.4.1 has encode alone."""
    model = SentenceTransformer(
        str(folder), device="cpu", model_kwargs={"torch_dtype": torch.float32}
    ).float()
    names = document_prompts(folder)
    options = {"encode_document": {"prompt_name": names[0]}} if names else {}
    found = {}
    for method in METHODS:
        if hasattr(model, method):
            encode = partial(getattr(model, method), **options.get(method, {}))
            found[method] = np.stack([encode([text])[0] for text in TEXTS]).astype(np.float32)
    return found


def document_prompts(folder: Path) -> list[str]:
    """What a folder calls the prompt of its documents, where that is not `document`: 6.2.0's
    encode_document then takes none, as its own folders always have a `document`; ours takes this."""
    path = folder / "config_sentence_transformers.json"
    prompts = json.loads(path.read_text("utf-8")).get("prompts", {}) if path.exists() else {}
    return [name for name in ("passage", "corpus") if name in prompts and "document" not in prompts]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folders", type=Path, required=True, help="DIR")
    parser.add_argument("--name", default="model", help="the folders' name")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    version = peer_versions()["sentence-transformers"]
    for folder in sorted(args.folders.glob(f"*/{args.name}")):
        try:
            found = vectors(folder)
        except Exception as problem:  # noqa: BLE001  (an outcome too)
            line = " ".join(str(problem).split())[:200]
            print(f"{folder}: not opened: {type(problem).__name__}: {line}", flush=True)
            found = {}
        np.savez(folder.with_name(f"{args.name}-{version}.npz"), **found)


if __name__ == "__main__":
    main()
