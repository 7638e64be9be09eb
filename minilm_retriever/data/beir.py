"""BEIR-style folders: corpus.jsonl, queries.jsonl, and judgements in qrels/SPLIT.tsv.

Read as BEIR reads them: a document is its title, a space and its text, empty where it has neither;
of two judgements of one pair the later one holds. Where more than MISSING_SHARE of the relevant
documents are not in the corpus, the judgements are of another one, and it is an error. The
judgements may also be TREC's (query, 0, document, grade), and need no header then."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from minilm_retriever.errors import UserError
from minilm_retriever.formats.lines import open_lines
from minilm_retriever.formats.readers import read_rows
from minilm_retriever.formats.reading import Reading
from minilm_retriever.formats.rows import BadRow, Row

MISSING_SHARE = 0.01  # of the relevant documents
JSONL = Reading(format="jsonl")


class Judgement(NamedTuple):
    query: str
    document: str
    grade: int
    line: int


@dataclass(frozen=True)
class BeirFolder:
    """Queries and documents by id, and the judgements of a split."""

    qrels: Path
    queries: dict[str, str]
    corpus: CorpusFile
    rows: list[Judgement]
    notes: list[str]  # what is unusual about them

    @staticmethod
    def open(folder: Path, split: str) -> BeirFolder:
        """Raises UserError with path:line on a malformed line, and where judgements name a query,
        or too many documents, that are missing."""
        corpus = CorpusFile.open(jsonl_file(folder, "corpus"))
        queries = read_queries(jsonl_file(folder, "queries"))
        qrels = folder / "qrels" / f"{split}.tsv"
        if not qrels.exists():
            splits = ", ".join(sorted(file.stem for file in qrels.parent.glob("*.tsv"))) or "none"
            how = "to train on another, name its qrels/SPLIT.tsv"
            raise UserError(f"{qrels}: no such file; choose one with --split: {splits} ({how})")
        notes: list[str] = []
        rows = list(read_judgements(qrels, notes))
        notes += check_judgements(qrels, rows, queries, set(corpus.ids))
        return BeirFolder(qrels, queries, corpus, rows, notes)

    @property
    def judgements(self) -> dict[str, dict[str, int]]:
        """Grades by query and document."""
        grades: dict[str, dict[str, int]] = {}
        for row in self.rows:
            grades.setdefault(row.query, {})[row.document] = row.grade
        return grades

    def pairs(self) -> Iterator[tuple[str, str, int]]:
        """Each judged query with each relevant document that has a text, and the line."""
        grades = self.judgements
        kept = {(row.query, row.document): row for row in self.rows if row.grade > 0}
        wanted = {document for _, document in kept}
        texts = zip(self.corpus.ids, self.corpus, strict=True)
        documents = {id: text for id, text in texts if id in wanted and text}
        for (query, document), row in kept.items():
            if grades[query][document] > 0 and document in documents and self.queries[query]:
                yield self.queries[query], documents[document], row.line


def beir_split(source: object) -> tuple[Path, str] | None:
    """The folder and the split, where a path is a BEIR-style folder (its train split), or one of
    its qrels/SPLIT.tsv."""
    path = Path(source) if isinstance(source, (str, Path)) else None
    if path is None or path == Path("-"):
        return None
    if path.is_dir() and is_beir(path):
        return path, "train"
    folder = path.parent.parent
    if path.parent.name == "qrels" and is_beir(folder):
        return folder, path.stem
    return None


def is_beir(folder: Path) -> bool:
    """Whether a folder has one of BEIR's parts."""
    return jsonl_file(folder, "corpus").exists() or (folder / "qrels").is_dir()


def jsonl_file(folder: Path, name: str) -> Path:
    """NAME.jsonl, or NAME.jsonl.gz where that alone is there."""
    plain, packed = folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"
    return packed if packed.exists() and not plain.exists() else plain


