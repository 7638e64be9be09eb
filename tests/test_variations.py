"""Every folder of variations.py opens with the vectors that sentence-transformers 6.2.0 gives, and
is the same model after it was saved."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minilm_retriever import Encoder
from tests.conftest import REFERENCE
from tests.variations import METHODS, TEXTS, VARIATIONS, make_variation

KNOWN = np.load(REFERENCE / "variations.npz", allow_pickle=False)
LIMIT = 1e-6  # beside 1, or the largest number of the reference


def compare(encoder: Encoder, name: str) -> None:
    for method in METHODS:
        key = f"{name}|{method}"
        expected = KNOWN[key if key in KNOWN.files else f"{name}|encode"]
        vectors = getattr(encoder, method)(TEXTS)
        assert vectors.shape == expected.shape
        assert np.abs(vectors - expected).max() <= LIMIT * max(1, np.abs(expected).max()), method


@pytest.mark.parametrize("name", VARIATIONS)
@pytest.mark.filterwarnings("ignore:.*is a language model")
def test_a_folder_opens_as_in_sentence_transformers(name, tmp_path):
    encoder = Encoder.from_pretrained(make_variation(name, tmp_path / "model"), device="cpu")
    compare(encoder, name)
    encoder.save(tmp_path / "saved")
    again = Encoder.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.model.fingerprint() == encoder.model.fingerprint()
    compare(again, name)


def test_all_were_opened_by_the_reference():
    versions = json.loads(bytes(KNOWN["versions"]))
    assert versions["sentence-transformers"] == "6.2.0" and versions["opened"] == len(VARIATIONS)
