"""Files as people have them, by what is odd in them, and what must come of each: the table of
docs/data.md. `python -m tests.data_files` writes that table anew."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from minilm_retriever.data import read_pairs, read_texts
from minilm_retriever.errors import UserError
from tests.conftest import ROOT
from tests.data_files import columns, foreign, json_files, judged, not_pairs, others, separated
from tests.data_files.making import File

DOCUMENT = ROOT / "docs" / "data.md"
BEGIN, END = "<!-- files -->\n", "\n<!-- end of files -->"
ROOMS = (columns, not_pairs, judged, separated, foreign, json_files, others)
FILES = [file for room in ROOMS for file in room.FILES]


class Outcome(NamedTuple):
    columns: tuple[str, ...]  # empty where it is refused
    rows: int
    line: str  # what is said, or why it is refused; without the folder's name


def put(file: File, folder: Path) -> Path:
    path = folder / file.name
    if callable(file.content):
        file.content(path)
        return path
    held = file.content if isinstance(file.content, dict) else {"": file.content}
    for name, content in held.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name if name else path).write_bytes(content)
    return path


def read(file: File, folder: Path) -> Outcome:
    """What comes of a file."""
    path, said = put(file, folder), list[str]()
    try:
        if file.texts:
            rows = len(list(read_texts(path, on_choice=said.append, **file.options)))
            columns = tuple(said[0].split("text column ")[1].split(" (")[0].split(" + "))
            return Outcome(columns, rows, said[0].replace(f"{folder}/", ""))
        pairs = read_pairs(path, **file.options)
        return Outcome(pairs.columns, len(pairs), pairs.note.replace(f"{folder}/", ""))
    except UserError as error:
        return Outcome((), 0, str(error).replace(f"{folder}/", ""))


def markdown() -> str:
    """The table of docs/data.md."""
    lines = ["| file | what is odd | what comes of it |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(FILES):
            place = Path(folder) / str(number)
            place.mkdir()
            outcome = read(file, place)
            what = "read" if outcome.columns else "refused"
            name = f"`{file.name}`" + (" (texts)" if file.texts else "")
            line = outcome.line.replace("|", "\\|").replace("`", "'")
            lines.append(f"| {name} | {file.odd} | {what}: {line} |")
    return "\n".join(lines)
