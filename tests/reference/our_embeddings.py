"""Embed texts.json with this project's own Encoder, for interop.py.

python tests/reference/our_embeddings.py --model F --out E.npz          `embeddings`, row for row
python tests/reference/our_embeddings.py --model F --expected E.npz     exit status 1 unless the
same within 1e-6 python tests/reference/our_embeddings.py --model F --save DIR           save the
model again, in our layout"""

import argparse
from pathlib import Path

from peer import Checks, read_texts

# isort: split
import numpy as np

from minilm_retriever import Encoder

LIMIT = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--out", type=Path, help=".npz to write")
    parser.add_argument("--expected", type=Path, help=".npz to compare with")
    parser.add_argument("--save", type=Path, help="folder to save the model into")
    args = parser.parse_args()

    checks = Checks()
    encoder = Encoder.from_pretrained(str(args.model))
    embeddings = encoder.encode(read_texts())
    if args.out:
        np.savez_compressed(args.out, embeddings=embeddings)
    if args.expected:
        difference = float(np.abs(embeddings - np.load(args.expected)["embeddings"]).max())
        checks.at_most("our Encoder gives the same embeddings", difference, LIMIT)
    if args.save:
        encoder.save(args.save)
    checks.exit()


if __name__ == "__main__":
    main()
