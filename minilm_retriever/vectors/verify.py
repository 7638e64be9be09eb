"""The verify command: files against the checksums of their manifest."""

from __future__ import annotations

from pathlib import Path

from minilm_retriever.storage.manifest import read_manifest, verify_folder
from minilm_retriever.vectors.shards import sidecar_paths
from minilm_retriever.vectors.vector_folder import open_vectors


def verify(path: Path) -> str:
    """Check a folder that we wrote, or a .npy of encode.py; returns a line on what it holds.

    Raises UserError where a file is missing or a byte of it differs."""
    one_file = path.is_file()
    if one_file:
        files = verify_folder(path.parent, sidecar_paths(path)[1].name)
    else:
        files = verify_folder(path)
    line = f"{path}: {len(files)} files as they were written"
    if one_file or "vectors" in read_manifest(path):
        line += f", {sum(map(len, open_vectors(path, verify=False).shards)):,} vectors"
    return line