@dataclass(frozen=True)
class CorpusFile:
    """The documents of a corpus.jsonl: ids in memory, texts read again at each iteration."""

    path: Path
    ids: Sequence[str]
    repeats: frozenset[int]  # rows whose document an earlier row has

    @staticmethod
    def open(path: Path) -> CorpusFile:
        """UserError where an id stands twice with different texts, or no document has a text."""
        numbers, hashes, repeats, empty = dict[str, int](), bytearray(), set[int](), True
        for number, row in enumerate(read_rows(path, JSONL)):
            id, text = row.id("_id"), document_text(row)
            hashes += text_hash(text)
            empty = empty and not text
            first = numbers.setdefault(id, number)
            if hashes[16 * first : 16 * first + 16] != hashes[-16:]:
                raise UserError(f"{row.where}: _id {id!r} stands twice, with different texts")
            if first != number:
                repeats.add(number)
        if empty:
            raise UserError(f"{path}: no document has a title or a text; name these keys so")
        return CorpusFile(path, list(numbers), frozenset(repeats))

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        for number, row in enumerate(read_rows(self.path, JSONL)):
            if number not in self.repeats:
                yield document_text(row)


def document_text(row: Row) -> str:
    """Title, a space, text, as BEIR joins them; what is missing or null is empty."""
    columns = [name for name in ("title", "text") if row.values.get(name) is not None]
    return " ".join(map(row.text, columns)).strip()


def read_queries(path: Path) -> dict[str, str]:
    """Texts by id; UserError where an id stands twice with different texts."""
    texts: dict[str, str] = {}
    for row in read_rows(path, JSONL):
        id, text = row.id("_id"), row.text("text")
        if texts.setdefault(id, text) != text:
            raise UserError(f"{row.where}: _id {id!r} stands twice, with different texts")
    return texts


def text_hash(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


# --- judgements -----------------------------------------------------------------------------------


def read_judgements(path: Path, notes: list[str]) -> Iterator[Judgement]:
    """Three columns, query id, document id and grade, under a header of any names; or TREC's four.

    Tabs between, or spaces where there are none. What is unusual goes to `notes`."""
    kept: list[int] | None = None  # the fields
    with open_lines(path, str(path)) as lines:
        for line in lines:
            cells = next(csv.reader([line], delimiter="\t")) if "\t" in line else line.split()
            fields = [cell.strip() for cell in cells]
            row = lines.finish_row({})
            lines.begin_row()
            if isinstance(row, BadRow):
                raise row
            if not any(fields):
                continue
            if kept is None:
                is_trec = len(fields) == 4 and is_whole(fields[3])
                kept = [0, 2, 3] if is_trec else [0, 1, 2]
                if not is_trec and not (len(fields) > 2 and is_whole(fields[2])):
                    continue  # the header
                what = "TREC's four columns" if is_trec else "three columns"
                notes.append(f"{path}: {what}, without a header")
            if len(fields) <= kept[2]:
                what = f"{len(fields)} fields; judgements have query-id, corpus-id and score"
                raise row.bad(f"{what}, tabs between, or TREC's four columns")
            query, document, grade = (fields[place] for place in kept)
            if not is_whole(grade):
                raise row.bad(f"score {grade!r} is not a whole number")
            yield Judgement(query, document, int(float(grade)), row.line)


def check_judgements(
    path: Path, rows: Sequence[Judgement], queries: dict[str, str], documents: set[str]
) -> list[str]:
    """UserError where they are not of these queries and documents; a line where a few are
    missing."""
    if not rows:
        raise UserError(f"{path}: there are no judgements")
    unknown = [row for row in rows if row.query not in queries]
    if unknown:
        what = f"no query of queries.jsonl has the id {unknown[0].query!r}"
        raise UserError(f"{path}:{unknown[0].line}: {what} ({len(unknown)} such judgements)")
    relevant = [row for row in rows if row.grade > 0]
    missing = [row for row in relevant if row.document not in documents]
    if not missing:
        return []
    what = f"no document of the corpus has the id {missing[0].document!r}"
    share = f"{len(missing)} of {len(relevant)} relevant documents"
    line = f"{path}:{missing[0].line}: {what} ({share})"
    if len(missing) > MISSING_SHARE * len(relevant):
        raise UserError(f"{line}: are these the judgements of this corpus?")
    return [f"{line}: they count as never retrieved, as in trec_eval"]


def is_whole(value: str) -> bool:
    """Whether a field is a whole number; 1.0 is one."""
    try:
        return float(value).is_integer()
    except (ValueError, OverflowError):
        return False
