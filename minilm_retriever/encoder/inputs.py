"""What people pass to an Encoder: texts in whatever holds them, and options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, Literal, TypedDict

import torch

from minilm_retriever.errors import UserError

Texts = str | Iterable[str]  # a list, a generator, an array of str, a pandas Series, ...
Device = str | torch.device | None


class Options(TypedDict, total=False):
    """Of `Encoder.encode`, for vectors in NumPy's arrays."""

    prompt: str | None
    prompt_name: str | None
    batch_size: int | None
    normalize: bool | None
    device: Device
    show_progress: bool | str


class Outputs(Options, total=False):
    """Those that give something else, too."""

    output: Literal["vectors", "tokens"]
    convert_to: Literal["numpy", "torch"]


def read_list(texts: Any) -> tuple[list[Any], bool]:
    """The texts as a list, and whether they are a single one."""
    if getattr(texts, "shape", None) == ():  # NumPy's array of one text
        texts = texts.item()
    if isinstance(texts, str):
        return [texts], True
    if hasattr(texts, "to_pylist"):  # an Arrow array
        texts = texts.to_pylist()
    return list(check_list(texts)), False


def check_list(texts: Iterable[Any]) -> Iterable[Any]:
    """UserError for what gives something else than its texts one by one, in their order."""
    is_frame = hasattr(texts, "columns") or hasattr(texts, "column_names")
    if is_frame or isinstance(texts, (bytes, Mapping, Set)) or not isinstance(texts, Iterable):
        hint = "a list of str"
        if is_frame or isinstance(texts, Mapping):
            hint += ", such as one of its columns: data['text']"
        raise UserError(f"texts of the type {type(texts).__name__}: pass {hint}")
    return texts
