"""The structure, held: imports point one way, one door to the network, files of one idea.
`python -m tests.test_layout` prints the figures of the imports."""

from __future__ import annotations

import ast
import tomllib
from functools import cache

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "minilm_retriever"
# Each room may import rooms further down this list, and its own files.
ORDER = [
    "__init__ __main__",
    "functions training serving exporting",
    "curation evaluation",
    "encoding search",
    "encoder",
    "pretrained",
    "core data vectors completion keywords",
    "storage reports distributed flags formats",
    "kernels launcher",
    "display in_memory",
    "errors lazy types",
    "progress",
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms.split()}
ONLY = {  # tighter than the order
    "core": {"kernels", "distributed", "errors"},
    "kernels": set(),
}
IMPORTERS = {  # who may import a room
    "reports": {"training", "evaluation"},
    "training": {"__init__", "__main__"},
    "serving": {"__main__"},
    "exporting": {"__main__"},
}
PATHS = {
    path.relative_to(PACKAGE).with_suffix("").as_posix(): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = [name for name in PATHS if not name.endswith("/__init__")]


def room_of(name: str) -> str:
    return name.split("/")[0]


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(PATHS[name].read_text("utf-8"))


@cache
def imported(name: str) -> set[str]:
    """Our modules that a module imports, or names for a lazy import, wherever in it, but for type
    checking alone."""
    found = set()
    skipped = {
        id(node)
        for test in ast.walk(tree(name))
        if isinstance(test, ast.If) and getattr(test.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Constant) and str(node.value).startswith("minilm_retriever."):
            lazy = "/".join(str(node.value).split(".")[1:])
            found |= {lazy} & PATHS.keys()
        if id(node) in skipped or not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.module.split(".")[0] != "minilm_retriever":
            continue
        inside = "/".join(node.module.split(".")[1:])
        for alias in node.names:
            whole = f"{inside}/{alias.name}".strip("/")
            found.add(whole if whole in PATHS else inside or "__init__")
    return found


@cache
def packages(name: str) -> set[str]:
    """The other packages that a module imports or requires, wherever in it."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
            found.add(ast.literal_eval(node.args[0]))
    return found


def arrows() -> set[tuple[str, str]]:
    return {
        (room_of(a), room_of(b)) for a in PATHS for b in imported(a) if room_of(a) != room_of(b)
    }


def figures() -> str:
    """How many rooms and arrows there are, and how many of them point back."""
    back = [(a, b) for a, b in arrows() if b != "__init__" and LEVEL[b] <= LEVEL[a]]
    return f"{len(LEVEL)} rooms, {len(arrows())} arrows, {len(back)} of them pointing back: {back}"


def test_every_room_has_its_place():
    assert {room_of(name) for name in PATHS} == set(LEVEL)


@pytest.mark.parametrize("room", sorted(LEVEL))
def test_imports_point_one_way(room):
    targets = {b for a, b in arrows() if a == room} - {"__init__"}
    assert {other for other in targets if LEVEL[other] <= LEVEL[room]} == set()
    assert targets <= ONLY.get(room, targets)
    assert {a for a, b in arrows() if b == room} <= IMPORTERS.get(room, set(LEVEL))


def test_no_circles_among_files():
    below = {name: imported(name) - {"__init__"} for name in MODULES if name != "__init__"}
    while below:
        free = [name for name, needs in below.items() if not needs & below.keys()]
        assert free, f"a circle among {sorted(below)}"
        for name in free:
            del below[name]


def test_the_built_package_holds_every_room():
    from setuptools import find_packages

    found = set(find_packages(str(ROOT), include=["minilm_retriever*"]))
    rooms = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in PACKAGE.rglob("*.py")
    }
    assert found == rooms
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["minilm_retriever"]
    others = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.*") if path.suffix != ".py"]
    others = [path for path in others if path.suffix != ".pyc"]
    assert len(others) >= 4 and all(any(map(path.match, patterns)) for path in others)


def only(package: str) -> set[str]:
    return {
        name
        for name in PATHS
        if any(p == package or p.startswith(f"{package}.") for p in packages(name))
    }


def test_one_door_to_each_thing():
    assert only("huggingface_hub") == {"pretrained/hub", "reports/model_card"}
    assert {
        name for name in packages("reports/model_card") if name.startswith("huggingface_hub.")
    } == {f"huggingface_hub.{name}" for name in ("EvalResult", "ModelCard", "ModelCardData")}
    assert only("jinja2") == {"reports/html_report", "serving/page"}
    assert not only("requests") | only("urllib") | only("http")
    assert only("socket") == {"encoding/ray_engine", "launcher", "serving/server"}
    serving = {name for name in PATHS if name.startswith("serving/")}
    assert only("starlette") | only("uvicorn") | only("orjson") <= serving | {"__main__"}
    assert only("onnxruntime") | only("onnxscript") | only("onnx") <= {
        f"exporting/{name}" for name in ("export", "compare", "onnx_graph")
    }
    assert only("torch.distributed") == {"distributed"}
    assert only("ray") == {"encoding/ray_engine"}
    assert only("bm25s") == {"evaluation/bm25"}
    assert only("scipy") == {"evaluation/bootstrap"}
    assert only("transformers") == {"pretrained/load_weights"}
    assert not only("sentence_transformers") | only("sklearn")


@pytest.mark.parametrize(
    "name",
    [
        "storage/manifest",
        "storage/atomic_files",
        "storage/atomic_folders",
        "storage/resume",
        "flags",
        "errors",
        "progress",
        *(name for name in PATHS if name.endswith("/config")),
        "formats/readers",
        "formats/lines",
        "data/pairs",
        "data/texts",
        "formats/rows",
        "data/columns",
        "formats/parquet",
        "evaluation/metrics",
        "evaluation/tasks",
        "evaluation/comparison_table",
    ],
)
def test_what_needs_no_torch_imports_none(name):
    assert "torch" not in packages(name)


def test_the_core_is_read_in_one_sitting():
    core = [name for name in PATHS if room_of(name) == "core"]
    assert sum(len(PATHS[name].read_text("utf-8").splitlines()) for name in core) <= 500
    outside = {package.split(".")[0] for name in core for package in packages(name)}
    standard = {"__future__", "collections", "dataclasses", "time", "typing"}
    assert outside - {"minilm_retriever"} <= standard | {"torch"}


def test_top_level_scripts_are_thin():
    for script in ("train.py", "encode.py"):
        assert len((ROOT / script).read_text("utf-8").splitlines()) < 20


def test_no_file_is_two_ideas():
    sizes = {name: len(path.read_text("utf-8").splitlines()) for name, path in PATHS.items()}
    assert {name: size for name, size in sizes.items() if size > 420} == {}


if __name__ == "__main__":
    print(figures())
