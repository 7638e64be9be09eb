"""The page of `serve` in a real browser: Chromium of the distribution, through playwright."""

from __future__ import annotations

import os
import random
import re
import shutil

import pytest

from minilm_retriever import Encoder
from minilm_retriever.search import find, open_index
from minilm_retriever.vectors.vector_folder import save_vectors
from tests.serving import running
from tests.tiny import make_tiny_bert

from minilm_retriever.serving.page import FOLDER, one_line  # isort: skip
from minilm_retriever.serving.searching import passages, project  # isort: skip

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
TEXTS = [
    f"Number {n} is a nurse who cares for {'teeth ' * (n % 4)} and for much else besides. Bread "
    f"number {240 - n} is baked here on every day of the week, and it is sold in the same street."
    for n in range(240)
]
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    '"><svg onload=window.hacked=1>',
    "javascript:window.hacked=1",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;&amp;&#x41;",
    "\u202etxet sdrawkcab\u202c",
    "\u2066isolated\u2069",
    "\x1b[31mred\x1b[0m",
    "a\x00b\x07c\x7f",
    "</p></li></ol></section><h1>out</h1>",
    "<!-- ",
    "]]>",
    "'; alert(1); '",
    "https://evil.example/x.png",
    "<link rel=stylesheet href=https://evil.example/a.css>",
    "\ud800 alone",
    "\u2028line\u2029",
    "<base href=https://evil.example/>",
    "\u05e9\u05dc\u05d5\u05dd e\u0301 \U0001f469\u200d\U0001f467",
    "<style>*{display:none}</style>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
]


MADE = ", ".join(f"main {name}" for name in ("script", "img", "style", "link", "h1", "base"))


def make_vectors(folder, model, texts, ids=None):
    encoder = Encoder.from_pretrained(model, device="cpu")
    ids = ids or [f"d{n}" for n in range(len(texts))]
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    save_vectors(folder, ids, texts, encoder.encode(clean), model=encoder.model.fingerprint())
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [
        str(make_tiny_bert(folder / name, seed=seed)) for name, seed in (("old", 0), ("new", 1))
    ]


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    made = [make_vectors(folder / f"by-{n}", model, TEXTS) for n, model in enumerate(models)]
    pairs = folder / "pairs.tsv"
    pairs.write_text("query\tanswer\n" + "".join(f"q {text}\t{text}\n" for text in TEXTS[:30]))
    settings = {"pairs": str(pairs), "columns": ("query", "answer")}
    with running(model=tuple(models), folders=tuple(made), **settings) as one:
        yield one


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra [dev])")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt install chromium")
    with driver.sync_playwright() as playwright:
        flags = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield one
        one.close()


