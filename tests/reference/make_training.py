"""Train with sentence-transformers and record every step: training_st3 or training_st6, .json and
.safetensors.

    PEER/bin/python tests/reference/make_training.py --model checkpoints/all-MiniLM-L6-v2 --out DIR [--only RUN]

Run with the Python of a peer environment (see interop.py). 3.x trains through `fit()` and its
Trainer, 6.x through its Trainer. Each run of RUNS starts from the tiny BERT of tests/tiny.py or
from the real model, on the first rows of pairs.json.

training_*.json          "peer", hashes of what went in, and under "runs" for each run its settings
and
                           total_steps     length of the learning-rate schedule
                           order           rows of pairs.json in each micro-batch
                           losses          loss of each micro-batch, before any division
                           learning_rates  rate of each optimizer step
                           fused           whether the peer chose torch's fused AdamW
                           change_norms    real model: L2 norm of the change of each parameter that changed
training_*.safetensors   tiny model:  RUN/PARAMETER          the final weights, whole (runs with
`keep`)
                         real model:  RUN/PARAMETER/indices  flat positions of at most SAMPLE entries, and
                                      RUN/PARAMETER/change   what was added to each of them

Of a matrix only the rows that changed are sampled: most of the word embeddings never do."""

import argparse
import contextlib
import functools
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from peer import (
    PAIRS,
    peer_versions,
    read_pairs,
    sha256,
    write_json,
)  # first: it keeps the hub out of the way

