"""faiss: an index of your own (`minilm-retriever index` makes one on disk)."""

import faiss
import pandas as pd

from minilm_retriever import Encoder

jobs = pd.read_csv("examples/job_skills/corpus.csv")
encoder = Encoder("checkpoints/all-MiniLM-L6-v2")
index = faiss.IndexFlatIP(encoder.dimension)
index.add(encoder.encode_document(jobs["skills"]))
scores, rows = index.search(encoder.encode_query(["mends old violins"]), 3)
print(jobs["title"][rows[0, 0]])  # Luthier
