"""nDCG@10 by BEIR and by MTEB of our Encoder and of sentence-transformers: MODEL BEIR_FOLDER -> a
JSON line, by judge [ours, theirs]. Called by clients.py in an environment that has them."""

import json
import sys
from typing import Any

import mteb
from beir.datasets.data_loader import GenericDataLoader
from beir.retrieval.evaluation import EvaluateRetrieval
from beir.retrieval.models import SentenceBERT
from beir.retrieval.search.dense import DenseRetrievalExactSearch
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.mocks.mock_tasks import MockRetrievalTask
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from sentence_transformers import SentenceTransformer

from minilm_retriever import Encoder

MODEL, FOLDER = sys.argv[1:3]


class ForBeir:
    """As BEIR calls a model."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def encode_queries(self, texts: list[str], **options: Any) -> Any:
        return self.encoder.encode_query(texts)

    def encode_corpus(self, rows: list[dict[str, str]], **options: Any) -> Any:
        return self.encoder.encode_document([f"{r['title']} {r['text']}".strip() for r in rows])


class ForMteb(AbsEncoder):
    """As MTEB does."""

    mteb_model_meta = ModelMeta.create_empty({"name": "local/mine"})

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def encode(self, inputs: Any, **about: Any) -> Any:
        return self.encoder.encode([text for batch in inputs for text in batch["text"]])


class Example(AbsTaskRetrieval):
    """The folder as a task of MTEB's."""

    metadata = MockRetrievalTask.metadata.model_copy(
        update={"name": "JobSkills", "eval_splits": ["test"]}
    )

    def load_data(self, num_proc: int | None = None, **options: Any) -> None:
        corpus, queries, judged = GenericDataLoader(FOLDER).load(split="test")
        split = RetrievalSplitData(
            queries=Dataset.from_list([{"id": i, "text": t} for i, t in queries.items()]),
            corpus=Dataset.from_list([{"id": i, **row} for i, row in corpus.items()]),
            relevant_docs=judged,
            top_ranked=None,
        )
        self.dataset, self.data_loaded = {"default": {"test": split}}, True


def by_beir(model: Any) -> float:
    corpus, queries, judged = GenericDataLoader(FOLDER).load(split="test")
    evaluation = EvaluateRetrieval(DenseRetrievalExactSearch(model), score_function="cos_sim")
    found = evaluation.retrieve(corpus, queries)
    return float(evaluation.evaluate(judged, found, [10])[0]["NDCG@10"])


def by_mteb(model: Any) -> float:
    result = mteb.evaluate(model, Example(), cache=None, show_progress_bar=False)
    return float(result.task_results[0].scores["test"][0]["ndcg_at_10"])


def main() -> None:
    ours, theirs = Encoder(MODEL, device="cpu"), SentenceTransformer(MODEL, device="cpu")
    scores = {
        "BEIR": [by_beir(ForBeir(ours)), by_beir(SentenceBERT(MODEL, device="cpu"))],
        "MTEB": [by_mteb(ForMteb(ours)), by_mteb(theirs)],
    }
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
