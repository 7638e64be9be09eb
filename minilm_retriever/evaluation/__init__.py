"""Retrieval and similarity metrics, models side by side, BM25 as a baseline."""

from typing import TYPE_CHECKING

from minilm_retriever.lazy import lazy_exports

if TYPE_CHECKING:
    from minilm_retriever.evaluation.evaluate import evaluate_retrieval
    from minilm_retriever.evaluation.tasks import read_beir, retrieval_from_pairs

__all__ = ["evaluate_retrieval", "read_beir", "retrieval_from_pairs"]
__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "evaluate_retrieval": "minilm_retriever.evaluation.evaluate",
        "read_beir": "minilm_retriever.evaluation.tasks",
        "retrieval_from_pairs": "minilm_retriever.evaluation.tasks",
    },
)
