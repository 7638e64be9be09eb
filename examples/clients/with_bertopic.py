"""BERTopic: topics of texts from vectors that were computed here."""

import pandas as pd
from bertopic import BERTopic
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from minilm_retriever import Encoder

skills = list(pd.read_csv("examples/job_skills/corpus.csv")["skills"])
vectors = Encoder("checkpoints/all-MiniLM-L6-v2").encode(skills)
model = BERTopic(umap_model=PCA(5), hdbscan_model=KMeans(12, random_state=0))
topics, _ = model.fit_transform(skills, vectors)
print(len(model.get_topic_info()), "topics")  # 12 topics
