"""Chroma: a collection that holds vectors which were computed here."""

import chromadb
import pandas as pd

from minilm_retriever import Encoder

encoder = Encoder("checkpoints/all-MiniLM-L6-v2")
jobs = pd.read_csv("examples/job_skills/corpus.csv")
collection = chromadb.EphemeralClient().create_collection("jobs", embedding_function=None)
collection.add(ids=list(jobs["title"]), embeddings=encoder.encode_document(jobs["skills"]))
found = collection.query(query_embeddings=encoder.encode_query(["mends old violins"]), n_results=1)
print(found["ids"][0][0])  # Luthier
