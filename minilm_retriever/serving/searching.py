"""Search for several queries in a served folder."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from minilm_retriever.search.index import find
from minilm_retriever.serving.models import Side
from minilm_retriever.types import FloatArray


class Found(NamedTuple):
    """The hits of each query, best first, as {"id", "text", "score"}."""

    hits: list[list[dict[str, Any]]]
    vectors: FloatArray  # (B, H) of the queries
    tokens: int  # of all queries together


async def search(side: Side, queries: Sequence[str], k: int) -> Found:
    vectors, tokens = await side.model.batcher("query").encode(queries)
    loop = asyncio.get_running_loop()
    hits = await loop.run_in_executor(side.model.worker, find, side.index, vectors, k)
    return Found([[hit._asdict() for hit in of_query] for of_query in hits], vectors, tokens)
