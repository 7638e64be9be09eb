"""The verify command: files against the checksums of their manifest."""

from __future__ import annotations

from pathlib import Path

from minilm_retriever.storage.manifest import read_manifest, verify_folder
from minilm_retriever.vectors.shards import manifest_path
from minilm_retriever.vectors.vector_folder import open_vectors


def verify(path: Path) -> str:
    """Check a folder that we wrote, or a .npy of encode.py; returns a line on what it holds.

    Raises UserError where a file is missing or a byte of it differs."""
    manifest = manifest_path(path)
    files = verify_folder(manifest.parent, manifest.name)
    line = f"{path}: {len(files)} files as they were written"
    if "vectors" in read_manifest(manifest.parent, manifest.name):
        line += f", {sum(map(len, open_vectors(path, verify=False).shards)):,} vectors"
    return line
