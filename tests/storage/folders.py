"""Small folders to write, and what is in them."""

from __future__ import annotations

from pathlib import Path

from minilm_retriever.storage import atomic_files, atomic_folders, manifest


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def publish(path: Path, text: str = "new", **options: object) -> None:
    with atomic_folders.staged_folder(path, **options) as temp:  # type: ignore[arg-type]
        (temp / "inner").mkdir()
        (temp / "inner" / "a.txt").write_text(text)
        atomic_files.write_bytes(temp / "b.bin", text.encode() * 3)


def is_a(folder: Path, text: str) -> bool:
    """The folder is the whole one made with this text, and nothing else."""
    if not folder.exists():
        return False
    manifest.verify_folder(folder)
    found = content(folder)
    del found["manifest.json"]
    return found == {"inner/a.txt": text.encode(), "b.bin": text.encode() * 3}
