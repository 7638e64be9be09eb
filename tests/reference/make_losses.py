"""Losses of sentence-transformers 6.2 and short runs of its Trainer with them: losses_st6.json.

    PEER/bin/python tests/reference/make_losses.py --out DIR

Run with the Python of the peer environment st6 (see interop.py).

"vectors"  losses of random vectors: `inputs` by name, and for each of "losses" its parameters, its
           value and its gradients with respect to the first and the second column
"runs"     Trainer runs from the tiny BERT of tests/tiny.py on the first rows of pairs.json, whose
           scores are `scores`, dropout off: settings, and the loss of each step
"mined"    what mine_hard_negatives takes for some rows of pairs.json, by the tiny BERT"""

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any

from peer import PAIRS, peer_versions, read_pairs, sha256, write_json  # first: no hub

# isort: split
import torch
from datasets import Dataset
from make_training import scratch_folder
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from sentence_transformers.util import mine_hard_negatives
from torch import Tensor, nn

from tests.tiny import make_tiny_bert

ROWS, BATCH, EPOCHS, RATE = 40, 16, 2, 1e-3
PROMPTS = {"sentence_0": "the work : ", "sentence_1": "a team and "}
GIST = {"contrast_anchors": False, "contrast_positives": False}

# --- losses of vectors ----------------------------------------------------------------------------


class Vectors(nn.Module):
    """A model whose texts are vectors already."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {"sentence_embedding": features[self.name]}


def inputs() -> dict[str, Tensor]:
    """B = 8 rows of H = 6 numbers, guide's of 5, and scores, of which some are equal."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    columns = {name: draw(8, 6) for name in ("query", "positive", "negative")}
    guide = {f"guide_{name}": draw(8, 5) for name in columns}
    scores = torch.tensor([0.0, 0.2, 0.2, 1.0, 0.6, 0.4, 1.0, 0.8], dtype=torch.float64)
    return {**columns, **guide, "scores": scores}


LOSSES: dict[str, tuple[type, dict[str, Any], int]] = {  # class, parameters, columns
    "cosent": (losses.CoSENTLoss, {"scale": 20.0}, 2),
    "cosent-scale-5": (losses.CoSENTLoss, {"scale": 5.0}, 2),
    "cosine": (losses.CosineSimilarityLoss, {}, 2),
    "guide": (losses.GISTEmbedLoss, {"temperature": 0.05, **GIST}, 2),
    "guide-negatives": (losses.GISTEmbedLoss, {"temperature": 0.05, **GIST}, 3),
    "guide-all": (losses.GISTEmbedLoss, {"temperature": 0.05}, 2),
    "guide-all-negatives": (losses.GISTEmbedLoss, {"temperature": 0.05}, 3),
    # the peer masks more with a margin, ours less
    "guide-all-margin": (losses.GISTEmbedLoss, {"temperature": 0.1, "margin": -0.2}, 3),
}


def loss_of_vectors(kind: type, parameters: dict[str, Any], columns: int) -> dict[str, Any]:
    given = inputs()
    names = list(given)[:columns]
    leaves = [given[name].clone().requires_grad_() for name in names]
    features = [
        {"own": leaf, "guide": given[f"guide_{name}"]}
        for name, leaf in zip(names, leaves, strict=True)
    ]
    model = Vectors("own")
    if kind is losses.GISTEmbedLoss:
        loss = kind.__new__(kind)
        nn.Module.__init__(loss)
        loss.model, loss.guide = model, Vectors("guide")
        loss.must_retokenize, loss.gather_across_devices = False, False
        loss.similarity_fct = nn.CosineSimilarity(dim=-1)
        loss.temperature, loss.margin_strategy = parameters["temperature"], "absolute"
        loss.margin = parameters.get("margin", 0.0)
        loss.contrast_anchors = parameters.get("contrast_anchors", True)
        loss.contrast_positives = parameters.get("contrast_positives", True)
        loss.cross_entropy_loss = nn.CrossEntropyLoss()
    else:
        loss = kind(model, **parameters)
    value = loss(features, given["scores"])
    gradients = torch.autograd.grad(value, leaves[:2])
    return {
        "parameters": parameters,
        "columns": columns,
        "value": value.item(),
        "gradients": [gradient.tolist() for gradient in gradients],
    }


