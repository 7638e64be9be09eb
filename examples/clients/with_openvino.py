"""OpenVINO: what `minilm-retriever export checkpoints/all-MiniLM-L6-v2 --onnx FOLDER` wrote."""

import sys

import numpy as np
import openvino
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json")  # cuts and pads
model = openvino.compile_model(f"{sys.argv[1]}/model.onnx", "CPU")
texts = tokenizer.encode_batch(["He bakes bread.", "A baker at work.", "She mends watches."])
vectors = model([np.array([t.ids for t in texts]), np.array([t.attention_mask for t in texts])])[0]
print(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])  # True
