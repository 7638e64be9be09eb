"""Texts to token ids: what a text may be, truncation, padding. On the `tokenizers` library.

The ids equal sentence-transformers' for every Python string: strip, lower-case only where the
folder says so, truncation to the model's limit including [CLS] and [SEP]; truncation and padding
written in tokenizer.json are ignored."""

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
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

from minilm_retriever.errors import UserError

CHUNK = 4096  # texts tokenised at a time: bounds the memory of the library's Encoding objects
LONG = 32  # characters a token above which a text is worth cutting before it is tokenised

# What BertNormalizer puts spaces around: each of these characters is a word of its own.
CJK = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b820-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f"
)
# A run of letters and digits is part of one word; past the longest word that WordPiece looks at it
# is [UNK] whatever follows. Twice the limit, so that what is left of a run is past it still.
LONG_RUN = re.compile(rf"([^\W_{CJK}]{{200}})[^\W_{CJK}]+")
LONGEST_WORD = 100  # WordPiece's max_input_chars_per_word in BERT


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of many texts, end to end: text i is ids[offsets[i] : offsets[i + 1]]."""

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, (N,)."""
        return np.diff(self.offsets)

    def batch(
        self, rows: Sequence[int] | npt.NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """input_ids and attention_mask (B, T) int64 of these rows, padded on the right with 0 to
        the longest."""
        rows = np.asarray(rows, dtype=np.int64)
        starts, lengths = self.offsets[rows], self.lengths_of(rows)
        columns = np.arange(int(lengths.max(initial=0)))
        mask = columns < lengths[:, None]
        ids = np.zeros(mask.shape, dtype=np.int64)
        ids[mask] = self.ids[(starts[:, None] + columns)[mask]]
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))

    def lengths_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Tokens of these rows, (B,)."""
        return self.offsets[rows + 1] - self.offsets[rows]

    @staticmethod
    def concatenate(parts: Sequence[TokenizedTexts]) -> TokenizedTexts:
        """One after the other."""
        lengths = np.concatenate([np.zeros(1, np.int64), *(part.lengths for part in parts)])
        ids = np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)])
        return TokenizedTexts(ids, np.cumsum(lengths))


class TextTokenizer:
    """The tokenizer of a model folder with the model's own token limit."""

    def __init__(
        self,
        tokenizer_json: bytes,
        *,
        max_length: int,
        lower_case: bool = False,
        where: str = "tokenizer.json",
    ) -> None:
        """tokenizer_json: the file's bytes; max_length: tokens a text may have, [CLS] and [SEP]
        included.

        Raises UserError where the bytes are not a tokenizer."""
        try:
            self.json = tokenizer_json.decode("utf-8")
            parsed = json.loads(self.json)
            self.fast = FastTokenizer.from_str(self.json)
        except Exception as problem:  # noqa: BLE001 - the library raises plain Exception for a bad file
            raise UserError(
                f"{where}: not a tokenizer the `tokenizers` library reads: {problem}"
            ) from None
        self.fast.no_padding()
        self.special = self.fast.num_special_tokens_to_add(False)
        if max_length <= self.special:
            raise UserError(
                f"{where}: a limit of {max_length} tokens leaves no room beside {self.special} special tokens"
            )
        self.max_length = max_length
        self.lower_case = lower_case
        self.cuttable = is_bert_wordpiece(parsed)
        self.longest_added = max(
            (len(t.get("content", "")) for t in parsed.get("added_tokens") or [{}]), default=0
        )
        self.fast.enable_truncation(max_length)

    @cached_property
    def untruncated(self) -> FastTokenizer:
        """The same tokenizer without a limit: made when the first very long text asks for it."""
        untruncated = FastTokenizer.from_str(self.json)
        untruncated.no_padding()
        untruncated.no_truncation()
        return untruncated

    @property
    def vocab_size(self) -> int:
        """Token ids the tokenizer can give: every one is below this."""
        return max(self.fast.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def tokenize(self, texts: Sequence[str], *, first: int = 0) -> TokenizedTexts:
        """Token ids of N texts, at most max_length each.

        Raises UserError (a ValueError) naming the index, counted from `first`, of a text that is no
        str or holds a lone surrogate."""
        check_texts(texts, first)
        parts = []
        for start in range(0, len(texts), CHUNK):
            encodings = self.encode(texts[start : start + CHUNK])
            lengths = np.fromiter((len(ids) for ids in encodings), np.int64, len(encodings))
            flat = np.fromiter((i for ids in encodings for i in ids), np.int32, int(lengths.sum()))
            parts.append(
                TokenizedTexts(flat, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
            )
        return parts[0] if len(parts) == 1 else TokenizedTexts.concatenate(parts)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text of one chunk."""
        plain = [text.strip().lower() if self.lower_case else text.strip() for text in texts]
        short = [self.cut(text) for text in plain] if self.cuttable else plain
        if len(short) == 1:  # a query: the other way wakes threads
            return [self.fast.encode(short[0]).ids]
        return [encoding.ids for encoding in self.fast.encode_batch_fast(short)]

    def cut(self, text: str) -> str:
        """The text, or where it is very long a beginning of it with the same ids after truncation.

        Tokens of a beginning are exactly the text's own up to the last word that the cut may have
        split (the library would tokenise all of 10 MB to keep 256 tokens). Very long runs of
        letters and digits become shorter runs that are one [UNK] all the same."""
        size = LONG * self.max_length
        while size < len(text):
            head = LONG_RUN.sub(r"\1", text[:size])
            encoding = self.untruncated.encode(head, add_special_tokens=False)
            if (
                whole_tokens(encoding, len(head) - self.longest_added)
                >= self.max_length - self.special
            ):
                return head
            size *= 4
        return LONG_RUN.sub(r"\1", text) if len(text) > LONG * self.max_length else text


def whole_tokens(encoding: Encoding, end: int) -> int:
    """How many leading tokens stand wholly before the last word and before character `end`."""
    words = encoding.word_ids
    last = next((w for w in reversed(words) if w is not None), None)
    count = 0
    for word, (_, stop) in zip(words, encoding.offsets, strict=True):
        if word == last or stop > end:
            break
        count += 1
    return count


def is_bert_wordpiece(parsed: dict[str, Any]) -> bool:
    """Whether a tokenizer.json splits at white space, punctuation and CJK before looking words up,
    as BERT's does."""
    kinds = [
        (parsed.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")
    ]
    longest = (parsed.get("model") or {}).get("max_input_chars_per_word", LONGEST_WORD)
    return kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and longest <= LONGEST_WORD


def check_texts(texts: Sequence[object], first: int = 0) -> None:
    """UserError naming the index (counted from `first`) of a text that is no str or can't be
    written in UTF-8."""
    for index, text in enumerate(texts, first):
        if not isinstance(text, str):
            raise UserError(f"text {index} is of type {type(text).__name__}, not str")
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as problem:
                surrogate = f"U+{ord(text[problem.start]):04X}"
                raise UserError(
                    f"text {index} holds a lone surrogate ({surrogate}) at character {problem.start}"
                ) from None
