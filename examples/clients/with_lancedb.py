"""LanceDB: a table on disk with a column of vectors."""

import lancedb
import pandas as pd

from minilm_retriever import Encoder

encoder = Encoder("checkpoints/all-MiniLM-L6-v2")
jobs = pd.read_csv("examples/job_skills/corpus.csv")
jobs["vector"] = list(encoder.encode_document(jobs["skills"]))
table = lancedb.connect("memory://").create_table("jobs", jobs)
found = table.search(encoder.encode_query("mends old violins")).limit(1).to_list()
print(found[0]["title"])  # Luthier
