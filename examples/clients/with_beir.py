"""BEIR: its own metrics of this encoder, on a folder in its format."""

from beir.datasets.data_loader import GenericDataLoader
from beir.retrieval.evaluation import EvaluateRetrieval
from beir.retrieval.search.dense import DenseRetrievalExactSearch as Search

from minilm_retriever import Encoder


class Local(Encoder):
    encode_queries = lambda self, texts, **options: self.encode_query(texts)
    encode_corpus = lambda self, rows, **options: self.encode_document([r["text"] for r in rows])


search = EvaluateRetrieval(Search(Local("checkpoints/all-MiniLM-L6-v2")), score_function="cos_sim")
corpus, queries, judged = GenericDataLoader("checkpoints/job-skills-beir").load(split="test")
print(search.evaluate(judged, search.retrieve(corpus, queries), [10])[0])  # {'NDCG@10': 0.74959}
