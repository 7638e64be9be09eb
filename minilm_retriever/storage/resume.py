"""Resuming an unfinished run: it must have been started with the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError


def refuse_other_run(recorded: Mapping[str, Any], asked: Mapping[str, Any], where: Path) -> None:
    """UserError naming the first difference between what an unfinished run was started with and
    what is asked now."""
    for name in [*asked, *recorded]:
        if recorded.get(name) != asked.get(name):
            raise UserError(
                f"{where}: the unfinished run there was started with {name} {recorded.get(name)!r}, now it is "
                f"{asked.get(name)!r}; give that again, choose another --out, or start anew with --overwrite"
            )
