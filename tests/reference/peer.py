"""What the scripts that run inside a peer environment share. Import it first: it keeps the model
hub out of the way."""

import hashlib
import json
import os
import platform
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

warnings.simplefilter("ignore", DeprecationWarning)  # the peers move their modules about

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))  # where tests/ lies

from tests.tiny import cpu_vendor

PAIRS, TEXTS = HERE / "pairs.json", HERE / "texts.json"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_pairs() -> list[tuple[str, str]]:
    return [(first, second) for first, second in json.loads(PAIRS.read_text("ascii"))]


def read_texts() -> list[str]:
    return [row["text"] for row in json.loads(TEXTS.read_text("ascii"))]


def peer_versions() -> dict[str, str]:
    """What could change a number, by name."""
    packages = ("sentence-transformers", "transformers", "tokenizers", "torch", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name).partition("+")[0] for name in packages},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_vendor": cpu_vendor(),
    }


def write_json(path: Path, content: Any) -> None:
    """JSON as compact as it stays readable: floats in full, so that each reads back as the same
    number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n", encoding="ascii"
    )


class Checks:
    """Prints one line a check, which interop.py gathers, and remembers whether one failed."""

    def __init__(self) -> None:
        self.failed = False

    def at_most(self, name: str, figure: float, limit: float) -> None:
        self.line(name, figure <= limit, f"{figure:.2g} (at most {limit:.2g})")  # a NaN fails

    def equal(self, name: str, ours: Any, theirs: Any) -> None:
        self.line(name, ours == theirs, "equal" if ours == theirs else "different")

    def line(self, name: str, good: bool, figure: str) -> None:
        self.failed |= not good
        print("ok" if good else "FAILED", name, " ".join(figure.split()), sep="\t", flush=True)

    def exit(self) -> None:
        raise SystemExit(1 if self.failed else 0)
