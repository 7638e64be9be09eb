"""What `export` wrote, in runtimes of other people: FOLDER TEXTS.json OUT.npz -> the vectors that
each makes. Called by clients.py in an environment that has them."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from tokenizers import Tokenizer


def main(folder: str, texts: list[str]) -> dict[str, np.ndarray]:
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
    compiled = openvino.compile_model(
        f"{folder}/model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    made: dict[str, list[np.ndarray]] = {"onnxruntime": [], "openvino": []}
    for start in range(0, len(texts), 16):
        rows = tokenizer.encode_batch(texts[start : start + 16])
        ids, mask = (np.array([getattr(r, n) for r in rows]) for n in ("ids", "attention_mask"))
        made["onnxruntime"].append(session.run(None, {"input_ids": ids, "attention_mask": mask})[0])
        made["openvino"].append(compiled([ids, mask])[0])
    source = ModelSource(hf="local")
    TextEmbedding.add_custom_model("m", PoolingType.DISABLED, False, source, 384, "model.onnx")
    embedding = TextEmbedding("m", specific_model_path=folder)
    joined = {name: np.concatenate(parts) for name, parts in made.items()}
    return joined | {"fastembed": np.stack(list(embedding.embed(texts, batch_size=16)))}


if __name__ == "__main__":
    words = json.loads(Path(sys.argv[2]).read_text("utf-8"))
    np.savez(sys.argv[3], **main(sys.argv[1], words))
