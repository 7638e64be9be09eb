"""Occupations in groups, by what their lists of skills mean: k-means on the vectors (needs
scikit-learn)."""

from sklearn.cluster import KMeans

from minilm_retriever import Encoder
from minilm_retriever.data import read_texts

records = list(read_texts("examples/job_skills/corpus.csv", text="skills", id="title"))
vectors = Encoder.from_pretrained("checkpoints/all-MiniLM-L6-v2").encode(
    [record.text for record in records]
)
groups = KMeans(n_clusters=12, n_init=10, random_state=0).fit(vectors)
closeness = vectors @ groups.cluster_centers_.T  # (352, 12)
for group in range(12):
    members = [row for row in closeness[:, group].argsort()[::-1] if groups.labels_[row] == group]
    print(f"{len(members):3}  {', '.join(records[row].id for row in members[:5])}")
