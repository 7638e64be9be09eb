"""Refusal: an answer that is not what the client asked for, with its status."""

from __future__ import annotations

import orjson
from starlette.responses import Response

KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """status: of HTTP; message: one line for the client, as OpenAI's API words errors."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> Response:
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "error")
        error = {"message": self.message, "type": kind, "param": None, "code": self.status}
        return json_response({"error": error}, self.status, self.headers)


def json_response(
    value: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """JSON; numpy's arrays are lists of the shortest numbers that are the same as float32."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, media_type="application/json")
