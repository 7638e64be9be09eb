"""The page: search and compare, the worst queries, the API's description.

All of it is made here, by page.html; page.js only fetches it again while somebody types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from minilm_retriever.progress import escape
from minilm_retriever.serving.api import DESCRIPTION, MOST_HITS
from minilm_retriever.serving.models import Side
from minilm_retriever.serving.searching import (
    Column,
    PageHit,
    mark_moves,
    mark_passages,
    search_column,
)
from minilm_retriever.serving.worst_queries import DEPTH, ModelReport

QUERY_CHARACTERS = 2000
SIZES = (10, 20, 50, 100)  # hits on a page
COMPARED = 100  # hits in which a hit of the other model is looked for
TEXT_CHARACTERS = 2000  # that are shown of a text
FOLDER = Path(__file__).parent


class Page:
    """The routes that people open."""

    def __init__(self, sides: Mapping[str, Side], reports: Sequence[ModelReport]) -> None:
        self.sides, self.reports = sides, reports
        environment = Environment(
            loader=FileSystemLoader(FOLDER),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=lambda value: one_line(value) if type(value) is str else value,
        )
        environment.filters["cut"] = cut
        self.template = environment.get_template("page.html")
        self.files = {name: FOLDER.joinpath(name).read_text("utf-8") for name in
                      ("page.css", "page.js")}  # fmt: skip

    def routes(self) -> list[Route]:
        return [
            Route("/", self.search),
            Route("/evaluation", self.evaluation),
            Route("/api", self.api),
            Route("/page.css", self.style),
            Route("/page.js", self.script),
        ]

    def render(self, tab: str, **values: Any) -> Response:
        text = self.template.render(tab=tab, sides=self.sides, reports=self.reports, **values)
        return HTMLResponse(text.encode("utf-8", "replace"))

    async def search(self, request: Request) -> Response:
        """Hits for ?q=, by one folder or two; without best passages where ?fast=1."""
        asked = request.query_params
        query, size = asked.get("q", "").strip(), number(asked, "n", SIZES[0], SIZES[-1])
        page = number(asked, "page", 1, MOST_HITS // size)
        names = [name for name in asked.getlist("side") if name in self.sides]
        chosen = list(dict.fromkeys(names or self.sides))[:2]
        values: dict[str, Any] = {
            "query": query,
            "size": size,
            "sizes": SIZES,
            "page": page,
            "chosen": chosen,
        }
        first = (page - 1) * size
        depth = max(first + size + 1, COMPARED)  # one more tells whether there is another page
        columns, problem = list[Column](), ""
        if len(query) > QUERY_CHARACTERS:
            problem = f"A query may have {QUERY_CHARACTERS:,} characters."
        elif query and chosen:
            columns = [await search_column(self.sides[name], query, depth) for name in chosen]
            for column, other in zip(columns, columns[::-1], strict=True):
                mark_moves(column, other)
        shown = [(column, column.hits[first : first + size]) for column in columns]
        if asked.get("fast") != "1":
            for column, hits in shown:
                await mark_passages(column.side.model, query, hits)
        values["has_more"] = any(len(c.hits) > first + size for c in columns) and (
            page < MOST_HITS // size
        )
        values |= {
            "sizes": SIZES,
            "problem": problem,
            "depth": depth,
            "page_link": link(asked),
            "parts": parts,
        }
        return self.render("search", columns=shown, **values)

    async def evaluation(self, request: Request) -> Response:
        return self.render("evaluation", depth=DEPTH)

    async def api(self, request: Request) -> Response:
        return self.render("api", description=DESCRIPTION, base=str(request.base_url))

    async def style(self, request: Request) -> Response:
        return Response(self.files["page.css"], media_type="text/css")

    async def script(self, request: Request) -> Response:
        return Response(self.files["page.js"], media_type="text/javascript")


def one_line(text: str) -> str:
    """A text that controls nothing: line breaks are spaces, the rest is escaped."""
    return escape(" ".join(text.split())) if text.strip() else text


def cut(text: str, most: int = TEXT_CHARACTERS) -> str:
    return text if len(text) <= most else text[:most] + "…"


def parts(hit: PageHit) -> tuple[str, str, str]:
    """What stands before the best passage, the passage, and what stands after it."""
    start, end = hit.best
    return hit.text[:start], hit.text[start:end], cut(hit.text[end:])


def number(asked: QueryParams, name: str, default: int, most: int) -> int:
    """A whole number of a query string from 1 to `most`; the default where it is none."""
    value = asked.get(name, "")
    return min(most, max(1, int(value))) if value.isdecimal() and len(value) < 9 else default


def link(asked: QueryParams) -> Any:
    """Makes the link to another page of the same results."""

    def to(page: int) -> str:
        kept = [(name, value) for name, value in asked.multi_items() if name in ("q", "n", "side")]
        return "/?" + str(QueryParams([*kept, ("page", str(page))]))

    return to
