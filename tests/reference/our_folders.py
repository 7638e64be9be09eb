"""Open every model folder DIR/*/NAME with our Encoder, and compare with what the peers gave.

    python tests/reference/our_folders.py --folders DIR [--name model] [--save saved]

Where folder_vectors.py ran before. A folder is right if its vectors are those of sentence-transformers
6.2.0, or it is refused by a UserError; --save writes each as ours, into DIR/*/SAVED."""

import argparse
import sys
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from minilm_retriever import Encoder, UserError
from tests.variations import METHODS, TEXTS

LIMIT = 1e-6  # beside 1, or the largest number of the reference
PEERS = ("6.2.0", "3.4.1")


def read_vectors(path: Path) -> dict[str, np.ndarray]:
    """Empty where the peer did not open the folder."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def far(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folders", type=Path, required=True, help="DIR")
    parser.add_argument("--name", default="model", help="the folders' name")
    parser.add_argument("--save", help="name of the folders to write")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: dict[str, float] = defaultdict(float)
    refusals: Counter[str] = Counter()
    worst = 0.0
    for folder in sorted(args.folders.glob(f"*/{args.name}")):
        peers = {p: read_vectors(folder.with_name(f"{args.name}-{p}.npz")) for p in PEERS}
        try:
            encoder = Encoder.from_pretrained(folder, device="cpu")
        except UserError as problem:
            counts["refused by name"] += 1
            refusals[str(problem).replace(str(folder), "")] += 1
            continue
        ours = {method: getattr(encoder, method)(TEXTS) for method in METHODS}
        distances = {
            peer: max(far(ours[method], rows) for method, rows in theirs.items())
            for peer, theirs in peers.items()
            if theirs
        }
        for peer in distances:
            counts[f"opened by {peer} too"] += 1
            counts[f"equal to {peer}"] += distances[peer] <= LIMIT
        reference = distances.get("6.2.0", distances.get("3.4.1"))
        if reference is None:
            counts["opened by us alone"] += 1
        elif reference <= LIMIT:
            worst = max(worst, reference)
            counts["equal"] += 1
        else:
            counts["WRONG"] += 1
            drawn = (folder.parent / "drawn.json").read_text("utf-8")
            print(f"{folder}: {distances}: {' '.join(drawn.split())}")
        if args.save:
            encoder.save(folder.with_name(args.save), overwrite=True)
    for line, number in sorted(refusals.items()):
        print(f"{number} refused: {line}")
    counts["worst of the equal"] = float(f"{worst:.1e}")
    figures = ", ".join(f"{name} {number:g}" for name, number in counts.items())
    verdict = "FAILED" if counts["WRONG"] else "ok"
    print(verdict, f"every {args.name} is equal or refused by name", figures, sep="\t")
    raise SystemExit(counts["WRONG"] > 0)


if __name__ == "__main__":
    main()
