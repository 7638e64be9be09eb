"""Fine-tune a sentence encoder on pairs: minilm_retriever/training/run.py."""

from __future__ import annotations

import sys

from minilm_retriever.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
