"""The structure, held: imports point downward, one writer of files, one door to the network, no pickle, no eval."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "minilm_retriever"
# From the bottom up. A module imports from groups below its own, or from its own group without a cycle.
GROUPS = {
    "ground": "errors memory files folders manifest config record progress distributed",
    "machinery": "rows lines data survey metrics repeats apart batching tokenization layout kernels model loss "
    "objective caching weights model_folder prompts encoding quantization shards vector_cache unfinished vectors "
    "search indexes approximate index_folder trec charts card_texts checkpoint run_log tasks ranking bm25 scoreboard "
    "tables",
    "what people import": "encoder",
    "jobs": "evaluation held_out model_card report publishing trainer training shard_encoder bulk ray_engine "
    "inspection mining paraphrases searching",
    "commands": "__main__ __init__",
}
LEVEL = {name: level for level, names in enumerate(GROUPS.values()) for name in names.split()}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{name}.py").read_text("utf-8"))


@cache
def imported(name: str) -> set[str]:
    """Our modules that a module imports, wherever in it, but for type checking alone."""
    found = set()
    skipped = {
        id(node)
        for test in ast.walk(tree(name))
        if isinstance(test, ast.If) and getattr(test.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    for node in ast.walk(tree(name)):
        if id(node) in skipped or not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.module == "minilm_retriever":
            found |= {alias.name for alias in node.names} - {"__version__"}
        elif node.module.startswith("minilm_retriever."):
            found.add(node.module.split(".")[1])
    return found


@cache
def packages(name: str) -> set[str]:
    """The other packages that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_its_place():
    assert set(MODULES) == set(LEVEL)


@pytest.mark.parametrize("name", [m for m in MODULES if m != "__init__"])
def test_imports_point_downward(name):
    upward = {other for other in imported(name) if LEVEL.get(other, 9) > LEVEL[name]}
    assert not upward


def test_no_cycles_inside_a_group():
    below: dict[str, set[str]] = {name: imported(name) - {"__init__"} for name in MODULES if name != "__init__"}
    while below:
        free = [name for name, needs in below.items() if not needs & below.keys()]
        assert free, f"a cycle among {sorted(below)}"
        for name in free:
            del below[name]


def only(package: str) -> set[str]:
    return {name for name in MODULES if any(p == package or p.startswith(f"{package}.") for p in packages(name))}


def test_one_door_to_each_thing():
    assert only("huggingface_hub") == {"weights"}
    assert only("transformers") <= {"weights"}
    assert not only("requests") | only("urllib") | only("http")
    assert only("socket") == {"ray_engine"}  # whether a cluster answers
    assert only("torch.distributed") == {"distributed"}
    assert only("ray") == {"ray_engine"}
    assert only("bm25s") == {"bm25"}
    assert not only("sentence_transformers") | only("sklearn")


@pytest.mark.parametrize(
    "name",
    ["manifest", "files", "folders", "config", "errors", "rows", "lines", "data", "metrics", "tasks", "scoreboard"],
)
def test_what_needs_no_torch_imports_none(name):
    assert "torch" not in packages(name)


@pytest.mark.parametrize("name", MODULES)
def test_nothing_that_runs_what_it_reads(name):
    assert not packages(name) & {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call):
            function = node.func
            called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            owner = getattr(getattr(function, "value", None), "id", "")
            assert getattr(function, "id", "") not in {"eval", "exec"}, f"{called} at line {node.lineno}"
            assert not (owner == "torch" and called in {"load", "save"}), f"torch.{called} at line {node.lineno}"
            for keyword in node.keywords:
                allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                assert keyword.arg not in {"allow_pickle", "trust_remote_code"} or allowed


def writes(node: ast.Call) -> bool:
    """Whether a call opens a file for writing or writes one."""
    function = node.func
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if called in {
        "write_text",
        "write_bytes",
        "touch",
        "mkdir",
        "rmtree",
        "unlink",
        "rename",
        "replace",
        "save",
        "savez",
    }:
        owner = getattr(getattr(function, "value", None), "id", "")
        return owner not in {"files", "_os", "np", "dataclasses"} and called not in {"replace", "save"}
    if called == "open":
        modes = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
        return any(
            isinstance(mode, str) and mode and set(mode) <= set("rwxabt+") and set(mode) & set("wxa+") for mode in modes
        )
    return False


# Each writes only into a folder or beside a path that files.py or folders.py made and will publish.
STAGED = {"weights", "model_folder"}


@pytest.mark.parametrize("name", [m for m in MODULES if m not in {"files", "folders", *STAGED}])
def test_files_are_written_by_files_alone(name):
    found = [node.lineno for node in ast.walk(tree(name)) if isinstance(node, ast.Call) and writes(node)]
    assert not found, f"{name}.py writes at lines {found}"


def test_top_level_scripts_are_thin():
    for script in ("train.py", "encode.py"):
        assert len((ROOT / script).read_text("utf-8").splitlines()) < 20


def test_no_file_is_two_ideas():
    sizes = {path.name: len(path.read_text("utf-8").splitlines()) for path in Path(PACKAGE).glob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 420} == {}
