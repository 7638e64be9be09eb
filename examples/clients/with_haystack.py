"""Haystack: documents with their vectors in a store, searched by a query's."""

from haystack import Document
from haystack.document_stores.in_memory import InMemoryDocumentStore

from minilm_retriever import Encoder

texts, encoder = ["He bakes bread.", "He makes violins."], Encoder("checkpoints/all-MiniLM-L6-v2")
vectors = encoder.encode_document(texts).tolist()
rows = [Document(content=t, embedding=v) for t, v in zip(texts, vectors, strict=True)]
store = InMemoryDocumentStore(embedding_similarity_function="cosine")
store.write_documents(rows)
found = store.embedding_retrieval(encoder.encode_query("luthier").tolist(), top_k=1)
print(found[0].content)  # He makes violins.
