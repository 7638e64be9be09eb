"""What a tokenizer.json may be made of: an allow-list of components with bounds.

`tokenizers` believes what it reads: a kilobyte can ask for gigabytes, or end in a panic that is no
Exception. So every part is checked before the library sees it, and nothing has a part in it that
is not named here."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from minilm_retriever.errors import UserError, named_errors

Part = Mapping[str, Any]

# By place: the types of components, all of which `tokenizers` runs in linear time and memory.
COMPONENTS = {
    "normalizer": "BertNormalizer Lowercase StripAccents Strip Nmt NFC NFD NFKC NFKD Precompiled "
    "Replace Prepend Sequence",
    "pre_tokenizer": "BertPreTokenizer Whitespace WhitespaceSplit Punctuation Digits Metaspace "
    "ByteLevel CharDelimiterSplit UnicodeScripts Split Sequence",
    "model": "WordPiece WordLevel Unigram BPE",
    "post_processor": "TemplateProcessing BertProcessing RobertaProcessing ByteLevel Sequence",
}
MEMBERS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}  # of a Sequence
MEMBERS["post_processor"] = "processors"
MOST_COMPONENTS = 32
MOST_GROWTH = 64  # characters out of one, by all Replace and Precompiled together
MOST_SPECIAL = 16  # special tokens that stand around a text
LONGEST_TOKEN = 1024  # characters of an added token or a prefix
SAFE_PATTERNS = (" {2,}", r"\s+")  # regular expressions; others may take exponential time


class Template(NamedTuple):
    """The special tokens' ids before and after a text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def check_parts(parsed: Mapping[str, Any], where: str) -> Template:
    """UserError where a tokenizer.json holds a part that is not known or beyond its bounds."""
    check_components(parsed, where)
    check_model(parsed["model"], where)
    for token in tokens(parsed, where):
        if not 0 < len(token["content"]) <= LONGEST_TOKEN:
            raise UserError(f"{where}: an added token of {len(token['content'])} characters")
    template(parsed.get("post_processor"), where)
    # `tokenizers` takes a part for the first that has its arguments, whatever it calls itself.
    understood = as_read(parsed, where)
    check_components(understood, where)
    return template(understood["post_processor"], where)


