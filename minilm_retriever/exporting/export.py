"""`export`: a folder of model.onnx, its tokenizer, and a README that says what it costs.

Shapes: N texts, B of a batch, T tokens of its longest, H numbers of a vector."""

from __future__ import annotations

import json
from pathlib import Path

from minilm_retriever.errors import UserError, require
from minilm_retriever.exporting.compare import Loss, compare, sample_batches
from minilm_retriever.exporting.config import ExportConfig
from minilm_retriever.exporting.onnx_graph import TextVectors, quantize, trace
from minilm_retriever.pretrained.config import with_revision
from minilm_retriever.pretrained.model_folder import LoadedModel, load_pretrained, with_limit
from minilm_retriever.storage import atomic_files, atomic_folders

MOST_DIFFERENCE = 1e-5  # of a number from the model's own; measured: below 1e-6
FLOAT, INT8 = "model.onnx", "model_int8.onnx"


def export(config: ExportConfig) -> list[str]:
    """Write the folder, whole or not at all; returns lines to print.

    Raises UserError where a graph cannot compute what the model does, or onnxruntime finds other
    vectors in it."""
    require("onnxscript", "onnx", "export")
    require("onnxruntime", "onnx", "export")
    out = Path(config.onnx)
    atomic_files.check_not_input(out, (config.model,), "--onnx")
    model = load_pretrained(with_revision(config.model, config.revision))
    check_exportable(model, config.dimensions)
    own = TextVectors(model.encoder, config.dimensions)
    extra = {"onnx": {"dimensions": own.width}}
    with atomic_folders.staged_folder(out, overwrite=config.overwrite, extra=extra) as staging:
        graph = trace(own)
        atomic_files.write_bytes(staging / FLOAT, graph.SerializeToString())
        batches = sample_batches(model.tokenizer)
        losses = [compare(staging / FLOAT, own, batches)]
        if not losses[0].difference <= MOST_DIFFERENCE:
            raise UserError(f"{config.model}: its graph is another model ({losses[0]})")
        if config.int8:
            quantize(graph, staging / INT8)
            losses.append(compare(staging / INT8, own, batches))
        write_tokenizer(staging, model)
        atomic_files.write_text(staging / "README.md", card(model, own.width, losses))
    return [f"wrote {out}", *map(str, losses)]


def check_exportable(model: LoadedModel, dimensions: int | None) -> None:
    """UserError where a graph of ids and masks, beside a tokenizer.json, would be another model."""
    kept, settings = model.encoder.kept, model.settings
    if dimensions is not None and dimensions > kept:
        raise UserError(f"--dimensions must be from 1 to the model's {kept}, not {dimensions}")
    if not settings.include_prompt and any(settings.prompts.values()):
        raise UserError(
            "the model does not pool its prompts (include_prompt is false), which a graph cannot "
            "tell from the text: it cannot be exported"
        )
    if model.tokenizer.split_special:
        raise UserError("split_special_tokens cannot be exported: tokenizer.json has no such thing")


def write_tokenizer(folder: Path, model: LoadedModel) -> None:
    """tokenizer.json that cuts and pads by itself, and what other tools look for beside it."""
    limit, side = model.settings.max_length, model.tokenizer.truncation_side
    files = {"tokenizer_config.json": b"{}", **model.tokenizer_files}
    config = json.loads(with_limit(files.pop("tokenizer_config.json"), limit))
    pad = config.get("pad_token") or "[PAD]"
    pad = pad if isinstance(pad, str) else pad["content"]
    tokenizer = model.tokenizer.untruncated
    tokenizer.enable_truncation(limit, direction=side)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad) or 0, pad_token=pad)
    atomic_files.write_text(folder / "tokenizer.json", tokenizer.to_str())
    # Of no class of its own, so that transformers takes tokenizer.json as it is.
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "truncation_side": side}
    atomic_files.write_json(folder / "tokenizer_config.json", {"pad_token": pad, **config})
    atomic_files.write_json(folder / "config.json", dict(model.config))
    for name, data in files.items():
        atomic_files.write_bytes(folder / name, data)


def card(model: LoadedModel, width: int, losses: list[Loss]) -> str:
    """The folder's README.md."""
    template = Path(__file__).with_name("export_card.md").read_text("utf-8")
    prompts = {name: prompt for name, prompt in model.settings.prompts.items() if prompt}
    lines = [f"- {name}: `{prompt}`" for name, prompt in prompts.items()]
    before = "\n".join(["", "Put before each text, by its kind:", "", *lines, ""]) if lines else ""
    return template.format(
        width=width,
        max_length=model.settings.max_length,
        similarity=model.settings.similarity,
        losses="\n".join(f"- {loss}" for loss in losses),
        prompts=before,
    )
