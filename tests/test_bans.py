"""What no code of ours does: run what it reads, write files past `storage/`, print a NaN as JSON,
and (in tests) take an input that differs from run to run."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import ROOT
from tests.test_layout import MODULES, PACKAGE, PATHS, tree

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


TESTS = sorted((ROOT / "tests").rglob("*.py"))


def test_packed_inputs_are_the_same_in_every_run():
    """gzip writes the time of day into its header unless it is given one: then a fault cannot be
    drawn again, and a test's name differs between the processes of one run."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("gzip.compress", "gzip.open", "gzip.GzipFile")
        and "mtime" not in {keyword.arg for keyword in node.keywords}
    ]
    assert found == []
