"""Texts to token ids on the `tokenizers` library, equal to those of sentence-transformers 6.2.0 for
any string: as it is, lower-cased only where the folder says so, truncated to the model's limit.
(3.x strips white space first: the same for BERT's tokenizer, which drops it.)"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from json.encoder import encode_basestring
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Encoding, Tokenizer

from minilm_retriever.errors import UserError, named_errors
from minilm_retriever.formats.rows import lone_surrogate
from minilm_retriever.pretrained.tokenizer_parts import check_parts, tokens
from minilm_retriever.types import IntArray

CHUNK_TEXTS = 4096  # tokenised at a time: bounds the memory of Encoding objects
LONG_CHARACTERS = 32  # a token, above which a text is shortened before it is tokenised

# BertNormalizer puts spaces around each of these characters: each is a word of its own.
CJK = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b820-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f"
)
LONGEST_WORD = 100  # WordPiece's max_input_chars_per_word in BERT: a longer word is [UNK]
# A run of letters and digits is part of one word; what is left of a long one stays [UNK].
LONG_RUN = re.compile(rf"([^\W_{CJK}]{{200}})[^\W_{CJK}]+")


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of N texts, end to end: text i is ids[offsets[i] : offsets[i + 1]]."""

    ids: npt.NDArray[np.int32]
    offsets: IntArray  # (N + 1,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """Tokens of each text, (N,)."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: IntArray) -> IntArray:
        """Tokens of these rows, (B,)."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def packed(self, rows: IntArray) -> tuple[npt.NDArray[np.int32], IntArray]:
        """The ids (S,) of these rows (B,), row after row, and how many each has (B,)."""
        lengths = self.lengths_of(rows)
        first = self.offsets[rows] - (np.cumsum(lengths) - lengths)
        return self.ids[np.arange(int(lengths.sum())) + np.repeat(first, lengths)], lengths

    def batch(self, rows: Sequence[int] | IntArray) -> tuple[torch.Tensor, torch.Tensor]:
        """input_ids and attention_mask (B, T) int64 of these rows, padded on the right with 0."""
        rows = np.asarray(rows, dtype=np.int64)
        starts, lengths = self.offsets[rows], self.lengths_of(rows)
        columns = np.arange(int(lengths.max(initial=0)))
        mask = columns < lengths[:, None]
        ids = np.zeros(mask.shape, dtype=np.int64)
        ids[mask] = self.ids[(starts[:, None] + columns)[mask]]
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


class TextTokenizer:
    """The tokenizer of a model folder.

    parsed: a tokenizer.json's contents, whose truncation and padding are ignored. max_length:
    tokens, [CLS] and [SEP] included. lower_case: lower-case a text before anything else, but for
    special tokens in it. truncation_side: which end of a longer text goes. split_special: read
    special tokens in a text as plain text. special: names of the special tokens. Raises UserError
    for a part of the file that is not known or beyond its bounds."""

    def __init__(
        self,
        parsed: Mapping[str, Any],
        *,
        max_length: int,
        lower_case: bool = False,
        truncation_side: str = "right",
        split_special: bool = False,
        special: Iterable[str] = (),
        where: str = "tokenizer",
    ) -> None:
        self.parsed, self.lower_case = parsed, lower_case
        self.truncation_side, self.split_special = truncation_side, split_special
        self.special, self.where = frozenset(special), where
        with named_errors(f"{where}: not a tokenizer of `tokenizers`"):
            parts = {**parsed, "truncation": None, "padding": None, "decoder": None}
            self.template = check_parts(parts, where)
            if lower_case:
                parts["normalizer"] = lower_case_first(parts.get("normalizer"))
            self.json = to_json(parts)
            self._truncate_at(max_length)
        ids = (self.fast.token_to_id(token) for token in self.special)
        self.special_ids = frozenset(i for i in ids if i is not None)
        self.is_wordpiece = is_bert_wordpiece(parts)
        self.longest_added = max((len(t["content"]) for t in tokens(parts, where)), default=0)

    def _truncate_at(self, max_length: int) -> None:
        self.fast, self.max_length = self._native(), max_length
        self.special_count = self.fast.num_special_tokens_to_add(False)
        if max_length <= self.special_count:
            room = f"{max_length} tokens leave no room beside [CLS] and [SEP]"
            raise UserError(f"{self.where}: {room}")
        self.fast.enable_truncation(max_length, direction=self.truncation_side)

    def _native(self) -> Tokenizer:
        """Without truncation."""
        native = Tokenizer.from_str(self.json)
        native.encode_special_tokens = self.split_special
        return native

    @cached_property
    def untruncated(self) -> Tokenizer:
        """The same without a limit, for very long texts."""
        return self._native()

    def with_max_length(self, max_length: int) -> TextTokenizer:
        """The same with another limit."""
        other = copy(self)
        other._truncate_at(max_length)
        return other

    @property
    def vocab_size(self) -> int:
        """Every token id is below this."""
        ids = self.fast.get_vocab(with_added_tokens=True).values()
        return max([*ids, *self.template.before, *self.template.after], default=-1) + 1

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Token ids of N texts, at most max_length each.

        Raises UserError (a ValueError) naming the index of a text that is no str or holds a lone
        surrogate."""
        check_texts(texts)
        ids, lengths = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
        for start in range(0, len(texts), CHUNK_TEXTS):
            encodings = self.encode(texts[start : start + CHUNK_TEXTS])
            lengths.append(np.fromiter(map(len, encodings), np.int64, len(encodings)))
            flat = chain.from_iterable(encodings)
            ids.append(np.fromiter(flat, np.int32, int(lengths[-1].sum())))
        return TokenizedTexts(np.concatenate(ids), np.cumsum(np.concatenate(lengths)))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text of one chunk."""
        can_shorten = self.is_wordpiece and self.truncation_side == "right"
        short = [self.shorten(text) for text in texts] if can_shorten else texts
        with named_errors(self.where):
            if len(short) == 1:  # a query: encode_batch_fast would wake threads
                return [self.fast.encode(short[0]).ids]
            return [encoding.ids for encoding in self.fast.encode_batch_fast(short)]

    def prompt_length(self, prompt: str) -> int:
        """Leading tokens of a text that a prompt before it takes: its own, but for [SEP]."""
        ids = self.encode([prompt])[0]
        return len(ids) - (ids[-1:] != [] and ids[-1] in self.special_ids)

    def shorten(self, text: str) -> str:
        """The text, or of a very long one a beginning that has the same ids after truncation.

        The library would tokenise all of 10 MB to keep 256 tokens. Tokens of a beginning are
        exactly the text's own up to the last word that the cut may have split."""
        size = LONG_CHARACTERS * self.max_length
        if len(text) <= size:
            return text
        while size < len(text):
            head = LONG_RUN.sub(r"\1", text[:size])
            encoding = self.untruncated.encode(head, add_special_tokens=False)
            whole = whole_tokens(encoding, len(head) - self.longest_added)
            if whole >= self.max_length - self.special_count:
                return head
            size *= 4
        return LONG_RUN.sub(r"\1", text)


