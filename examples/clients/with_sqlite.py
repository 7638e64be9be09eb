"""SQLite alone: vectors as blobs, and a function to rank by."""

import sqlite3

import numpy as np
import pandas as pd

from minilm_retriever import Encoder

encoder, db = Encoder("checkpoints/all-MiniLM-L6-v2"), sqlite3.connect(":memory:")
jobs = pd.read_csv("examples/job_skills/corpus.csv")
jobs.assign(vector=[bytes(v) for v in encoder.encode_document(jobs["skills"])]).to_sql("jobs", db)
query = encoder.encode_query("mends old violins")
db.create_function("near", 1, lambda vector: float(np.frombuffer(vector, "f4") @ query))
print(*db.execute("SELECT title FROM jobs ORDER BY near(vector) DESC").fetchone())  # Luthier
