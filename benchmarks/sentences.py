"""The distinct sentences of Debian's package descriptions: a real text collection that every mirror
of Debian carries.

apt-get -o Acquire::Languages=en update /usr/lib/apt/apt-helper cat-file
/var/lib/apt/lists/*_Translation-en* | python benchmarks/sentences.py > sentences.txt

Reads the descriptions on standard input and writes a sentence a line: paragraphs and list items
joined over their line breaks, cut after a full stop, question or exclamation mark before a capital;
of 15 to 200 characters, each once."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator

END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
ITEM = re.compile(r"\s*([*+o•-]|\d+[.)])\s+")
LENGTHS = range(15, 201)


def paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Summaries, paragraphs and list items, each in one line."""
    held: list[str] = []
    for line in lines:
        starts_anew = not line.startswith(" ") or line.strip() in ("", ".") or ITEM.match(line)
        if starts_anew and held:
            yield " ".join(held)
            held = []
        if line.startswith("Description-en:"):
            yield line.partition(":")[2].strip()
        elif line.startswith(" ") and line.strip() != ".":
            held.append(ITEM.sub("", line, count=1).strip() if ITEM.match(line) else line.strip())
    if held:
        yield " ".join(held)


def sentences(lines: Iterable[str]) -> Iterator[str]:
    """Each sentence, once."""
    seen = set()
    for paragraph in paragraphs(lines):
        for sentence in END.split(paragraph):
            text = " ".join(sentence.split())
            if len(text) in LENGTHS and text not in seen:
                seen.add(text)
                yield text


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    for text in sentences(sys.stdin):
        print(text)
