"""Who takes part in the benchmark, each in a process of its own: the peers' environment, and what
all ran on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HERE, PEERS, ONNX = ROOT / "benchmarks", ROOT / ".peers" / "bench", ROOT / ".peers" / "onnx"
PEER = PEERS / "bin" / "python"
# sentence-transformers' other backends: what each needs fits neither peers.txt nor the other.
BACKENDS = {
    f"sentence-transformers {name}": ROOT / ".peers" / f"st-{name}" for name in ("onnx", "openvino")
}
MODEL = ROOT / "checkpoints" / "all-MiniLM-L6-v2"


class Worker:
    """A running worker.py."""

    def __init__(
        self, name: str, kind: str, checkout: str, settings: dict[str, Any], log: Path
    ) -> None:
        self.name, self.log = name, log
        self.process = subprocess.Popen(
            # A checkout's own worker knows its own modules.
            [python_of(kind), f"{checkout}/benchmarks/worker.py", kind, json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=log.open("w", encoding="utf-8"), env=environment(checkout),
        )  # fmt: skip

    def ask(self, **command: Any) -> dict[str, Any]:
        """One command, one answer."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early:\n{self.log.read_text('utf-8')[-2000:]}")
        return dict(json.loads(line))

    def stop(self) -> None:
        """No more commands: it ends."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def python_of(kind: str) -> str:
    if kind.startswith("ours") or kind == "import torch":
        return sys.executable
    return str(BACKENDS[kind] / "bin" / "python") if kind in BACKENDS else str(PEER)


def environment(checkout: str = str(ROOT)) -> dict[str, str]:
    """Offline, quiet, and with this checkout's package before any installed one."""
    return {
        **os.environ,
        "PYTHONPATH": checkout,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }


def machine() -> dict[str, Any]:
    """What it ran on."""
    import torch

    info = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = next(
        (line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")),
        "",
    )
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.platform(),
        "load_average": os.getloadavg(),
    }


def versions(python: str) -> dict[str, str]:
    names = (
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
        "sentence-transformers",
        "onnxruntime",
        "fastembed",
        "optimum-onnx",
        "optimum-intel",
        "openvino",
    )
    code = f"""
import importlib.metadata as m, json, platform
have = {{d.metadata["Name"].lower() for d in m.distributions()}}
versions = {{name: m.version(name) for name in {names} if name in have}}
print(json.dumps({{"python": platform.python_version(), **versions}}))"""
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    return dict(json.loads(found))


def make_environment(folder: Path, requirements: str, without: str = "") -> None:
    """An environment of these requirements, once, and without a package that they bring."""
    stamp, file = folder / ".installed", folder / "requirements.txt"
    if stamp.exists() and stamp.read_text("utf-8") == requirements:
        return
    print(f"making {folder.relative_to(ROOT)} (a minute or two) ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    file.write_text(requirements, encoding="utf-8")
    flags = os.environ.get("PIP_FLAGS", "").split()
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *flags]
    subprocess.run([*pip, "-r", str(file)], check=True)
    if without:
        subprocess.run([*pip[:3], "uninstall", "-q", "-y", without], check=True)
    stamp.write_text(requirements, encoding="utf-8")


def make_peers() -> None:
    """The peers' environment and the exported model, once."""
    make_environment(PEERS, (HERE / "peers.txt").read_text("utf-8"))
    if not (ONNX / "model_int8.onnx").exists() or not (ONNX / "tokenizer_config.json").exists():
        command = [str(PEER), str(HERE / "export_onnx.py"), str(MODEL), str(ONNX)]
        subprocess.run(
            command,
            check=True,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@cache
def more_peers() -> list[str]:
    """Contestants that are not float32 or not plain torch, as far as they can be had here."""
    names = ["onnxruntime int8"]
    for name, folder in BACKENDS.items():
        backend = name.split()[1]
        try:
            wanted = f"torch==2.13.0\nsentence-transformers[{backend}]==6.2.0\n"
            make_environment(folder, wanted, without="torchvision")  # of another build than torch
        except subprocess.CalledProcessError:
            print(f"{name} does not install here", flush=True)
            continue
        module = {"onnx": "optimum.onnxruntime", "openvino": "optimum.intel"}[backend]
        code = f"import sentence_transformers, {module}"
        if subprocess.run(
            [python_of(name), "-c", code], check=False, capture_output=True
        ).returncode:
            print(f"{name} does not import here", flush=True)
            continue
        names.append(name)
    return names