# isort: split
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import save_file
from sentence_transformers import (
    InputExample,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.tiny import make_tiny_bert

SAMPLE = 256
Pair = tuple[str, str]


@dataclass(frozen=True)
class Run:
    """One training run; `sizes` counts the pairs of each data set, taken from pairs.json one after
    the other."""

    api: Literal["fit", "trainer"]
    model: Literal["tiny", "real"] = "tiny"
    sizes: tuple[int, ...] = (313,)
    epochs: int = 10
    batch_size: int = 16
    learning_rate: float = 5e-5
    warmup_steps: int = 0
    weight_decay: float = 0.0
    dropout: float = 0.0
    seed: int = 42
    accumulation: int = 1
    scale: float = 20.0
    threads: int = 1
    keep: bool = False

    @property
    def total_steps(self) -> int:
        """Length of the schedule: fit() leaves ragged batches out of it, so its last steps have a
        rate of 0."""
        if self.api == "fit":
            return min(self.sizes) // self.batch_size * self.epochs
        batches = min(math.ceil(size / self.batch_size) for size in self.sizes) * len(self.sizes)
        return math.ceil(batches / self.accumulation) * self.epochs


REAL = {
    "model": "real",
    "sizes": (233,),
    "epochs": 2,
    "threads": 2,
    "keep": True,
}  # 15 steps, the last of 9 rows, twice
RUNS: dict[str, dict[str, Run]] = {
    "st3": {
        "fit": Run("fit", keep=True),
        "fit-defaults": Run(
            "fit", learning_rate=2e-5, warmup_steps=50, weight_decay=0.01, keep=True
        ),
        "trainer": Run("trainer", keep=True),
        "trainer-round-robin": Run("trainer", sizes=(200, 113), epochs=4),
        "fit-real": Run("fit", **REAL),
        "trainer-real": Run("trainer", **REAL),
        **{
            f"fit-dropout-{seed}": Run("fit", dropout=0.1, seed=seed, keep=seed == 42)
            for seed in range(42, 47)
        },
    },
    "st6": {
        "trainer": Run("trainer", keep=True),
        "trainer-round-robin": Run("trainer", sizes=(200, 113), epochs=4),
        "trainer-accumulation": Run("trainer", accumulation=3, epochs=3, keep=True),
        "trainer-real": Run("trainer", **REAL),
    },
}


@dataclass
class Recording:
    """What a run shows from outside: rows and loss of each forward pass, rate of each optimizer
    step."""

    order: list[list[int]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    fused: bool = False

    def before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.learning_rates.append(optimizer.param_groups[0]["lr"])
        self.fused = bool(optimizer.defaults.get("fused"))


class RecordedLoss(losses.MultipleNegativesRankingLoss):  # type: ignore[misc]
    """The peer's loss, unchanged; rows are recognised by the token ids of their first column."""

    def __init__(
        self, model: SentenceTransformer, scale: float, recording: Recording, pairs: list[Pair]
    ) -> None:
        super().__init__(model, scale=scale)
        tokenize = getattr(model, "preprocess", None) or model.tokenize  # 6.x renamed it
        self.recording = recording
        self.row_of = {
            tuple(tokenize([first])["input_ids"][0].tolist()): row
            for row, (first, _) in enumerate(pairs)
        }
        if len(self.row_of) != len(pairs):
            raise ValueError("two rows have the same token ids: their order could not be told")

    def forward(self, sentence_features: Any, labels: Any) -> torch.Tensor:
        features = list(sentence_features)
        loss: torch.Tensor = super().forward(features, labels)
        ids, mask = features[0]["input_ids"], features[0]["attention_mask"].bool()
        rows = [self.row_of[tuple(row[real].tolist())] for row, real in zip(ids, mask, strict=True)]
        self.recording.order.append(rows)
        self.recording.losses.append(loss.item())
        return loss


def fit(model: SentenceTransformer, loss: RecordedLoss, parts: list[list[Pair]], run: Run) -> None:
    """`fit()` takes no seed, so it is put where fit() builds its arguments; its default is 42."""
    from sentence_transformers import fit_mixin

    objectives = []
    for part in parts:
        examples = [InputExample(texts=list(pair)) for pair in part]
        loader = torch.utils.data.DataLoader(
            examples, batch_size=run.batch_size
        )  # fit() shuffles, not the loader
        objectives.append((loader, loss))
    arguments = functools.partial(
        SentenceTransformerTrainingArguments, seed=run.seed, use_cpu=True, report_to="none"
    )
    with mock.patch.object(fit_mixin, "SentenceTransformerTrainingArguments", arguments):
        model.fit(
            objectives,
            epochs=run.epochs,
            warmup_steps=run.warmup_steps,
            optimizer_params={"lr": run.learning_rate},
            weight_decay=run.weight_decay,
            show_progress_bar=False,
        )


def train(
    model: SentenceTransformer, loss: RecordedLoss, parts: list[list[Pair]], run: Run
) -> None:
    """The Trainer, all else at its defaults."""
    columns = [
        Dataset.from_dict(dict(zip(("anchor", "positive"), zip(*part), strict=True)))
        for part in parts
    ]
    arguments = SentenceTransformerTrainingArguments(
        output_dir="unused",
        num_train_epochs=run.epochs,
        per_device_train_batch_size=run.batch_size,
        learning_rate=run.learning_rate,
        warmup_steps=run.warmup_steps,
        weight_decay=run.weight_decay,
        gradient_accumulation_steps=run.accumulation,
        multi_dataset_batch_sampler="round_robin",
        seed=run.seed,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    data = (
        columns[0]
        if len(columns) == 1
        else DatasetDict({str(i): part for i, part in enumerate(columns)})
    )
    SentenceTransformerTrainer(model, args=arguments, train_dataset=data, loss=loss).train()


def run_folder(run: Run, real: Path, folder: Path) -> Path:
    """The model a run starts from, with the run's dropout written into its config."""
    if run.model == "tiny":
        return make_tiny_bert(folder, dropout=run.dropout)
    shutil.copytree(real, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["hidden_dropout_prob"] = config["attention_probs_dropout_prob"] = run.dropout
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def parameters(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    """The encoder's parameters under BertModel's names, copied."""
    return {
        name: tensor.detach().clone() for name, tensor in model[0].auto_model.named_parameters()
    }


def sampled(change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(positions, values) of at most SAMPLE entries, spread by a prime stride; of a matrix, over
    rows that changed."""
    rows = change.reshape(-1, change.shape[-1])  # a vector is one row
    changed = rows.any(dim=1).nonzero().squeeze(1)  # numbers of the rows that changed
    columns = rows.shape[1]
    entries = (
        torch.arange(min(SAMPLE, len(changed) * columns)) * 1_000_003 % (len(changed) * columns)
    )
    indices = (changed[entries // columns] * columns + entries % columns).unique()
    return indices.int(), change.flatten()[indices]


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """The peers write into the working directory: give them one to throw away."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield Path(folder)


def record(run: Run, real: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Run it; what is to be written as JSON, and the tensors."""
    torch.set_num_threads(run.threads)
    pairs = read_pairs()[: sum(run.sizes)]
    starts = [sum(run.sizes[:i]) for i in range(len(run.sizes))]
    parts = [pairs[start : start + size] for start, size in zip(starts, run.sizes, strict=True)]
    recording = Recording()
    with scratch_folder() as scratch:
        model = SentenceTransformer(str(run_folder(run, real, scratch / "model")), device="cpu")
        loss = RecordedLoss(model, run.scale, recording, pairs)
        before = parameters(model)
        hook = register_optimizer_step_pre_hook(recording.before_step)
        (fit if run.api == "fit" else train)(model, loss, parts, run)
        hook.remove()
        after = parameters(model)

    content = asdict(run) | {"total_steps": run.total_steps} | asdict(recording)
    if not run.keep:
        return content, {}
    if run.model == "tiny":
        return content, after
    changes = {
        name: after[name] - before[name]
        for name in after
        if not torch.equal(after[name], before[name])
    }
    content["change_norms"] = {
        name: change.double().norm().item() for name, change in changes.items()
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, change in changes.items():
        tensors[f"{name}/indices"], tensors[f"{name}/change"] = sampled(change)
    return content, tensors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--only", metavar="RUN", help="make this run alone, to look at it")
    args = parser.parse_args()
    real, out = args.model.resolve(), args.out.resolve()

    versions = peer_versions()
    peer = "st" + versions["sentence-transformers"].partition(".")[0]
    runs: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, run in RUNS[peer].items():
        if args.only in (None, name):
            runs[name], kept = record(run, real)
            tensors |= {
                f"{name}/{parameter}": tensor.contiguous() for parameter, tensor in kept.items()
            }
            losses_ = runs[name]["losses"]
            print(
                f"{peer} {name}: {len(losses_)} steps, loss {losses_[0]:.4f} to {losses_[-1]:.4f}",
                flush=True,
            )
    with tempfile.TemporaryDirectory() as scratch:
        tiny_sha256 = sha256(make_tiny_bert(Path(scratch) / "tiny") / "model.safetensors")
    content = {
        "peer": versions,
        "pairs_sha256": sha256(PAIRS),
        "tiny_sha256": tiny_sha256,
        "model_sha256": sha256(real / "model.safetensors"),
        "runs": runs,
    }
    write_json(out / f"training_{peer}.json", content)
    save_file(tensors, out / f"training_{peer}.safetensors")
    Path(out / f"training_{peer}.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
