"""DuckDB: a data frame with vectors, searched in SQL."""

import duckdb
import pandas as pd

from minilm_retriever import Encoder

encoder = Encoder("checkpoints/all-MiniLM-L6-v2")
jobs = pd.read_csv("examples/job_skills/corpus.csv")
jobs["vector"] = list(encoder.encode_document(jobs["skills"]))
query = encoder.encode_query("mends old violins").tolist()
near = "array_inner_product(vector::FLOAT[384], ?::FLOAT[384])"
found = duckdb.execute(f"SELECT title FROM jobs ORDER BY {near} DESC", [query]).fetchone()
print(found[0])  # Luthier