def as_read(parsed: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The components as `tokenizers` understands them."""
    model = {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "x"}
    whole: dict[str, Any] = {"version": "1.0", "added_tokens": [], "model": model}
    whole |= dict.fromkeys(("truncation", "padding", "decoder"))
    whole |= {place: parsed.get(place) for place in COMPONENTS if place != "model"}
    with named_errors(f"{where}: not a tokenizer of `tokenizers`"):
        text = Tokenizer.from_str(json.dumps(whole, allow_nan=False)).to_str()
        return dict(json.loads(text))


def check_components(parsed: Mapping[str, Any], where: str) -> None:
    growth, count = 1, 0
    for place in COMPONENTS:
        for part in walk(parsed.get(place), place, where):
            count += 1
            growth *= growth_of(part, where)
    if count > MOST_COMPONENTS or growth > MOST_GROWTH:
        raise UserError(
            f"{where}: its normalizers make {growth} characters of one, or it has too many parts"
        )


def walk(part: Any, place: str, where: str) -> Iterator[Part]:
    """A component, or those of a Sequence."""
    if part is None and place != "model":
        return
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in COMPONENTS[place].split():
        known = COMPONENTS[place].replace(" ", ", ")
        raise UserError(f"{where}: not a tokenizer to use: {place} {kind!r} is none of {known}")
    if kind != "Sequence":
        yield part
        return
    members = part.get(MEMBERS[place])
    if not isinstance(members, list) or len(members) > MOST_COMPONENTS:
        raise UserError(f"{where}: {place}: a Sequence of too many parts, or of none")
    for member in members:
        if isinstance(member, dict) and member.get("type") == "Sequence":
            raise UserError(f"{where}: {place}: a Sequence in a Sequence")
        yield from walk(member, place, where)


def growth_of(part: Part, where: str) -> int:
    """The most characters that a component makes of one."""
    if part["type"] in ("Replace", "Split"):
        pattern = part.get("pattern")
        kind, text = next(iter(pattern.items())) if isinstance(pattern, dict) else (None, None)
        if kind not in ("String", "Regex") or not text or not isinstance(text, str):
            raise UserError(f"{where}: {part['type']} without a pattern")
        if kind == "Regex" and text not in SAFE_PATTERNS:
            raise UserError(f"{where}: {part['type']} by the regular expression {text[:60]!r}")
        content = str(part.get("content", ""))
        return max(1, -(-len(content) // (len(text) if kind == "String" else 1)))
    if part["type"] == "Prepend" and len(str(part.get("prepend"))) > LONGEST_TOKEN:
        raise UserError(f"{where}: Prepend of a long text")
    if part["type"] == "Precompiled":
        return longest_replacement(part.get("precompiled_charsmap"), where)
    return 1


def longest_replacement(charsmap: object, where: str) -> int:
    """Bytes of the longest replacement in SentencePiece's table of characters.

    It is a double array of uint32 (a trie), its size before it, then strings that end in NUL. Each
    step of a search has to stay inside of the array, each value at a string's beginning."""
    try:
        data = base64.b64decode(str(charsmap), validate=True)
        size = int.from_bytes(data[:4], "little")
        units = np.frombuffer(data, "<u4", size // 4, 4).astype(np.int64)
        strings = data[4 + size :]
        strings.decode("utf-8")
    except (ValueError, binascii.Error):
        raise UserError(f"{where}: a damaged precompiled_charsmap") from None
    leaf = units >> 31 == 1
    block = np.arange(len(units)) ^ ((units >> 10) << ((units & 512) >> 6)) | 255
    starts = np.flatnonzero(np.frombuffer(b"\0" + strings, np.uint8) == 0)  # of each string
    if (
        size % 4
        or not len(units)
        or (block[~leaf] >= len(units)).any()
        or not np.isin(units[leaf] & 0x7FFFFFFF, starts[:-1]).all()
    ):
        raise UserError(f"{where}: a damaged precompiled_charsmap")
    return int(np.diff(starts).max())


def check_model(model: Part, where: str) -> None:
    """UserError where a model would fail at some text, take quadratic time, or is random."""
    vocabulary, unknown = model.get("vocab"), model.get("unk_token")
    if model["type"] == "Unigram":
        if not isinstance(model.get("unk_id"), int):
            raise UserError(f"{where}: Unigram without unk_id fails at an unknown character")
    elif not isinstance(vocabulary, dict):
        raise UserError(f"{where}: its vocabulary is no object")
    elif unknown not in vocabulary and (unknown is not None or model["type"] != "BPE"):
        raise UserError(f"{where}: its unknown token {unknown!r} is not in its vocabulary")
    if not 0 <= model.get("max_input_chars_per_word", 100) <= LONGEST_TOKEN:
        raise UserError(f"{where}: max_input_chars_per_word is more than {LONGEST_TOKEN}")
    if model["type"] != "BPE":
        return
    if model.get("dropout") or model.get("continuing_subword_prefix"):
        raise UserError(f"{where}: BPE with dropout or a continuing_subword_prefix")
    for merge in model.get("merges") or []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2 or not {*pair, "".join(pair)} <= (vocabulary or {}).keys():
            raise UserError(f"{where}: BPE merges {merge!r}, which are not in its vocabulary")


def tokens(parsed: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Its added tokens."""
    added = parsed.get("added_tokens") or []
    if not isinstance(added, list) or not all(
        isinstance(token, dict)
        and isinstance(token.get("content"), str)
        and isinstance(token.get("id"), int)
        for token in added
    ):
        raise UserError(f"{where}: added_tokens is no list of tokens")
    return added


def template(processor: Any, where: str) -> Template:
    """What a post-processor puts around a text; UserError unless the text stands there once."""
    result = Template()
    for part in walk(processor, "post_processor", where):
        if part["type"] == "ByteLevel":  # changes offsets alone
            continue
        if result != Template():
            raise UserError(f"{where}: two post-processors put tokens around a text")
        try:
            if part["type"] == "TemplateProcessing":
                result = _template(part)
            else:
                result = Template((part["cls"][1],), (part["sep"][1],))
            ids = [*result.before, *result.after]
            if len(ids) > MOST_SPECIAL or not all(isinstance(i, int) and i >= 0 for i in ids):
                raise ValueError
        except (KeyError, ValueError, TypeError, IndexError, AttributeError):
            raise UserError(
                f"{where}: its post_processor does not put special tokens around one text of type 0"
            ) from None
    return result


def _template(part: Part) -> Template:
    sides: tuple[list[int], list[int]] = ([], [])
    texts = 0
    for piece in part["single"]:
        ((kind, value),) = piece.items()
        if value["type_id"] != 0:
            raise ValueError
        if kind == "Sequence":
            texts += value["id"] == "A"
            if value["id"] != "A" or texts > 1:
                raise ValueError
        else:
            special = part["special_tokens"][value["id"]]
            if len(special["ids"]) != len(special["tokens"]):
                raise ValueError
            sides[texts].extend(special["ids"])
    if not texts:
        raise ValueError
    return Template(tuple(sides[0]), tuple(sides[1]))
