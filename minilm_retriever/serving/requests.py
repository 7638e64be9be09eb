"""Bodies of requests: parsed, and checked field by field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from starlette.requests import Request

from minilm_retriever.serving.refusal import Refusal

Check = Callable[[str, Any], Any]  # (name, value) -> value, or Refusal


async def read_fields(request: Request, checks: Mapping[str, Check]) -> dict[str, Any]:
    """The fields of a JSON object that are there and not null; Refusal naming one that is wrong."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form of another site could send any other without asking
        raise Refusal(415, "send JSON, with Content-Type: application/json")
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError as fault:
        raise Refusal(400, f"the body is no JSON: {fault}") from None
    if not isinstance(body, dict):
        raise Refusal(422, "the body must be a JSON object")
    if unknown := body.keys() - checks.keys():
        known = ", ".join(checks)
        raise Refusal(422, f"{min(unknown)[:40]!r}: no field of this request; it has {known}")
    return {name: checks[name](name, value) for name, value in body.items() if value is not None}


def required(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise Refusal(422, f"{name}: missing")
    return fields[name]


def texts(most: int) -> Check:
    """A string, or a list of 1 to `most`."""

    def check(name: str, value: Any) -> list[str]:
        values = value if isinstance(value, list) else [value]
        if not values:
            raise Refusal(422, f"{name}: an empty list")
        if len(values) > most:
            raise Refusal(422, f"{name}: {len(values):,} texts, and a request may have {most:,}")
        for number, text in enumerate(values):
            if isinstance(text, int | list) and not isinstance(text, bool):
                raise Refusal(422, f"{name}: tokens are those of another model: send text")
            if not isinstance(text, str):
                raise Refusal(422, f"{name}: text {number} is no string")
        return values

    return check


def one_of(choices: Sequence[str], status: int = 422) -> Check:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            shown = repr(value)[:60]
            raise Refusal(status, f"{name}: {shown} is not one of: {', '.join(choices)}")
        return value

    return check


def whole_number(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise Refusal(422, f"{name}: must be a whole number from {low} to {high:,}")
        return value

    return check


def string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise Refusal(422, f"{name}: must be a string")
    return value
