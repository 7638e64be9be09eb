"""Flags of `export`."""

from __future__ import annotations

from dataclasses import dataclass

from minilm_retriever.errors import UserError
from minilm_retriever.flags import flag
from minilm_retriever.pretrained import config as shared


@dataclass(frozen=True)
class ExportConfig:
    """Write a model as ONNX, text vectors out: for onnxruntime, OpenVINO, fastembed."""

    model: str = flag("", shared.MODEL_HELP, name="FOLDER")
    revision: str | None = flag(None, shared.REVISION_HELP)
    onnx: str = flag(
        "", "folder to write: model.onnx and its tokenizer", metavar="DIR", required=True
    )
    int8: bool = flag(False, "also model_int8.onnx, and what it loses", action="store_true")
    dimensions: int | None = flag(
        None, "keep so many leading dimensions, scaled to unit length again", at_least=1
    )
    overwrite: bool = flag(False, "replace what is there", action="store_true")

    def __post_init__(self) -> None:
        if self.onnx.endswith(".onnx"):
            folder = self.onnx.removesuffix(".onnx")
            raise UserError(
                f"--onnx is a folder, into which model.onnx goes with its tokenizer: try {folder}"
            )
