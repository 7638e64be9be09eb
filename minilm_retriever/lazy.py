"""Public names that import their module on first use: torch takes seconds, --help should not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's __getattr__ and __dir__ (PEP 562); modules: where each name is defined."""

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    def names() -> list[str]:
        own = vars(sys.modules[package])
        return sorted({name for name in own if name.startswith("__")} | {*own["__all__"], *modules})

    return get, names
