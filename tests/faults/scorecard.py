"""The scorecard: where it stands, what it was made on, and as a table for people."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

SCORECARD = Path(__file__).with_name("scorecard.json")


def machine() -> dict[str, Any]:
    """What it ran on."""
    packages = (
        "torch",
        "tokenizers",
        "safetensors",
        "numpy",
        "transformers",
        "pyarrow",
        "hypothesis",
    )
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def commit() -> str:
    """The commit that the files are of, and whether they differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    changed = " and changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "HEAD") or "unknown") + changed


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The scorecard for people, in Markdown."""
    lines = [
        "| fault | injected | survived | detected | silent | switched off -> caught |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in rows.items():
        caught = "; ".join(
            f"{m}: {c['caught']} of {c['injected']}" for m, c in result["mutations"].items()
        )
        silent = "SKIPPED" if result["skipped"] else f"**{result['silent']}**"
        counts = " | ".join(f"{result[kind]:,}" for kind in ("injected", "survived", "detected"))
        lines.append(f"| {name} | {counts} | {silent} | {caught} |")
    return "\n".join(lines)
