"""Write all-MiniLM-L6-v2 as ONNX for the peers: a plain padded BERT in opset 17 with dynamic batch
and length, in float32 and with its weights in int8 (dynamic quantisation by onnxruntime).

Runs in the peers' environment: python export_onnx.py MODEL_FOLDER OUT_FOLDER. The file's output is
compared with transformers' BertModel before it counts."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.torch import load_file
from torch import Tensor, nn


class PlainBert(nn.Module):
    """BertModel as everybody exports it: (B, T) ids, mask and types in, (B, T, H) token states
    out."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.heads = json.loads((folder / "config.json").read_text("utf-8"))["num_attention_heads"]
        self.layers = json.loads((folder / "config.json").read_text("utf-8"))["num_hidden_layers"]
        for name, tensor in load_file(folder / "model.safetensors").items():
            if tensor.is_floating_point():
                self.register_buffer(name.replace(".", "_"), tensor)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """A linear layer by name."""
        return x @ getattr(self, f"{name}_weight").T + getattr(self, f"{name}_bias")

    def norm(self, x: Tensor, name: str) -> Tensor:
        """A LayerNorm by name."""
        weight, bias = (
            getattr(self, f"{name}_LayerNorm_weight"),
            getattr(self, f"{name}_LayerNorm_bias"),
        )
        return nn.functional.layer_norm(x, (len(weight),), weight, bias, 1e-12)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, T) each -> (B, T, H)."""
        words = nn.functional.embedding(input_ids, self.embeddings_word_embeddings_weight)
        types = nn.functional.embedding(
            token_type_ids, self.embeddings_token_type_embeddings_weight
        )
        positions = self.embeddings_position_embeddings_weight[: input_ids.shape[1]]
        x = self.norm(words + types + positions, "embeddings")
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for i in range(self.layers):
            layer = f"encoder_layer_{i}"

            def split(y: Tensor) -> Tensor:
                return y.view(y.shape[0], y.shape[1], self.heads, -1).permute(0, 2, 1, 3)

            query, key, value = (
                split(self.linear(x, f"{layer}_attention_self_{name}"))
                for name in ("query", "key", "value")
            )
            scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + mask
            mixed = (scores.softmax(-1) @ value).permute(0, 2, 1, 3).reshape(x.shape)
            x = self.norm(
                self.linear(mixed, f"{layer}_attention_output_dense") + x,
                f"{layer}_attention_output",
            )
            inner = nn.functional.gelu(self.linear(x, f"{layer}_intermediate_dense"))
            x = self.norm(self.linear(inner, f"{layer}_output_dense") + x, f"{layer}_output")
        return x


def main(folder: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    ids = torch.randint(1000, 30000, (2, 9))
    mask = torch.ones_like(ids)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "length"} for name in [*names, "last_hidden_state"]}
    model = PlainBert(folder).eval()
    torch.onnx.export(
        model, (ids, mask, torch.zeros_like(ids)), str(out / "model.onnx"), input_names=names,
        output_names=["last_hidden_state"], dynamic_axes=axes, opset_version=17, dynamo=False,
    )  # fmt: skip
    check(folder, out)
    quantize_dynamic(out / "model.onnx", out / "model_int8.onnx", weight_type=QuantType.QInt8)
    for name in ("config.json", "tokenizer.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(folder / name, out / name)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings |= {
        "model_max_length": 256,
        "max_length": 256,
    }  # the model's own limit: the file says 512
    (out / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def check(folder: Path, out: Path) -> None:
    """Fail unless onnxruntime's output on other shapes, with padding, is BertModel's."""
    import onnxruntime
    from transformers import BertModel

    session = onnxruntime.InferenceSession(
        str(out / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    bert = BertModel.from_pretrained(folder).eval()
    ids = torch.randint(1000, 30000, (5, 33))
    mask = (torch.arange(33) < torch.tensor([33, 5, 12, 1, 30])[:, None]).long()
    feed = {
        "input_ids": ids.numpy(),
        "attention_mask": mask.numpy(),
        "token_type_ids": np.zeros_like(ids.numpy()),
    }
    with torch.inference_mode():
        theirs = bert(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    off = np.abs((session.run(None, feed)[0] - theirs) * mask.numpy()[..., None]).max()
    if off > 1e-4:
        raise SystemExit(f"the exported model is off by {off}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
