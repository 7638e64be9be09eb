"""The API: OpenAI's embeddings and models, search, health, metrics, and their description."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from minilm_retriever import __version__
from minilm_retriever.serving.config import ServeConfig
from minilm_retriever.serving.metrics import Metrics
from minilm_retriever.serving.models import ServedModel, Side
from minilm_retriever.serving.requests import Refusal, json_response, read_fields, text_list
from minilm_retriever.serving.searching import search
from minilm_retriever.types import FloatArray
from minilm_retriever.vectors.quantization import truncate

MOST_HITS_TOGETHER = 10_000  # of a request


class Api:
    """The routes that programs call."""

    def __init__(
        self,
        settings: ServeConfig,
        models: Mapping[str, ServedModel],
        sides: Mapping[str, Side],
        metrics: Metrics,
    ) -> None:
        self.models, self.sides, self.metrics = models, sides, metrics
        self.description = describe(settings.max_texts, models, sides)
        schemas = self.description["components"]["schemas"]
        self.embedding_schema = schemas["EmbeddingRequest"]
        self.search_schema = schemas["SearchRequest"]

    def routes(self) -> list[Route]:
        fixed = {
            "/v1/models": {"object": "list", "data": [listed(name) for name in self.models]},
            "/health": {"status": "ok", "version": __version__},
            "/openapi.json": self.description,
        }
        return [
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/search", self.search, methods=["POST"]),
            Route("/metrics", self.show_metrics),
            *(Route(path, json_response(v), methods=["GET"]) for path, v in fixed.items()),
        ]

    async def embeddings(self, request: Request) -> Response:
        fields = await read_fields(request, self.embedding_schema)
        model = self.models[fields.get("model") or next(iter(self.models))]
        width = model.encoder.dimension
        dimensions = fields.get("dimensions", width)
        if dimensions > width:
            raise Refusal(422, f"dimensions: {model.name} has {width}")
        batcher = model.batcher(fields.get("input_type", ""))
        vectors, tokens = await batcher.encode(text_list(fields["input"]))
        vectors = truncate(vectors, dimensions, unit=model.encoder.model.settings.normalize)
        encode = as_base64 if fields.get("encoding_format") == "base64" else list
        data = [
            {"object": "embedding", "index": number, "embedding": vector}
            for number, vector in enumerate(encode(vectors))
        ]
        answer = {"object": "list", "data": data, "model": model.name}
        return json_response({**answer, "usage": usage(tokens)})

    async def search(self, request: Request) -> Response:
        fields = await read_fields(request, self.search_schema)
        queries, k = text_list(fields["query"]), fields.get("k", 10)
        if not self.sides:
            raise Refusal(404, "no folder of vectors is served: start with serve DIR")
        if len(queries) * k > MOST_HITS_TOGETHER:
            raise Refusal(422, f"k: {len(queries):,} queries may have {MOST_HITS_TOGETHER:,} hits")
        side = self.sides[fields.get("index") or next(iter(self.sides))]
        found, tokens = await search(side, queries, k)
        results = [
            {"query": query, "hits": [{"rank": n, **h._asdict()} for n, h in enumerate(hits, 1)]}
            for query, hits in zip(queries, found, strict=True)
        ]
        answer = {"index": side.name, "model": side.model.name, "results": results}
        return json_response({**answer, "usage": usage(tokens)})

    async def show_metrics(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")


def describe(
    max_texts: int, models: Mapping[str, ServedModel], sides: Mapping[str, Side]
) -> dict[str, Any]:
    """openapi.json, with the names and limits of this server: what requests are checked against."""
    description = orjson.loads(Path(__file__).with_name("openapi.json").read_bytes())
    schemas = description["components"]["schemas"]
    embedding, search = (
        schemas[f"{name}Request"]["properties"] for name in ("Embedding", "Search")
    )
    embedding["model"]["enum"] = list(models)
    embedding["dimensions"]["maximum"] = max(m.encoder.dimension for m in models.values())
    if sides:  # an enum may not be empty
        search["index"]["enum"] = list(sides)
    for field in (embedding["input"], search["query"]):
        field["oneOf"][1]["maxItems"] = max_texts
    return dict(description)


def listed(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "minilm_retriever"}


def usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def as_base64(vectors: FloatArray) -> list[str]:
    """Each row's float32 numbers, little-endian."""
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
