"""Fine-tune a BERT bi-encoder on pairs, encode text with it, retrieve."""

from __future__ import annotations

__version__ = "0.1.0"
