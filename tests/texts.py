"""Texts made for tests: varied, hostile, the same in every run."""

from __future__ import annotations

import random
import unicodedata

WORDS = """the of and to in is for with that plumber nurse repairs engine bakery customers
quickly river night translates contracts orchestra soil samples teaches children geometry
network packets invoices harbour crane vines don't e-mail 3.14 2,500 C++ #hashtag @home
https://example.org/a?b=c naïve café Zürich Łódź über straße ﬁn ½ ² шахматы музыка
東京 中文字 日本語 한국어 عربى עברית हिन्दी ไทย 😀 👩‍🔬 🇫🇷 ♥ — … “quoted” „so“ «so» ﷺ
\u200b zero\u200dwidth e\u0301 A\u030a \u202eright\u202c tab\there
nul\x00here bell\x07 \ufeffbom""".split()


def varied_texts(count: int, seed: int = 0) -> list[str]:
    """Empty, one character, sentences, and now and then up to 5,000 words."""
    rng = random.Random(seed)
    texts = [
        "",
        " ",
        "\n\t",
        "\x00",
        "\u0301",
        "a",
        "中",
        "😀",
        "[CLS] [SEP] [MASK] [PAD] [UNK]",
        "x" * 300,
        "a b " * 2500,
    ]
    while len(texts) < count:
        words = (
            rng.choice((1, 1, 2, 3, 5, 8, 12, 25))
            if rng.random() < 0.985
            else rng.choice((300, 1000, 5000))
        )
        texts.append(" ".join(rng.choice(WORDS) for _ in range(words)))
    return texts[:count]


def hostile_texts(count: int, seed: int = 1) -> list[str]:
    """Random code points of every plane, lone surrogates among them, runs of one character, mixed
    directions."""
    rng = random.Random(seed)
    texts = []
    while len(texts) < count:
        kind = rng.randrange(6)
        length = rng.choice((1, 3, 20, 200))
        if kind == 0:
            texts.append("".join(chr(rng.randrange(0x110000)) for _ in range(length)))
        elif kind == 1:
            texts.append(chr(rng.randrange(0x110000)) * length)
        elif kind == 2:
            texts.append("".join(chr(rng.randrange(0x300)) for _ in range(length)))
        elif kind == 3:
            texts.append("a" + "".join(chr(rng.randrange(0x300, 0x370)) for _ in range(length)))
        elif kind == 4:
            texts.append(
                "".join(rng.choice("\u202e\u202d\u200f\u200eab שלום مرحبا ") for _ in range(length))
            )
        else:
            texts.append(unicodedata.normalize(rng.choice(("NFC", "NFD")), "é한Å" * length))
    return texts
