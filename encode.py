"""Encode files of texts: minilm_retriever/encoding/encode_files.py."""

from __future__ import annotations

import sys

from minilm_retriever.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["encode", *sys.argv[1:]]))