# --- runs of the Trainer --------------------------------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {
    "prompts": {"loss": "infonce", "prompts": PROMPTS},
    "prompts-not-pooled": {"loss": "infonce", "prompts": PROMPTS, "include_prompt": False},
    "prompts-cls-not-pooled": {
        "loss": "infonce",
        "prompts": PROMPTS,
        "include_prompt": False,
        "pooling": "cls",
    },
    "cosent": {"loss": "cosent"},
    "cosent-prompts": {"loss": "cosent", "prompts": PROMPTS},
    "cosine": {"loss": "cosine"},
    "guide": {"loss": "guide"},
    "guide-all": {"loss": "guide-all"},
    "guide-all-prompts": {"loss": "guide-all", "prompts": PROMPTS},
}


def scores() -> list[float]:
    """One for each row, in fifths, so that some are equal."""
    generator = torch.Generator().manual_seed(2)
    return [n / 5 for n in torch.randint(0, 6, (ROWS,), generator=generator).tolist()]


def make_loss(name: str, model: SentenceTransformer, guide: SentenceTransformer) -> nn.Module:
    if name.startswith("guide"):
        others = GIST if name == "guide" else {}
        return losses.GISTEmbedLoss(model, guide, temperature=0.05, **others)
    kinds = {
        "infonce": losses.MultipleNegativesRankingLoss,
        "cosent": losses.CoSENTLoss,
        "cosine": losses.CosineSimilarityLoss,
    }
    return kinds[name](model)


def run_losses(run: dict[str, Any]) -> list[float]:
    """The loss of each step."""
    recorded: list[float] = []
    with scratch_folder() as scratch:
        folder = make_tiny_bert(scratch / "m", dropout=0.0, pooling=run.get("pooling", "mean"))
        model, guide = (SentenceTransformer(str(folder), device="cpu") for _ in range(2))
        model.set_pooling_include_prompt(run.get("include_prompt", True))
        loss = make_loss(run["loss"], model, guide)
        loss.register_forward_hook(lambda _, __, value: recorded.append(value.item()))
        columns: dict[str, Any] = dict(
            zip(("sentence_0", "sentence_1"), zip(*read_pairs()[:ROWS], strict=True), strict=True)
        )
        if run["loss"] in ("cosent", "cosine"):
            columns["score"] = scores()
        arguments = SentenceTransformerTrainingArguments(
            output_dir="unused",
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            warmup_steps=0,
            prompts=run.get("prompts"),
            seed=42,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        data = Dataset.from_dict(columns)
        SentenceTransformerTrainer(model, args=arguments, train_dataset=data, loss=loss).train()
    return recorded


# --- mining ---------------------------------------------------------------------------------------

MINED: dict[str, dict[str, Any]] = {
    "margin": {"range_max": 38, "absolute_margin": 0.02, "num_negatives": 2},
    "relative": {"range_max": 38, "relative_margin": 0.02, "num_negatives": 3},
    "bounds": {
        "range_max": 38,
        "absolute_margin": 0.0,
        "min_score": 0.75,
        "max_score": 0.85,
        "num_negatives": 3,
    },
    "prompts": {
        "range_max": 38,
        "absolute_margin": 0.0,
        "num_negatives": 2,
        "query_prompt": PROMPTS["sentence_0"],
        "corpus_prompt": PROMPTS["sentence_1"],
    },
}


def mined(settings: dict[str, Any]) -> list[list[str]]:
    """(query, document, negative) in the peer's order, one negative a row."""
    with scratch_folder() as scratch, contextlib.redirect_stdout(io.StringIO()):
        model = SentenceTransformer(str(make_tiny_bert(scratch / "m")), device="cpu")
        first, second = zip(*read_pairs()[:ROWS], strict=True)
        data = Dataset.from_dict({"query": first, "document": second})
        found = mine_hard_negatives(data, model, verbose=False, **settings)
    return [list(row.values()) for row in found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    out = parser.parse_args().out.resolve()
    torch.set_num_threads(1)
    content = {
        "peer": peer_versions(),
        "pairs_sha256": sha256(PAIRS),
        "rows": ROWS,
        "batch_size": BATCH,
        "epochs": EPOCHS,
        "learning_rate": RATE,
        "scores": scores(),
        "vectors": {
            "inputs": {name: tensor.tolist() for name, tensor in inputs().items()},
            "losses": {name: loss_of_vectors(*loss) for name, loss in LOSSES.items()},
        },
        "runs": {name: {**run, "losses": run_losses(run)} for name, run in RUNS.items()},
        "mined": {name: {"settings": s, "rows": mined(s)} for name, s in MINED.items()},
    }
    write_json(out / "losses_st6.json", json.loads(json.dumps(content)))


if __name__ == "__main__":
    main()
