"""pandas: from a column of texts to a column of scores."""

import pandas as pd

from minilm_retriever import Encoder

jobs = pd.read_csv("examples/job_skills/corpus.csv")
encoder = Encoder("checkpoints/all-MiniLM-L6-v2")
vectors = encoder.encode_document(jobs["skills"])  # (352, 384)
jobs["score"] = vectors @ encoder.encode_query("mends old violins")
print(jobs.nlargest(3, "score")["title"].iloc[0])  # Luthier
