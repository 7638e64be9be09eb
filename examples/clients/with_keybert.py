"""KeyBERT: the words of a text that are nearest to it."""

from keybert import KeyBERT
from keybert.backend import BaseEmbedder

from minilm_retriever import Encoder


class Local(BaseEmbedder):
    encoder = Encoder("checkpoints/all-MiniLM-L6-v2")
    embed = lambda self, texts, verbose=False: self.encoder.encode(list(texts))


text = "A luthier builds and mends violins, and often cellos and guitars too."
print(KeyBERT(model=Local()).extract_keywords(text)[0][0])  # violins
