"""The structure, held: imports point one way, one writer of files, one door to the network, no
pickle, no eval. `python -m tests.test_layout` prints the figures of the imports."""

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


# What a person runs: the package, the scripts, the examples, the benchmarks.
SHIPPED = [*PACKAGE.rglob("*.py"), ROOT / "train.py", ROOT / "encode.py"]
SHIPPED += [*(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
PICKLES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "cloudpickle",
    "pandas",
}


def runs_what_it_reads(source: ast.AST, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Each place where code could come out of data: pickles, torch.load, eval and exec, code of a
    model folder."""
    found, parameters = [], set()
    for node in ast.walk(source):
        if isinstance(node, ast.FunctionDef):  # a parameter is no builtin of its name
            own = {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
            names = (inner for inner in ast.walk(node) if isinstance(inner, ast.Name))
            parameters |= {inner for inner in names if inner.id in own}
    for node in ast.walk(source):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [
                f"imports {name}" for name in names if name.split(".")[0] in PICKLES - allowed
            ]
            if (
                isinstance(node, ast.ImportFrom)
                and node.module == "torch"
                and {"load", "save"} & set(names)
            ):
                found.append("torch.load by another name")
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "torch":
            found += [f"torch.{node.attr}"] if node.attr in ("load", "save") else []
        elif (
            isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Load)
            and node.id in ("eval", "exec", "__import__")
            and node not in parameters
        ):
            found.append(node.id)
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            refused = isinstance(node.value, ast.Constant) and node.value.value is False
            found += [] if refused else [f"{node.arg} that is not False"]
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_runs_what_it_reads(path):
    source = path.read_text("utf-8")
    reads_tables = path.parent.name == "clients" and "pickle" not in source
    allowed = frozenset({"pandas"} if reads_tables else ())
    assert runs_what_it_reads(ast.parse(source), allowed) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads as read",
        "import joblib as j",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "read = torch.load",
        "from torch import load",
        "eval(text)",
        "run = exec",
        "def run(code):\n    return eval(code)",
        "def run(*, eval):\n    return eval\nrun(eval=eval)",
        "builtin = __import__",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=yes)",
        "A.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_ban_on_running_what_is_read_sees(code):
    assert runs_what_it_reads(ast.parse(code))
    assert not runs_what_it_reads(
        ast.parse("np.load(path, allow_pickle=False)\nmodel.eval()\nself.load(path)")
    )


WRITERS = set(
    "write_text write_bytes touch mkdir makedirs rmdir rmtree unlink rename symlink_to".split()
)
WRITERS |= set("hardlink_to copyfile copytree tofile savez savez_compressed savetxt".split())
SAVERS = (
    "save",
    "dump",
    "save_file",
    "memmap",
    "NamedTemporaryFile",
    "fdopen",
)  # of numpy, json, safetensors, ...
HARMLESS = {
    "atomic_files",
    "atomic_folders",
    "dict",
    "self",
}  # owners whose functions of these names are ours, or no files


def writes(node: ast.Call) -> bool:
    """Whether a call opens a file for writing, or writes, moves or removes one."""
    function = node.func
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = getattr(getattr(function, "value", None), "id", "")
    words = [
        a.value
        for a in [*node.args, *(k.value for k in node.keywords)]
        if isinstance(a, ast.Constant)
    ]
    modes = [
        word for word in words if isinstance(word, str) and word and set(word) <= set("rwxabt+")
    ]
    if called in WRITERS:
        return owner not in HARMLESS
    if called in ("copy", "copy2", "move", "remove", "truncate"):
        return owner in ("shutil", "os")
    if called in SAVERS and called != "memmap":
        if node.args and getattr(node.args[0], "id", "") == "stream":  # in memory
            return False
        return (
            owner in ("np", "numpy", "json", "torch", "safetensors", "os", "tempfile")
            or called == "save_file"
        )
    if called == "memmap":
        return "r" not in modes and "c" not in words
    if called == "open" and owner == "os":
        return True
    return called == "open" and any(set(mode) & set("wxa+") for mode in modes)


# Each writes only into a folder, or beside a path, that storage made and will publish.
STAGED = {"pretrained/hub", "pretrained/model_folder", "storage/tensors", "training/checkpoint"}
USED = [
    PATHS[m] for m in PATHS if m not in {"storage/atomic_files", "storage/atomic_folders", *STAGED}
]
USED += [ROOT / "train.py", ROOT / "encode.py", *(ROOT / "examples").rglob("*.py")]


def test_json_that_leaves_the_process_has_no_nan():
    """Which is not JSON: either it is null (progress.json_text, json_line), or cannot be."""
    for name in MODULES:
        for node in ast.walk(tree(name)):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("json.dumps", "json.dump") and name != "distributed":
                assert "allow_nan=False" in ast.unparse(node), f"{name}:{node.lineno}"


@pytest.mark.parametrize("path", USED, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_written_by_storage_alone(path):
    source = ast.parse(path.read_text("utf-8"))
    found = [
        node.lineno for node in ast.walk(source) if isinstance(node, ast.Call) and writes(node)
    ]
    assert not found, f"{path.name} writes at lines {found}"


@pytest.mark.parametrize(
    "code",
    [
        'open(path, "w")',
        'open(path, mode="ab")',
        'Path(path).open("r+b")',
        "path.write_text(words)",
        "path.unlink()",
        "shutil.rmtree(folder)",
        "shutil.copyfile(a, b)",
        "os.rename(a, b)",
        "os.open(path, os.O_WRONLY)",
        "np.save(path, array)",
        "array.tofile(path)",
        "json.dump(value, file)",
        "safetensors.torch.save_file(tensors, path)",
        'np.memmap(path, mode="w+")',
        "tempfile.NamedTemporaryFile()",
    ],
)
def test_the_ban_on_writing_sees(code):
    (call,) = [
        node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and writes(node)
    ]
    assert call


def test_the_ban_on_writing_lets_reading_pass():
    reading = 'open(path)\nopen(path, "rb")\npath.open("rb")\natomic_files.write_text(p, t)\n'
    reading += 'np.memmap(p, mode="r")\nd.copy()'
    assert not [
        node for node in ast.walk(ast.parse(reading)) if isinstance(node, ast.Call) and writes(node)
    ]


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
