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
from minilm_retriever.serving import requests
from minilm_retriever.serving.config import ServeConfig
from minilm_retriever.serving.metrics import Metrics
from minilm_retriever.serving.models import TASKS, ServedModel, Side
from minilm_retriever.serving.refusal import Refusal, json_response
from minilm_retriever.serving.searching import search
from minilm_retriever.types import FloatArray
from minilm_retriever.vectors.quantization import truncate

MOST_HITS = 1000  # of a query
MOST_HITS_TOGETHER = 10_000  # of a request
DESCRIPTION = orjson.loads(Path(__file__).with_name("openapi.json").read_bytes())


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
        widest = max(model.encoder.dimension for model in models.values())
        input = requests.texts(settings.max_texts)
        self.embedding_fields: dict[str, requests.Check] = {
            "input": input,
            "model": requests.one_of(list(models), 404),
            "encoding_format": requests.one_of(["float", "base64"]),
            "dimensions": requests.whole_number(1, widest),
            "input_type": requests.one_of([task for task in TASKS if task]),
            "user": requests.string,
        }
        self.search_fields: dict[str, requests.Check] = {
            "query": input,
            "index": requests.one_of(list(sides), 404),
            "k": requests.whole_number(1, MOST_HITS),
        }

    def routes(self) -> list[Route]:
        return [
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.list_models),
            Route("/search", self.search, methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.show_metrics),
            Route("/openapi.json", self.describe),
        ]

    async def embeddings(self, request: Request) -> Response:
        fields = await requests.read_fields(request, self.embedding_fields)
        texts = requests.required(fields, "input")
        model = self.models[fields.get("model") or next(iter(self.models))]
        width = model.encoder.dimension
        dimensions = fields.get("dimensions", width)
        if dimensions > width:
            raise Refusal(422, f"dimensions: {model.name} has {width}")
        vectors, tokens = await model.batcher(fields.get("input_type", "")).encode(texts)
        vectors = truncate(vectors, dimensions, unit=model.encoder.model.settings.normalize)
        encode = as_base64 if fields.get("encoding_format") == "base64" else list
        data = [
            {"object": "embedding", "index": number, "embedding": vector}
            for number, vector in enumerate(encode(vectors))
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "data": data, "model": model.name, "usage": usage})

    async def list_models(self, request: Request) -> Response:
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "minilm_retriever"}
            for name in self.models
        ]
        return json_response({"object": "list", "data": data})

    async def search(self, request: Request) -> Response:
        fields = await requests.read_fields(request, self.search_fields)
        queries, k = requests.required(fields, "query"), fields.get("k", 10)
        if not self.sides:
            raise Refusal(404, "no folder of vectors is served: start with serve DIR")
        if len(queries) * k > MOST_HITS_TOGETHER:
            raise Refusal(422, f"k: {len(queries):,} queries may have {MOST_HITS_TOGETHER:,} hits")
        side = self.sides[fields.get("index") or next(iter(self.sides))]
        found = await search(side, queries, k)
        results = [
            {"query": query, "hits": [{"rank": n, **hit} for n, hit in enumerate(hits, 1)]}
            for query, hits in zip(queries, found.hits, strict=True)
        ]
        usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
        answer: dict[str, Any] = {"index": side.name, "model": side.model.name}
        return json_response({**answer, "results": results, "usage": usage})

    async def health(self, request: Request) -> Response:
        return json_response({"status": "ok", "version": __version__})

    async def show_metrics(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def describe(self, request: Request) -> Response:
        return json_response(DESCRIPTION)


def as_base64(vectors: FloatArray) -> list[str]:
    """Each row's float32 numbers, little-endian."""
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
