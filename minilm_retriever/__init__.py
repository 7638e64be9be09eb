"""Fine-tune a BERT bi-encoder on pairs, encode text with it, retrieve.

Encoder, and the commands as functions: train, inspect, mine, evaluate, search. The rooms
minilm_retriever.data reads files, .search finds nearest vectors, .evaluation measures models. What
each command does: minilm-retriever --help."""

from typing import TYPE_CHECKING

from minilm_retriever.errors import UserError
from minilm_retriever.lazy import lazy_exports

if TYPE_CHECKING:
    from minilm_retriever.encoder.encoder import Encoder
    from minilm_retriever.functions import evaluate, inspect, mine
    from minilm_retriever.search.command import search
    from minilm_retriever.training.trained import train

__version__ = "0.1.0"
__all__ = [
    "Encoder",
    "UserError",
    "__version__",
    "evaluate",
    "inspect",
    "mine",
    "search",
    "train",
]
__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Encoder": "minilm_retriever.encoder.encoder",
        "evaluate": "minilm_retriever.functions",
        "inspect": "minilm_retriever.functions",
        "mine": "minilm_retriever.functions",
        "search": "minilm_retriever.search.command",
        "train": "minilm_retriever.training.trained",
    },
)
