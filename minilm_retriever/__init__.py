"""Fine-tune a BERT bi-encoder on pairs, encode text with it, retrieve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minilm_retriever.errors import UserError

if TYPE_CHECKING:
    from minilm_retriever.encoder import Encoder

__version__ = "0.1.0"
__all__ = ["Encoder", "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    """Encoder on first use: `import torch` takes seconds, and `--help` should not."""
    if name == "Encoder":
        from minilm_retriever.encoder import Encoder

        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
