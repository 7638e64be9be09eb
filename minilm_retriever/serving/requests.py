"""Bodies: requests parsed and checked as openapi.json describes them, answers and refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

NAMES = ("model", "index")  # fields that name a thing: 404 where there is none
KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class Refusal(HTTPException):  # type: ignore[misc]
    """An answer that is not what the client asked for; message: one line."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(
            status, message, {name.replace("_", "-"): value for name, value in headers.items()}
        )


def refusal_response(refusal: HTTPException) -> Response:
    """As OpenAI's API words errors."""
    status = refusal.status_code
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "error")
    error = {"message": refusal.detail, "type": kind, "param": None, "code": status}
    return json_response({"error": error}, status, refusal.headers)


def json_response(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON; numpy's arrays are lists of the shortest numbers that are the same as float32."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, media_type="application/json")


async def read_fields(request: Request, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a JSON object that are not null; Refusal where they are not as in `schema`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form of another site could send any other without asking
        raise Refusal(415, "send JSON, with Content-Type: application/json")
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError as fault:
        raise Refusal(400, f"the body is no JSON: {fault}") from None
    if not isinstance(body, dict):
        raise Refusal(422, "the body must be a JSON object")
    if unknown := body.keys() - schema["properties"].keys():
        known = ", ".join(schema["properties"])
        raise Refusal(422, f"{min(unknown)[:40]!r}: no field of this request; it has {known}")
    fields = {name: value for name, value in body.items() if value is not None}
    for name, value in fields.items():
        check_field(name, value, schema["properties"][name])
    for name in schema["required"]:
        if name not in fields:
            raise Refusal(422, f"{name}: missing")
    return fields


def check_field(name: str, value: Any, schema: Mapping[str, Any]) -> None:
    """Refusal where a value is none of its schema, which may be of the kinds that ours are."""
    if "oneOf" in schema:
        check_texts(name, text_list(value), schema["oneOf"][1]["maxItems"])
    elif "enum" in schema:
        if value not in schema["enum"]:
            choices = f"is not one of: {', '.join(schema['enum'])}"
            raise Refusal(404 if name in NAMES else 422, f"{name}: {repr(value)[:60]} {choices}")
    elif schema["type"] == "integer":
        low, high = schema["minimum"], schema["maximum"]
        if type(value) is not int or not low <= value <= high:
            raise Refusal(422, f"{name}: must be a whole number from {low} to {high:,}")
    elif not isinstance(value, str):
        raise Refusal(422, f"{name}: must be a string")


def check_texts(name: str, texts: list[Any], most: int) -> None:
    if not texts:
        raise Refusal(422, f"{name}: an empty list")
    if len(texts) > most:
        raise Refusal(422, f"{name}: {len(texts):,} texts, and a request may have {most:,}")
    for number, text in enumerate(texts):
        if type(text) in (int, list):
            raise Refusal(422, f"{name}: tokens are those of another model: send text")
        if not isinstance(text, str):
            raise Refusal(422, f"{name}: text {number} is no string")


def text_list(value: Any) -> list[Any]:
    """The texts of a field that may hold one or a list."""
    return value if isinstance(value, list) else [value]
