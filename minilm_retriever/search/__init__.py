"""Search over stored vectors: exact, by bits, or with an approximate index."""

from typing import TYPE_CHECKING

from minilm_retriever.lazy import lazy_exports

if TYPE_CHECKING:
    from minilm_retriever.search.exact import top_k
    from minilm_retriever.search.index import find
    from minilm_retriever.search.index_folder import make_index, open_index

__all__ = ["find", "make_index", "open_index", "top_k"]
__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "find": "minilm_retriever.search.index",
        "make_index": "minilm_retriever.search.index_folder",
        "open_index": "minilm_retriever.search.index_folder",
        "top_k": "minilm_retriever.search.exact",
    },
)
