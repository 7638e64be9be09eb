"""What the names of columns say, in any case and spelling: query or document, id or score."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from minilm_retriever.errors import UserError

_TEXTS = "(passage|document|doc|ctx|context|text|sample|example|title|body|content)?s?"
# Ranks of names: those of one count where there is none of those before it.
QUERY = (
    re.compile(rf"(search|user)?(query|queries|question|anchor){_TEXTS}"),
    re.compile(r"premise|prompt|inputs?|instruction|utterance|source|src"),
)
DOCUMENT = (
    re.compile(rf"(pos|positive){_TEXTS}"),
    re.compile(rf"(doc|document|passage|answer|context|response|reply){_TEXTS}"),
    re.compile(r"text|body|contents?|paragraph|chunk|hypothesis|outputs?|completion"),
)
NEGATIVE = re.compile(rf"(hard)?(neg|negative|irrelevant|distractor){_TEXTS}[0-9]*")
TEXT = re.compile(r"text|sentence|body|contents?|passages?|documents?|docs?|paragraph|chunk")
_NUMBERED = re.compile(
    r"(sentence|sent|text|question|query|phrase|utterance|string|s|q|t)(\d+|[abc])"
)
_ID = re.compile(
    r"_?ids?|.+[_\-. ]ids?|.*[a-z]I[dD]s?|[qpdc]id|(doc|document|query|question|answer|passage|"
    r"context|corpus|article|page|row|sample|example|pair|user|item|product|session|group)ids?|"
    r"(row|line|record|serial)?[_ ]?(number|num|nr|no|nbr)\.?|index|idx|unnamed: ?\d+|row|line|#|"
    r"uuid|guid|hash|md5|sha\d*|key|url|uri"
)
_LABEL = re.compile(
    r"(gold|true|similarity|relevance|relevancy|rel|sim|cosine|match|pair|entailment|human|mean|"
    r"avg|average|normalized|raw)?(label|score|grade|rating|judgem?ent)s?|"
    r"(is)?(duplicate|relevant|match|paraphrase|similar|correct)|ispositive|"
    r"similarity|sim|relevance|relevancy|rel|class|target|stars|confidence"
)
_JUDGED = re.compile("(label|score|rating|grade|relevanc[ey]|similarity|judge?ment|duplicate)s?")
_OF_ONE_SIDE = {"neg", "negative", "negatives", "pos", "positive", "positives", "teacher"}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_BESIDE = re.compile(  # texts about a text: left out where they would make it ambiguous
    r"title|name|head(line|ing)|topic|subject|category|tags?|type|kind|source|domain|"
    r"lang(uage)?|split|author|comments?|notes?|remarks?"
)
_PLACE = re.compile(r"column_[0-9]+")


def plain(name: str) -> str:
    """Without case, spaces and signs: `Sentence_A` and `sentence a` are `sentencea`."""
    return re.sub(r"[\W_]+", "", name.casefold())


def is_id(name: str) -> bool:
    return bool(_ID.fullmatch(name.strip()) or _ID.fullmatch(name.strip().casefold()))


def is_label(name: str) -> bool:
    """Labels and scores of the row, such as `gold_label` and `ce_score`, not of one side."""
    if _LABEL.fullmatch(plain(name)):
        return True
    words = [word.casefold() for word in _WORD.findall(name[:100])]
    ends = bool(words) and any(map(_JUDGED.fullmatch, (words[0], words[-1])))
    return ends and not _OF_ONE_SIDE & set(words)


def is_beside(name: str) -> bool:
    return bool(_BESIDE.fullmatch(plain(name)))


def is_known(name: str) -> bool:
    """Whether data are likely to have a column of this name, and no text is likely to be it."""
    short = plain(name)
    if len(short) > 40:
        return False
    patterns = (*QUERY, *DOCUMENT, NEGATIVE, TEXT, _NUMBERED, _LABEL)
    return is_id(name) or any(pattern.fullmatch(short) for pattern in patterns)


def is_swapped(query: str, document: str) -> bool:
    """Whether names say the opposite of the roles."""
    return is_document(query) and bool(QUERY[0].fullmatch(plain(document)))


def is_document(name: str) -> bool:
    """Whether it is called so, and nothing else is likely to be."""
    return any(pattern.fullmatch(plain(name)) for pattern in DOCUMENT[:-1])


def numbered(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Families such as sentence_0, sentence_1, ... or text_a, text_b, each in its order."""
    families: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(plain(name)):
            families.setdefault(match[1], []).append((match[2].rjust(9), name))
    return [tuple(name for _, name in sorted(f)) for f in families.values() if len(f) > 1]


# --- headers --------------------------------------------------------------------------------------


def position_names(count: int) -> list[str]:
    """Of columns without a name: column_1, column_2, ..."""
    return [f"column_{number}" for number in range(1, count + 1)]


def are_positions(names: Sequence[str]) -> bool:
    return all(map(_PLACE.fullmatch, names))


def listed(names: Collection[str]) -> str:
    """For a message, however many there are."""
    shown = [name[:60] for name, _ in zip(names, range(20), strict=False)]
    more = [f"and {len(names) - 20:,} more"] if len(names) > 20 else []
    return ", ".join([*shown, *more]) or "none"


def check_header(header: Sequence[str], need: Sequence[str], where: str) -> None:
    """UserError where a column is there twice, or one that is needed is not."""
    columns = set[str]()
    for name in header:
        if name in columns:
            raise UserError(f"{where}: the column {name!r} is there twice")
        columns.add(name)
    for name in need:
        if name not in columns:
            raise UserError(f"{where}: no column {name!r}; there are: {listed(header)}")


def check_pair_columns(columns: Sequence[str]) -> None:
    """UserError where columns that somebody named cannot hold pairs."""
    if columns and (len(columns) < 2 or len(set(columns)) < len(columns)):
        shown = ", ".join(columns)
        raise UserError(f"--columns needs two names (two different names or more), not {shown}")
