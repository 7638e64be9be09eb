"""Encode, search and evaluate in ten lines of Python, once `minilm-retriever fetch` has got the
base model."""

from minilm_retriever import Encoder
from minilm_retriever.data import read_pairs, read_texts
from minilm_retriever.evaluation import evaluate_retrieval, retrieval_from_pairs
from minilm_retriever.search import top_k

encoder = Encoder.from_pretrained("checkpoints/all-MiniLM-L6-v2")
skills = [record.text for record in read_texts("examples/job_skills/corpus.csv", text="skills")]
vectors = encoder.encode_document(skills)  # (352, 384)
scores, rows = top_k(encoder.encode_query(["mends old violins"]), vectors, 2)  # (1, 2) each
for score, row in zip(scores[0], rows[0], strict=True):
    print(f"{score:.4f}  {skills[row]}")
pairs = read_pairs("examples/job_skills/unseen_wordings.csv", ["description", "skills"])
task = retrieval_from_pairs(*pairs.texts, corpus=skills)
print(f"nDCG@10 {evaluate_retrieval(task, encoder.encode).metrics['ndcg@10']:.4f}")
