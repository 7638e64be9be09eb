"""Clients of `serve` that hang, send half, too much or nonsense, read nothing, leave, or flood."""

from __future__ import annotations

import importlib
import json
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minilm_retriever import Encoder
from tests.faults.processes import wait_until
from tests.faults.row import Outcome, Row, Scene, Skipped, judge, patched
from tests.faults.scenes import NOUNS, tiny_model

LIMIT = 12  # connections
BODY_BYTES = 100_000
SECONDS = 0.2  # after which a client that hangs is let go
SENT_BYTES = 32 << 20  # of what never ends
MEMORY_MB = 128.0  # that the process may gain
PATIENCE_SECONDS = 30.0  # on a busy machine
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "line": (b"GET /", b"a" * 50_000),
    "header": (HEAD, b"X-Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 1000),
    "body": (CHUNKED, b"c350\r\n" + b" " * 50_000 + b"\r\n"),
    "body of a given length": (HEAD + b"Content-Length: 90000\r\n\r\n", b" " * 50_000),
    "trailer": (CHUNKED + b"0\r\n", b"X-Trailer: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 1000),
}
KINDS = ("hang", "hang", "half", "half", "endless", "too much", "nonsense", "leave", "unread",
         "flood")  # fmt: skip


def whole(value: object, length: int | None = None) -> bytes:
    """A request for vectors, of a length that is its own or a lie."""
    body = json.dumps(value).encode()
    return HEAD + b"Content-Length: %d\r\n\r\n" % (length or len(body)) + body


def misbehave(kind: str, rng: random.Random, port: int, clients: ExitStack) -> list[socket.socket]:
    """What these clients do; those who still wait for something."""
    texts = [
        " ".join(rng.choices(NOUNS, k=rng.randrange(1, 9))) for _ in range(rng.randrange(1, 9))
    ]
    request = whole({"input": texts})

    def send(data: bytes) -> socket.socket:
        client = clients.enter_context(
            socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
        )
        with suppress(OSError):
            client.sendall(data)
        return client

    several = range(rng.choice((rng.randrange(1, LIMIT), rng.randrange(LIMIT, 3 * LIMIT))))
    if kind == "hang":
        return [send(rng.choice((b"", HEAD, request[:-1], CHUNKED))) for _ in several]
    if kind == "half":
        return [send(request[: rng.randrange(len(request))]) for _ in several]
    if kind == "endless":
        begin, more = rng.choice(tuple(ENDLESS.values()))
        client, sent = send(begin), 0
        with suppress(OSError):
            while sent < SENT_BYTES:
                client.sendall(more)
                sent += len(more)
        if sent >= SENT_BYTES:
            raise AssertionError(f"{begin[-40:]!r} went on for {sent:,} bytes")
        return [client]
    if kind == "too much":
        lies = [whole("a", 1 << rng.randrange(17, 62)), whole({"input": "a" * 2 * BODY_BYTES})]
        return [send(rng.choice([*lies, whole({"input": ["a"] * 3000})])) for _ in several]
    if kind == "nonsense":
        return [send(damaged(rng, request)) for _ in several]
    if kind == "unread":
        big = whole({"input": texts * 200, "encoding_format": "float"})
        return [send(big * rng.randrange(1, 4)) for _ in range(LIMIT)]
    made = [send(request) for _ in (several if kind == "leave" else range(20 * LIMIT))]
    for client in made:
        client.close()
    return []


def damaged(rng: random.Random, request: bytes) -> bytes:
    """A request with bytes that are others, or none at all."""
    if rng.random() < 0.3:
        return rng.randbytes(rng.randrange(1, 3000))
    data = bytearray(request)
    for _ in range(rng.choice((1, 3, 30))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def answers(client: socket.socket) -> bytes:
    """All that a client is sent until its connection ends."""
    received = b""
    with suppress(ConnectionError):
        while data := client.recv(1 << 16):
            received += data
    return received


def served_by(*names: str) -> list[Any]:
    """Modules that need the extra [serve]: of `minilm_retriever.serving` where they have no dot."""
    try:
        return [
            importlib.import_module(name if "." in name else f"minilm_retriever.serving.{name}")
            for name in names
        ]
    except (ImportError, pytest.skip.Exception) as reason:
        raise Skipped(str(reason)) from None


def memory_mb() -> float:
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def hostile_clients(scene: Scene, count: int) -> Iterator[Outcome]:
    serving, connections, guard = served_by("tests.serving", "connections", "guard")
    model = tiny_model(scene.place)
    right = Encoder.from_pretrained(model, device="cpu").encode("bread")
    settings = {"max_connections": LIMIT, "max_body": BODY_BYTES, "timeout": 5.0}
    with (
        patched((connections, "SILENT_SECONDS", SECONDS), (guard, "BODY_SECONDS", SECONDS)),
        serving.running(model=(str(model),), **settings) as server,
    ):
        before = memory_mb()
        for number in range(count):
            rng = random.Random(f"{scene.seed} {number}")
            kind = KINDS[number % len(KINDS)]
            with ExitStack() as clients:
                try:
                    problem = tried(kind, rng, server, clients, right)
                except Exception as fault:
                    problem = f"{type(fault).__name__}: {fault}"
            gained = memory_mb() - before
            if gained > MEMORY_MB:
                problem = problem or f"{gained:.0f} MB more"
            where = f"fault {number} of seed {scene.seed}, {kind}: {problem}"
            yield judge(not problem, "survived", where)


def tried(kind: str, rng: random.Random, server: Any, clients: ExitStack, right: np.ndarray) -> str:
    """What is not as it must be; "" where another client has its vector, those who misbehave are
    let go, and nothing of them is left."""
    state, metrics = server.uvicorn.server_state, server.app.metrics
    waiting = misbehave(kind, rng, server.port, clients)
    if len(state.connections) > LIMIT + 1:  # one more before another is let go
        return f"{len(state.connections)} connections"

    def is_served() -> bool:
        with suppress(OSError):
            answer = server.embed("bread")
            vector = np.array(answer.json["data"][0]["embedding"], np.float32)
            return answer.status == 200 and bool(np.allclose(vector, right, rtol=0, atol=1e-6))
        return False

    if not wait_until(is_served, PATIENCE_SECONDS):
        return "others are not served"
    if kind != "unread":
        received = b"".join(map(answers, waiting))
        refused = b" 413 " in received or b" 422 " in received
        if kind == "too much" and (not refused or b" 200 OK" in received):
            return f"answered with {received[:60]!r}"
    if not wait_until(lambda: not state.connections, PATIENCE_SECONDS):
        return f"{len(state.connections)} connections are kept"
    if not wait_until(lambda: metrics.queue == 0, PATIENCE_SECONDS):
        return f"{metrics.queue} tokens wait for nobody"
    crashes = {status for _, status in metrics.requests if status == 500}
    return "a crash" if crashes else ""


def unbounded() -> object:
    """Mutation: uvicorn's own protocol, which bounds neither connections nor silence."""
    server, auto = served_by("server", "uvicorn.protocols.http.auto")
    return patched(
        (server, "bounded_protocol", lambda *_: auto.AutoHTTPProtocol),
        (sys.modules[__name__], "PATIENCE_SECONDS", 1.0),  # it hangs
    )


def any_length() -> object:
    """Mutation: a body of any length is read."""
    (guard,) = served_by("guard")
    read_body = guard.read_body
    return patched((guard, "read_body", lambda request, _: read_body(request, 1 << 62)))


ROWS = (
    Row(
        "hostile-clients",
        "clients of `serve` that hang, send half, too much or nonsense, leave, read nothing, flood",
        "others have their vectors; connections and memory bounded; no crash, nothing left",
        300,
        hostile_clients,
        {"connections unbounded": unbounded, "bodies unbounded": any_length},
        sample=10,
        mutated=6,
    ),
)
