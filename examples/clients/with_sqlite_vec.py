"""sqlite-vec: distances inside SQLite (of a Python whose sqlite3 loads extensions)."""

import sqlite3

import sqlite_vec

from minilm_retriever import Encoder

encode, db = Encoder("checkpoints/all-MiniLM-L6-v2").encode, sqlite3.connect(":memory:")
db.enable_load_extension(True)
sqlite_vec.load(db)
rows = [(text, bytes(encode(text))) for text in ("He bakes bread.", "He makes violins.")]
db.execute("CREATE TABLE t (text, v)").executemany("INSERT INTO t VALUES (?, ?)", rows)
near = "SELECT text FROM t ORDER BY vec_distance_cosine(v, ?)"
print(*db.execute(near, [bytes(encode("luthier"))]).fetchone())  # He makes violins.
