"""Search over stored vectors: exact, by bits, or with an approximate index."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from minilm_retriever.lazy import lazy_exports

if TYPE_CHECKING:
    from minilm_retriever.search.command import SearchResults
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


class _Search(ModuleType):
    """The room by whose name `minilm_retriever.search` is also a function."""

    def __call__(
        self, folder: Any, queries: Any, *, k: int = 10, model: Any = None, **settings: Any
    ) -> "SearchResults":
        from minilm_retriever.search.command import search

        return search(folder, queries, k=k, model=model, **settings)


sys.modules[__name__].__class__ = _Search
