"""The process: opens what is served, listens, and ends when told to, its requests answered."""

from __future__ import annotations

import gc
import signal
import socket
from dataclasses import replace
from pathlib import Path

import torch
import uvicorn

from minilm_retriever.errors import UserError
from minilm_retriever.progress import say
from minilm_retriever.serving.api import Api
from minilm_retriever.serving.batching import Workers
from minilm_retriever.serving.config import ServeConfig
from minilm_retriever.serving.connections import SILENT_SECONDS, bounded_protocol
from minilm_retriever.serving.guard import Guard
from minilm_retriever.serving.metrics import Metrics
from minilm_retriever.serving.models import open_models, open_sides
from minilm_retriever.serving.page import Page
from minilm_retriever.serving.worst_queries import find_worst

BACKLOG = 2048  # connections that wait to be accepted
DRAIN_SECONDS = 30  # for requests that are in work when the server is told to end


def serve(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM."""
    settings = with_key(config)
    with listen(settings.host, settings.port) as listener:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        with Workers() as workers:
            app = make_app(settings, workers)
            gc.freeze()  # models and modules stay: no collection need look at them
            host, port = listener.getsockname()[:2]
            name = f"[{host}]" if ":" in host else host
            server = uvicorn.Server(uvicorn_config(app, settings))
            # uvicorn takes the signal over, and sends it again when it has ended.
            signal.signal(signal.SIGTERM, server.handle_exit)
            listener.listen(BACKLOG)
            say(f"serving at http://{name}:{port}/ (Ctrl-C ends it)")
            server.run(sockets=[listener])
            say(f"stopped after {sum(app.metrics.requests.values()):,} requests")


def make_app(settings: ServeConfig, workers: Workers) -> Guard:
    metrics = Metrics()
    models = open_models(settings, workers, metrics)
    sides = open_sides(settings, models.values())
    api = Api(settings, models, sides, metrics)
    page = Page(sides, find_worst(settings, models), api.description)
    return Guard([*api.routes(), *page.routes()], settings, metrics)


def uvicorn_config(app: Guard, settings: ServeConfig) -> uvicorn.Config:
    """Without logs: Guard reports whatever fails here, and clients can't write any."""
    return uvicorn.Config(
        app,
        http=bounded_protocol(settings.max_connections, settings.max_body),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(SILENT_SECONDS),
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; UserError where the address can't be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio sets TCP_NODELAY where the protocol is named; without it an answer takes 40 ms.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as fault:
        raise UserError(f"--host {host} --port {port}: {fault.strerror}") from None
    return listener


def with_key(config: ServeConfig) -> ServeConfig:
    """The settings with the key itself in the place of @FILE."""
    if not config.api_key or not config.api_key.startswith("@"):
        return config
    path = Path(config.api_key[1:])
    try:
        key = path.read_text("utf-8").partition("\n")[0].strip()
    except UnicodeDecodeError:
        key = ""
    if not key:
        raise UserError(f"{path}: its first line holds no key")
    return replace(config, api_key=key)
