"""Bounds on connections, which uvicorn lacks: how many there are, how long one may be silent or
send half a request, how many bytes a header may have."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

SILENT_SECONDS = 10.0
HEADER_BYTES = 1 << 19  # more than asyncio reads at a time: the begin of a body may be in it
SPARE_FILES = 64  # that the process has open beside connections


def bounded_protocol(connections: int, body_bytes: int) -> Any:
    """uvicorn's protocol class for HTTP with at most so many open connections.

    A new one closes the oldest whose request has not arrived whole: those who hang lose theirs, and
    others are served. Where all are busy it is closed itself."""
    import resource  # not above: Windows has none

    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limit = max(1, min(connections, files - SPARE_FILES))

    class BoundedProtocol(AutoHTTPProtocol):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.last_cycle, self.unsent, self.received = self.cycle, 0, 0
            self.opened = self.loop.time()
            self.timer = self.loop.call_later(SILENT_SECONDS, self.check_silence)
            if len(self.connections) > limit:
                waiting = [other for other in self.connections if not other.is_busy()]
                waiting.sort(key=lambda other: other.opened)
                for other in waiting[: max(1, limit // 8)] or [self]:
                    other.connections.discard(other)
                    other.transport.abort()

        def connection_lost(self, problem: Exception | None) -> None:
            self.timer.cancel()
            super().connection_lost(problem)

        def is_busy(self) -> bool:
            """Whether a request has arrived whole and is not answered yet."""
            cycle = self.cycle
            return bool(cycle and not cycle.more_body and not cycle.response_complete)

        def check_silence(self) -> None:
            """End a connection on which, since last time, no request has begun or arrived whole,
            and no more of an answer was taken."""
            cycle, unsent = self.last_cycle, self.unsent
            self.last_cycle, self.unsent = self.cycle, self.transport.get_write_buffer_size()
            has_moved = (self.cycle, self.unsent) != (cycle, unsent)
            if has_moved or (self.is_busy() and not unsent):
                self.timer = self.loop.call_later(SILENT_SECONDS, self.check_silence)
            else:
                self.transport.abort()

        def data_received(self, data: bytes) -> None:
            in_body = self.cycle is not None and self.cycle.more_body
            self.received += len(data)
            if self.received > HEADER_BYTES + (2 * body_bytes if in_body else 0):
                self.transport.abort()
                return
            cycle = self.cycle
            super().data_received(data)
            if self.cycle is not cycle:  # a header has ended
                self.received = 0

    return BoundedProtocol
