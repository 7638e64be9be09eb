"""Texts to token ids on the `tokenizers` library, equal to sentence-transformers' for any string:
stripped, lower-cased only where the folder says so, truncated to the model's limit. Truncation and
padding written in tokenizer.json are ignored."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Encoding, Tokenizer

from minilm_retriever.data.rows import lone_surrogate
from minilm_retriever.errors import UserError
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
    """The tokenizer of a model folder; max_length: tokens, [CLS] and [SEP] included."""

    def __init__(
        self, data: bytes, *, max_length: int, lower_case: bool = False, where: str = "tokenizer"
    ) -> None:
        try:
            self.json = data.decode("utf-8")
            parsed = json.loads(self.json)
            self.fast = Tokenizer.from_str(self.json)
        except Exception as problem:  # noqa: BLE001 - the library raises plain Exception for a bad file
            raise UserError(f"{where}: not a tokenizer of `tokenizers`: {problem}") from None
        self.fast.no_padding()
        self.special = self.fast.num_special_tokens_to_add(False)
        if max_length <= self.special:
            raise UserError(f"{where}: {max_length} tokens leave no room beside [CLS] and [SEP]")
        self.max_length = max_length
        self.lower_case = lower_case
        self.is_wordpiece = is_bert_wordpiece(parsed)
        added_tokens = parsed.get("added_tokens") or []
        self.longest_added = max((len(t.get("content", "")) for t in added_tokens), default=0)
        self.fast.enable_truncation(max_length)

    @cached_property
    def untruncated(self) -> Tokenizer:
        """The same without a limit, for very long texts."""
        untruncated = Tokenizer.from_str(self.json)
        untruncated.no_padding()
        untruncated.no_truncation()
        return untruncated

    @property
    def vocab_size(self) -> int:
        """Every token id is below this."""
        return max(self.fast.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Token ids of N texts, at most max_length each.

        Raises UserError (a ValueError) naming the index of a text that is no str or holds a lone
        surrogate."""
        check_texts(texts)
        ids, lengths = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
        for start in range(0, len(texts), CHUNK_TEXTS):
            encodings = self.encode(texts[start : start + CHUNK_TEXTS])
            lengths.append(np.fromiter(map(len, encodings), np.int64, len(encodings)))
            flat = (i for encoding in encodings for i in encoding)
            ids.append(np.fromiter(flat, np.int32, int(lengths[-1].sum())))
        return TokenizedTexts(np.concatenate(ids), np.cumsum(np.concatenate(lengths)))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text of one chunk."""
        plain = [text.strip().lower() if self.lower_case else text.strip() for text in texts]
        short = [self.shorten(text) for text in plain] if self.is_wordpiece else plain
        if len(short) == 1:  # a query: encode_batch_fast would wake threads
            return [self.fast.encode(short[0]).ids]
        return [encoding.ids for encoding in self.fast.encode_batch_fast(short)]

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
            if whole >= self.max_length - self.special:
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
    longest = parts[2].get("max_input_chars_per_word", LONGEST_WORD)
    kinds = [part.get("type") for part in parts]
    return kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and longest <= LONGEST_WORD


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
