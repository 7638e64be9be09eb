"""LangChain: Embeddings for any of its vector stores."""

from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from minilm_retriever import Encoder


class Local(Embeddings):
    encoder = Encoder("checkpoints/all-MiniLM-L6-v2")
    embed_documents = lambda self, texts: self.encoder.encode_document(texts).tolist()
    embed_query = lambda self, text: self.encoder.encode_query(text).tolist()


store = InMemoryVectorStore.from_texts(["He bakes bread.", "He makes violins."], Local())
print(store.similarity_search("luthier", k=1)[0].page_content)  # He makes violins.
