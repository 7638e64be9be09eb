"""Windows, as far as it can be simulated here: the modules and calls that it lacks are hidden from
the package once the others are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

HIDE = """
import builtins, importlib, os, pkgutil, signal, sys
import faiss, filelock, huggingface_hub, jinja2, numpy, safetensors.torch, tokenizers, torch, tqdm
import uvicorn
kept = builtins.__import__
MISSING = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
def hidden(name, globals=None, *rest):
    if name in MISSING and str((globals or {}).get("__name__")).startswith("minilm_retriever"):
        raise ModuleNotFoundError(f"No module named {name!r}")
    return kept(name, globals, *rest)
builtins.__import__ = hidden
for name in ("fork getuid geteuid getpgid killpg setsid sysconf getloadavg register_at_fork"
             " O_NOFOLLOW O_DIRECTORY O_CLOEXEC mkfifo sched_getaffinity").split():
    delattr(os, name)
for name in ("SIGPIPE", "SIGKILL", "SIGUSR1", "SIGHUP", "SIGALRM"):
    delattr(signal, name)
"""
IMPORT_ALL = """
import minilm_retriever
for module in pkgutil.walk_packages(minilm_retriever.__path__, "minilm_retriever."):
    if "ray" not in module.name:
        importlib.import_module(module.name)
"""
USE = """
from minilm_retriever import Encoder, UserError
from minilm_retriever.__main__ import main
encoder = Encoder.from_pretrained({model!r})
print(encoder.encode(["He bakes bread."]).shape)
print(main(["inspect", {pairs!r}, "--model", {model!r}]))
for call in (
    lambda: encoder.save({out!r}),
    lambda: main(["encode", {pairs!r}, "--text", "skills", "--model", {model!r}, "--out", {out!r}]),
    lambda: main(["train", "--train", {pairs!r}, "--model", {model!r}, "--out", {out!r}]),
    lambda: main(["export", {model!r}, "--onnx", {out!r}]),
    lambda: main(["index", {vectors!r}, "--out", {out!r}]),
    lambda: main(["serve", "--model", {model!r}]),
):
    try:
        print("status", call(), flush=True)
    except UserError as error:
        print("status", error, flush=True)
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["USERNAME"] = "user"  # as on Windows, where os has no getuid
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


def test_it_imports_and_encodes_and_says_what_it_cannot(tiny, tiny_folder, tmp_path):
    for package in ("faiss", "uvicorn"):
        pytest.importorskip(package)
    from minilm_retriever.encoding.config import EncodeConfig
    from minilm_retriever.encoding.encode_files import encode_files

    pairs = str(ROOT / "examples/job_skills/unseen_occupations.csv")
    vectors = str(tmp_path / "vectors")
    encode_files(EncodeConfig((pairs,), text="skills", model=str(tiny_folder), out=vectors))
    places = {"model": str(tiny_folder), "pairs": pairs, "vectors": vectors}
    done = python(HIDE + IMPORT_ALL + USE.format(**places, out=str(tmp_path / "out")))
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0] == "(1, 32)", done.stderr
    needs = "needs Linux, macOS or WSL"
    statuses = [line for line in lines if line.startswith("status")]
    assert needs in statuses[0] and statuses[1:] == ["status 2"] * 5
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 5 and all(needs in line for line in errors), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
