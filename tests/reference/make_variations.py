"""The vectors that sentence-transformers gives for every folder of tests/variations.py.

    PEER/bin/python tests/reference/make_variations.py --out tests/reference/variations.npz

Run with the Python of the environment of 6.2.0 (see interop.py), which needs peft beside it. With
--compare FILE.npz nothing is written: the file's vectors are compared with those made here (3.4.1
has no encode_query; there the prompts are given by name). Computed in float32, one text at a time:
padding must not reach the last bits."""

import argparse
import json
import logging
import tempfile
import warnings
from pathlib import Path

from peer import Checks, peer_versions  # first: it keeps the hub out of the way

# isort: split
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from tests.variations import METHODS, TEXTS, VARIATIONS, make_variation

LIMIT = 1e-6
# What 3.4.1 reads in another way than 6.2.0, which is the reference: it lower-cases special tokens
# too, knows no truncate_dim, and strips white space, which SentencePiece's tokenizers keep.
OTHER_IN_3 = ("do_lower_case", "truncate_dim", "unigram")


def vectors(folder: Path) -> dict[str, np.ndarray]:
    """By method, (texts, H); those of a method that gives encode()'s are left out."""
    model = SentenceTransformer(
        str(folder), device="cpu", model_kwargs={"torch_dtype": torch.float32}
    )
    found: dict[str, np.ndarray] = {}
    for method in METHODS:
        if not hasattr(model, method):
            continue
        rows = [getattr(model, method)([text])[0] for text in TEXTS]
        found[method] = np.stack(rows).astype(np.float32)
    return {
        method: rows
        for method, rows in found.items()
        if method == "encode" or not np.array_equal(rows, found["encode"])
    }


def all_vectors() -> dict[str, np.ndarray]:
    made = {}
    with tempfile.TemporaryDirectory() as place:
        for number, name in enumerate(VARIATIONS):
            folder = make_variation(name, Path(place) / str(number))
            try:
                opened = vectors(folder)
            except Exception as problem:  # noqa: BLE001 - an outcome too
                print(f"{name}: not opened: {type(problem).__name__}: {str(problem)[:200]}")
                continue
            made |= {f"{name}|{method}": rows for method, rows in opened.items()}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="where to write them")
    parser.add_argument("--compare", type=Path, help="compare those of this file")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    made = all_vectors()
    if args.out:
        versions = {**peer_versions(), "opened": len({key.split("|")[0] for key in made})}
        words = np.frombuffer(json.dumps(versions).encode(), dtype=np.uint8)
        np.savez_compressed(args.out, versions=words, **made)
        print(versions)
    if args.compare:
        checks, known = Checks(), np.load(args.compare)
        for key in sorted(set(made) & set(known.files)):
            scale, same = (
                max(1.0, float(np.abs(known[key]).max())),
                made[key].shape == known[key].shape,
            )
            far = float(np.abs(made[key] - known[key]).max()) / scale if same else float("inf")
            if key.startswith(OTHER_IN_3) and peer_versions()["sentence-transformers"] < "4":
                checks.line(f"{key} (another meaning in 3.4.1)", True, f"{far:.2g}")
            else:
                checks.at_most(key, far, LIMIT)
        checks.exit()


if __name__ == "__main__":
    main()
