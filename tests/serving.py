"""A server in a thread of the test's own process, on a free port."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

pytest.importorskip("starlette", reason="needs the extra [serve]: starlette is missing")
pytest.importorskip("uvicorn", reason="needs the extra [serve]: uvicorn is missing")
pytest.importorskip("httptools", reason="needs the extra [serve]: httptools is missing")
pytest.importorskip("orjson", reason="needs the extra [serve]: orjson is missing")

import uvicorn

from minilm_retriever.serving import batching, server
from minilm_retriever.serving.api import Api
from minilm_retriever.serving.batching import Batcher, Workers
from minilm_retriever.serving.config import ServeConfig
from minilm_retriever.serving.guard import Guard

JSON = {"Content-Type": "application/json"}
EMBED, SEARCH = "/v1/embeddings", "/search"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return self.json["error"]["message"]


class Running(NamedTuple):
    """A server that runs."""

    port: int
    app: Guard
    uvicorn: uvicorn.Server

    @property
    def api(self) -> Api:
        return self.app.router.routes[0].endpoint.__self__

    @property
    def batcher(self) -> Batcher:
        """The first model's, of texts without a task."""
        return next(iter(self.api.models.values())).batcher()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = self.connect()
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            sent = {**(JSON if data is not None else {}), **headers}
            connection.request(
                method, path, data, {k.replace("_", "-"): v for k, v in sent.items()}
            )
            answer = connection.getresponse()
            received = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, received, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, **headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.send("POST", path, body, **headers)

    def embed(self, input: Any, **fields: Any) -> Answer:
        return self.post("/v1/embeddings", {"input": input, **fields})


@contextmanager
def running(**settings: Any) -> Iterator[Running]:
    config = ServeConfig(**{"port": 0, **settings})
    with server.listen(config.host, 0) as listener, Workers() as workers:
        app = server.make_app(config, workers)
        unicorn = uvicorn.Server(server.uvicorn_config(app, config))
        thread = threading.Thread(target=unicorn.run, kwargs={"sockets": [listener]})
        port = listener.getsockname()[1]
        thread.start()
        try:
            wait_for(lambda: unicorn.started)
            yield Running(port, app, unicorn)
        finally:
            unicorn.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def wait_for(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


class Hold:
    """The model waits inside its first batch until `go`, and has one batch at a time, or more."""

    def __init__(self, monkeypatch, lanes=1):
        monkeypatch.setattr(batching, "LANES", lanes)
        self.go, self.batches = threading.Event(), []
        compute = Batcher.compute

        def held(batcher, batch):
            self.batches.append([pending.text for pending in batch])
            assert self.go.wait(30)
            return compute(batcher, batch)

        monkeypatch.setattr(Batcher, "compute", held)