def whole_tokens(encoding: Encoding, end: int) -> int:
    """How many leading tokens stand wholly before the last word and before character `end`."""
    words = encoding.word_ids
    last = next((w for w in reversed(words) if w is not None), None)
    for count, (word, (_, stop)) in enumerate(zip(words, encoding.offsets, strict=True)):
        if word == last or stop > end:
            return count
    return len(words)


def is_bert_wordpiece(parsed: dict[str, Any]) -> bool:
    """Whether a tokenizer.json splits at white space, punctuation and CJK before looking words up,
    as BERT's does."""
    parts = [parsed.get(name) or {} for name in ("normalizer", "pre_tokenizer", "model")]
    if parts[0].get("type") == "Sequence" and parts[0]["normalizers"][:1] == [
        {"type": "Lowercase"}
    ]:
        parts[0] = [*parts[0]["normalizers"], {}][1]  # what follows, if that is all
    longest = parts[2].get("max_input_chars_per_word", LONGEST_WORD)
    kinds = [part.get("type") for part in parts]
    return kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and longest <= LONGEST_WORD


def lower_case_first(normalizer: dict[str, Any] | None) -> dict[str, Any]:
    """A normalizer with Lowercase before it, unless that is in it, as sentence-transformers 6.2.0
    makes it."""
    parts = (normalizer or {}).get("normalizers") or [normalizer] if normalizer else []
    if any(part["type"] == "Lowercase" for part in parts):
        return normalizer or {}
    return {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *parts]}


def to_json(parts: Mapping[str, Any]) -> str:
    """A tokenizer.json. Its vocabulary is not json.dumps's work: that makes a tuple of every word,
    and 30,000 of them set off a collection of all garbage, 0.1 s of a cold start."""
    model = dict(parts["model"])
    vocabulary = model.pop("vocab", None)
    if isinstance(vocabulary, Mapping):
        entries = (f"{encode_basestring(word)}:{number}" for word, number in vocabulary.items())
        words = "{" + ",".join(entries) + "}"
    else:
        words = json.dumps(vocabulary, ensure_ascii=False, allow_nan=False)
    rest = {name: part for name, part in parts.items() if name != "model"}
    whole, inner = (json.dumps(part, ensure_ascii=False, allow_nan=False) for part in (rest, model))
    return f'{whole[:-1]}, "model": {inner[:-1]}, "vocab": {words}}}}}'


def check_texts(texts: Sequence[object]) -> None:
    """UserError naming the index of a text that is no str or that UTF-8 cannot hold."""
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"text {index} is of type {type(text).__name__}, not str")
        if (place := lone_surrogate(text)) is not None:
            surrogate = f"U+{ord(text[place]):04X}"
            raise UserError(
                f"text {index} holds a lone surrogate ({surrogate}) at character {place}"
            )
