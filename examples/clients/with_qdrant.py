"""Qdrant: in memory here; QdrantClient(url=...) for a server."""

import pandas as pd
from qdrant_client import QdrantClient, models

from minilm_retriever import Encoder

encoder, client = Encoder("checkpoints/all-MiniLM-L6-v2"), QdrantClient(":memory:")
jobs = pd.read_csv("examples/job_skills/corpus.csv")
space = models.VectorParams(size=384, distance=models.Distance.COSINE)
client.create_collection("jobs", vectors_config=space)
client.upload_collection("jobs", encoder.encode_document(jobs["skills"]), ids=list(jobs.index))
found = client.query_points("jobs", query=encoder.encode_query("mends old violins"), limit=1)
print(jobs["title"][found.points[0].id])  # Luthier