@pytest.fixture()
def visit(browser, served):
    """Opens pages; in the end none may have complained, or asked another host."""
    complaints, contexts = [], []

    def open_page(address="/", server=served, **options):
        base = f"http://127.0.0.1:{server.port}"
        contexts.append(browser.new_context(base_url=base, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((base, "data:")) else
                complaints.append(r.url))  # fmt: skip
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def expected(served, models, query, column, k=10):
    index = open_index(
        next(iter(list(served.api.sides.values())[column : column + 1])).index.folder
    )
    vectors = Encoder.from_pretrained(models[column], device="cpu").encode([query])
    return find(index, vectors, k)[0]


def test_results_come_while_one_types(visit, served, models):
    page = visit()
    page.locator("#q").press_sequentially("nurse of bread")
    page.wait_for_selector("mark")
    for column in (0, 1):
        shown = page.locator(".column").nth(column).locator(".id").all_inner_texts()
        right = expected(served, models, "nurse of bread", column)
        assert shown == [hit.id for hit in right]
    assert page.url.endswith("/?q=nurse+of+bread&n=10")
    assert page.locator("#status").inner_text() == "Results 1 to 10"
    page.reload()
    assert page.locator(".hit").count() == 20


def test_without_javascript(visit, served, models):
    page = visit(java_script_enabled=False)
    page.fill("#q", "nurse")
    page.click("button")
    right = expected(served, models, "nurse", 0, 20)
    assert page.locator(".column >> nth=0 >> .id").all_inner_texts() == [h.id for h in right[:10]]
    page.click("text=Next")
    assert page.locator(".column >> nth=0 >> .id").all_inner_texts() == [h.id for h in right[10:]]
    assert page.locator(".script").first.is_hidden()


def test_what_moved_between_two_models_is_marked(visit, served, models):
    page = visit("/?q=teeth+of+a+nurse&n=50")
    old, new = (expected(served, models, "teeth of a nurse", column, 100) for column in (0, 1))
    before = {hit.id: rank for rank, hit in enumerate(old, 1)}
    moves = page.locator(".column >> nth=1 >> .moves").all_inner_texts()
    assert len(moves) == 50
    for rank, (hit, shown) in enumerate(zip(new, moves, strict=False), 1):
        words = shown.split()
        if hit.id not in before:
            assert words == ["new", "was", "beyond", "100"]
            continue
        was = before[hit.id]
        sign = "=" if was == rank else "▲" if was > rank else "▼"
        assert sign in shown and words[-2:] == ["was", str(was)]
        assert was == rank or str(abs(was - rank)) in words
    assert {word for shown in moves for word in shown if word in "▲▼"} == set("▲▼")


def test_everything_by_keyboard(visit):
    page = visit()
    page.keyboard.type("nurse")  # the field has the focus
    page.wait_for_selector("mark")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.id") == "hit-0-2"
    page.keyboard.press("n")
    page.wait_for_selector("#hit-0-11:focus")
    page.keyboard.press("p")
    page.wait_for_selector("#hit-0-1:focus")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("teeth")
    page.wait_for_url("**/?q=teeth&n=10")
    page.locator("svg a").first.focus()
    assert page.locator("[data-caption]").first.inner_text().split(".")[0].isdigit()


def test_a_thousand_hostile_texts_are_shown_as_text(visit, models, tmp_path):
    rng = random.Random(3)
    texts = [" ".join(rng.choices(HOSTILE, k=rng.randint(1, 4))) + f" {n}" for n in range(1000)]
    folder = make_vectors(tmp_path / "hostile", models[0], texts, [f"<b>{t[:40]}" for t in texts])
    with running(model=(models[0],), folders=(folder,)) as hostile:
        seen, page = [], visit("/", hostile)
        for number in range(1, 11):
            page.goto(f"/?q=<script>hacked%3D1</script>&n=100&page={number}")
            seen += page.locator(".hit > p").all_text_contents()
            assert page.locator(".hit").count() == 100
            assert page.evaluate("window.hacked") is None
            assert (
                page.locator("main script, main img, main style, main link, main h1").count() == 0
            )
        assert page.input_value("#q") == "<script>hacked=1</script>"
    assert sorted(seen, key=number_at_end) == [one_line(text) for text in texts]
    assert not re.search(r"[\x00-\x1f\x7f\u202a-\u202e\u2066-\u2069]", "".join(seen))


def number_at_end(text):
    return int(text.rsplit(" ", 1)[1])


def test_the_worst_queries(visit):
    page = visit("/evaluation")
    for column in (0, 1):
        facts = page.locator(".column").nth(column).locator(".facts .down").all_inner_texts()
        ranks = [int(text.split()[-1]) for text in facts]
        assert ranks == sorted(ranks, reverse=True) and len(ranks) == 30
        first = page.locator(".column").nth(column).locator(".hit").first
        assert first.locator(".wrong").count() == min(3, ranks[0] - 1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_those_who_do_not_see_well(visit, scheme):
    page = visit("/?q=nurse", viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    unnamed = """() => [...document.querySelectorAll("input, select, button, a, svg, nav, section")]
        .filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length
                       || e.getAttribute("aria-labelledby"))).map(e => e.outerHTML)"""
    assert page.evaluate(unnamed) == []
    assert page.locator("html[lang]").count() == page.locator("main").count() == 1
    for address in ("/?q=nurse", "/evaluation", "/api"):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    css = (FOLDER / "page.css").read_text("utf-8")
    colours = dict(re.findall(r"--(\w+): (#\w+)", css.split("@media")[scheme == "dark"]))
    for ink in ("ink", "soft", "up", "down", "accent"):
        for paper in ("paper", "card"):
            assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    assert contrast(colours["ink"], colours["mark"]) >= 4.5


def contrast(a, b):
    """WCAG 2's contrast ratio of two colours."""

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


# --- without a browser ----------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["?q=", "?q=a&n=x&page=0", "?q=a&page=99999999999", "?q=a&n=-1",
                                   "?q=%ff%00", "?q=a&side=../x&side=by-1", "?q=" + "a" * 2001,
                                   "?" + "q=a&" * 999])  # fmt: skip
def test_any_query_string_is_a_page(served, query):
    answer = served.get("/" + query)
    assert answer.status == 200 and b"</html>" in answer.body
    assert b"style=" not in answer.body and b"onclick" not in answer.body


def test_a_cut_query_says_so(served):
    assert b"(cut: the model reads no more)" in served.get("/?q=" + "bread+" * 300).body
    assert b"(cut" not in served.get("/?q=bread").body


def test_a_server_without_folders_says_what_to_do(models):
    with running(model=(models[0],)) as one:
        assert b"serve vectors/" in one.get("/").body
        assert one.get("/?q=a").status == 200


def test_passages_are_the_whole_text_in_pieces():
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choices(["word ", "w", ". ", ", ", "\n", "; and more ", "x" * 70], k=40))
        spans = passages(text)
        assert "".join(text[a:b] for a, b in spans) == text and len(spans) <= 25
        assert all(b - a >= 40 for a, b in spans) or len(spans) == 1


def test_the_picture_keeps_distances_of_what_lies_in_a_plane():
    import numpy as np

    rng = np.random.default_rng(0)
    plane = rng.standard_normal((9, 2)).astype(np.float32) @ np.linalg.qr(
        rng.standard_normal((16, 2))
    )[0].T.astype(np.float32)
    flat = np.array(project(plane[:1], plane[1:]))
    there, here = (np.linalg.norm(x[:, None] - x[None], axis=2) for x in (plane, flat))
    np.testing.assert_allclose(here / here.max(), there / there.max(), atol=1e-5)
    assert np.abs(flat).max() == pytest.approx(1) and (flat[0] >= 0).all()
    assert project(plane[:1], plane[:0]) == [(0.0, 0.0)]
