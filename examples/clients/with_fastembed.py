"""fastembed: what `minilm-retriever export checkpoints/all-MiniLM-L6-v2 --onnx FOLDER` wrote."""

import sys

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

here = ModelSource(hf="local")
TextEmbedding.add_custom_model("mine", PoolingType.DISABLED, False, here, 384, "model.onnx")
model = TextEmbedding("mine", specific_model_path=sys.argv[1])
first, second, third = model.embed(["He bakes bread.", "A baker at work.", "She mends watches."])
print(first @ second > first @ third)  # True
