"""What every request passes: host, key, limits of body and time, one shape of error, headers that
keep a browser safe, and the count of it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route, Router

from minilm_retriever.errors import UserError, first_line
from minilm_retriever.progress import say
from minilm_retriever.serving.config import ServeConfig
from minilm_retriever.serving.metrics import Metrics
from minilm_retriever.serving.requests import Refusal, refusal_response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_SECONDS = 10.0  # in which a body has to arrive
CLIENT_GONE = 499  # as nginx counts it
WITHOUT_KEY = {"/health"}
LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
SECURE = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """The ASGI application around the routes."""

    def __init__(self, routes: list[Route], settings: ServeConfig, metrics: Metrics) -> None:
        self.router, self.settings, self.metrics = Router(routes), settings, metrics
        self.paths = {route.path for route in routes}
        self.key = settings.api_key.encode() if settings.api_key else None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        start, status = time.perf_counter(), 0

        async def send_secured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *SECURE]
            await send(message)

        try:
            await self.answer(scope, receive, send_secured)
        except ClientDisconnect:
            pass
        except Exception as fault:  # noqa: BLE001 - of our own making: the next request must work
            response = refusal_response(as_refusal(fault))
            if not status:  # else the client sees an answer that ends too early
                await response(scope, receive, send_secured)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.count(path, status or CLIENT_GONE, time.perf_counter() - start)

    async def answer(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let the routes answer, unless the client goes or the time is up."""
        self.check(Request(scope))
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await read_body(Request(scope, receive), self.settings.max_body)
        except TimeoutError:
            raise Refusal(408, "the body did not arrive in time", connection="close") from None
        scope["app"] = self  # so that the router raises what it has no route for

        async def receive_body() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        answering = asyncio.ensure_future(self.router(scope, receive_body, send))
        leaving = asyncio.ensure_future(receive())  # returns when the client has gone
        try:
            async with asyncio.timeout(self.settings.timeout):
                await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    answering.result()
        except TimeoutError:
            raise Refusal(503, "it took too long: try again later", Retry_After="5") from None
        finally:
            answering.cancel()
            leaving.cancel()

    def check(self, request: Request) -> None:
        """Refusal of another host's name (a page of the web could have it point here) or key."""
        name = request.headers.get("host", "").rsplit(":", 1)[0].lower()
        rebindable = self.settings.is_local and self.key is None
        if rebindable and name not in {*LOCAL_NAMES, self.settings.host.lower()}:
            raise Refusal(421, "this server answers to localhost alone", connection="close")
        if self.key is None or request.url.path in WITHOUT_KEY:
            return
        if not hmac.compare_digest(sent_key(request), self.key):
            challenge = 'Basic realm="any user, the API key as password", charset="UTF-8"'
            message = "no or a wrong API key: send it as Authorization: Bearer KEY"
            raise Refusal(401, message, WWW_Authenticate=challenge, connection="close")


def sent_key(request: Request) -> bytes:
    """The key of a program (Bearer), or the password that a browser sends (Basic)."""
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return value.strip().encode() if kind.lower() == "bearer" else b""


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; Refusal as soon as it is too long, ClientDisconnect if it ends too early."""
    too_long = Refusal(413, f"a request may have {limit:,} bytes", connection="close")
    if int(request.headers.get("content-length", "0")) > limit:
        raise too_long
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise too_long
    return bytes(body)


def as_refusal(fault: Exception) -> HTTPException:
    """What the client is told; the reason of a fault of ours stands on stderr."""
    if isinstance(fault, HTTPException):
        return fault
    if isinstance(fault, UserError):
        return Refusal(422, first_line(fault))
    for line in "".join(traceback.format_exception(fault)).splitlines():
        say(line)
    return Refusal(500, "the server failed on this request")
