"""The page: search and compare, the worst queries, the API's description.

All of it is made here, by page.html; page.js only fetches it again while somebody types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from minilm_retriever.progress import escape
from minilm_retriever.serving.models import Side
from minilm_retriever.serving.searching import mark_passages, search_columns
from minilm_retriever.serving.worst_queries import Evaluation

QUERY_CHARACTERS = 2000
SIZES = (10, 20, 50, 100)  # hits on a page
MOST_HITS = 1000  # on all pages
COMPARED = 100  # hits in which a hit of the other model is looked for
TEXT_CHARACTERS = 2000  # that are shown of a text
FOLDER = Path(__file__).parent


class Page:
    """The routes that people open."""

    def __init__(
        self,
        sides: Mapping[str, Side],
        evaluation: Evaluation | None,
        description: Mapping[str, Any],
    ) -> None:
        self.sides = sides
        environment = Environment(
            loader=FileSystemLoader(FOLDER),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=lambda value: one_line(value) if type(value) is str else value,
        )
        environment.filters["cut"] = cut
        values = {"sides": sides, "evaluation": evaluation, "description": description}
        self.template = environment.get_template("page.html", globals=values)

    def routes(self) -> list[Route]:
        files = {"page.css": "text/css", "page.js": "text/javascript"}
        contents = {name: Response(FOLDER.joinpath(name).read_bytes(), media_type=kind)
                    for name, kind in files.items()}  # fmt: skip
        return [
            Route("/", self.search),
            Route("/evaluation", self.evaluation),
            Route("/api", self.api),
            *(Route(f"/{name}", content, methods=["GET"]) for name, content in contents.items()),
        ]

    def render(self, tab: str, **values: Any) -> Response:
        return HTMLResponse(self.template.render(tab=tab, **values).encode("utf-8", "replace"))

    async def search(self, request: Request) -> Response:
        """Hits for ?q=, by one folder or two; without best passages where ?fast=1."""
        query = request.query_params.get("q", "").strip()
        names = [name for name in request.query_params.getlist("side") if name in self.sides]
        chosen = list(dict.fromkeys(names or self.sides))[:2]
        size = number(request, "n", SIZES[0], SIZES[-1])
        last = MOST_HITS // size
        page = number(request, "page", 1, last)
        shown = slice((page - 1) * size, page * size)
        depth = max(shown.stop + 1, COMPARED)  # one more tells whether there is another page
        is_long = len(query) > QUERY_CHARACTERS
        sides = [self.sides[name] for name in chosen if query and not is_long]
        columns = await search_columns(sides, query, depth)
        if request.query_params.get("fast") != "1":
            for column in columns:
                await mark_passages(column.side.model, query, column.hits[shown])
        return self.render(
            "search",
            query=query,
            chosen=chosen,
            size=size,
            sizes=SIZES,
            page=page,
            has_more=page < last and any(len(c.hits) > shown.stop for c in columns),
            problem=f"A query may have {QUERY_CHARACTERS:,} characters." if is_long else "",
            columns=columns,
            shown=shown,
            depth=depth,
            kept=[(k, v) for k, v in request.query_params.multi_items() if k in ("q", "n", "side")],
        )

    async def evaluation(self, request: Request) -> Response:
        return self.render("evaluation")

    async def api(self, request: Request) -> Response:
        return self.render("api", base=str(request.base_url))


def one_line(text: str) -> str:
    """A text that controls nothing: line breaks are spaces, the rest is escaped."""
    return escape(" ".join(text.split())) if text.strip() else text


def cut(text: str, most: int = TEXT_CHARACTERS) -> str:
    return text if len(text) <= most else text[:most] + "…"


def number(request: Request, name: str, default: int, most: int) -> int:
    """A whole number of the query string from 1 to `most`; the default where it is none."""
    value = request.query_params.get(name, "")
    return min(most, max(1, int(value))) if value.isdecimal() and len(value) < 9 else default
