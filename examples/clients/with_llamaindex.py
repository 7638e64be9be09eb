"""LlamaIndex: an embedding model for its indexes."""

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding

from minilm_retriever import Encoder


class Local(BaseEmbedding):
    _get_text_embedding = lambda self, text: encoder.encode_document(text).tolist()
    _get_query_embedding = _aget_query_embedding = _get_text_embedding


encoder = Encoder("checkpoints/all-MiniLM-L6-v2")
texts = [Document(text=text) for text in ("He bakes bread.", "He makes violins.")]
index = VectorStoreIndex(texts, embed_model=Local()).as_retriever(similarity_top_k=1)
print(index.retrieve("luthier")[0].get_content())  # He makes violins.
