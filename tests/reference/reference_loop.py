"""The training loop of sentence-transformers, retold with nothing but transformers' BertModel and
torch.

Padded, two forward passes a step, no cleverness: what our own loop is held against, and what is
itself held against the recorded runs of sentence-transformers, bit for bit with dropout on (on the
kind of CPU that recorded them).

    epochs = in_batches(epoch_orders(len(pairs), epochs=10), batch_size=16)
    losses, weights = reference_run(folder, pairs, epochs, total_steps=190)

    losses, weights = replay(recorded["runs"]["fit"], folder, pairs)
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoTokenizer, BertModel, set_seed

NO_DECAY = ("bias", "LayerNorm.bias", "LayerNorm.weight")
Epochs = list[list[list[int]]]  # epoch -> batch -> row


def epoch_orders(rows: int, epochs: int, seed: int = 42) -> list[list[int]]:
    """Row order of each epoch in 3.x's `fit()` and in 6.x's Trainer: a generator seeded anew with
    seed + epoch."""
    generators = (torch.Generator().manual_seed(seed + epoch) for epoch in range(epochs))
    return [torch.randperm(rows, generator=generator).tolist() for generator in generators]


def trainer3_orders(rows: int, epochs: int, seed: int = 42) -> list[list[int]]:
    """Row order of each epoch in 3.x's Trainer on one data set: successive permutations of one
    generator."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(rows, generator=generator).tolist() for _ in range(epochs)]


def in_batches(orders: list[list[int]], batch_size: int = 16) -> Epochs:
    """Each order cut into batches, the last as long as it happens to be."""
    return [
        [order[i : i + batch_size] for i in range(0, len(order), batch_size)] for order in orders
    ]


def round_robin(
    sizes: tuple[int, ...], epochs: int, batch_size: int = 16, seed: int = 42
) -> Epochs:
    """Several data sets, one batch of each in turn until the first is exhausted; rows are counted
    through them all.

    The data sets' permutations are drawn one after the other from one generator, seeded with seed +
    epoch."""
    result: Epochs = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed + epoch)
        orders = [
            torch.randperm(size, generator=generator) + sum(sizes[:i])
            for i, size in enumerate(sizes)
        ]
        columns = in_batches([order.tolist() for order in orders], batch_size)
        result.append([batch for turn in zip(*columns, strict=False) for batch in turn])
    return result


def rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up to 1, then linear decay to 0."""
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def embed(model: BertModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, H) unit vectors: the mean over real tokens, normalised."""
    states = model(**batch).last_hidden_state  # (B, T, H)
    mask = batch["attention_mask"].unsqueeze(-1).expand(states.shape).to(states.dtype)
    return normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9), p=2, dim=1)


def reference_run(
    folder: Path,
    pairs: list[tuple[str, str]],
    epochs: Epochs,
    *,
    total_steps: int,
    learning_rate: float = 5e-5,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    accumulation: int = 1,
    scale: float = 20.0,
    seed: int = 42,
    fused: bool = False,
    attention: str = "sdpa",
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """(loss of each micro-batch, final weights). The dropout is what the folder's config.json says.

    `total_steps` is the length of the schedule: `fit()` takes floor(N / B) * epochs, the Trainer
    every step."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    limit = json.loads((folder / "sentence_bert_config.json").read_text("utf-8"))["max_seq_length"]
    model = BertModel.from_pretrained(folder, attn_implementation=attention).train()
    decayed = [
        p for name, p in model.named_parameters() if not any(part in name for part in NO_DECAY)
    ]
    others = [p for name, p in model.named_parameters() if any(part in name for part in NO_DECAY)]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=learning_rate,
        fused=fused,
    )

    def forward(texts: list[str]) -> torch.Tensor:
        stripped = [text.strip() for text in texts]
        return embed(
            model,
            tokenizer(
                stripped, padding=True, truncation=True, max_length=limit, return_tensors="pt"
            ),
        )

    set_seed(seed)
    losses: list[float] = []
    step = 0
    for batches in epochs:
        torch.empty(
            (), dtype=torch.int64
        ).random_()  # the data loader draws a base seed for its workers
        for start in range(0, len(batches), accumulation):
            group = batches[start : start + accumulation]
            for rows in group:
                queries = forward([pairs[row][0] for row in rows])
                documents = forward([pairs[row][1] for row in rows])
                scores = normalize(queries, p=2, dim=1) @ normalize(documents, p=2, dim=1).T * scale
                loss = cross_entropy(scores, torch.arange(len(rows)))
                (loss / len(group)).backward()
                losses.append(loss.item())
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for parameters in optimizer.param_groups:
                parameters["lr"] = learning_rate * rate_factor(step, warmup_steps, total_steps)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}


def replay(
    run: dict[str, Any], folder: Path, pairs: list[tuple[str, str]]
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """A recorded run of training_st3.json or training_st6.json again: its rows in its order, its
    settings, its threads."""
    steps = len(run["order"]) // run["epochs"]
    epochs = [run["order"][start : start + steps] for start in range(0, len(run["order"]), steps)]
    names = (
        "total_steps",
        "learning_rate",
        "warmup_steps",
        "weight_decay",
        "accumulation",
        "scale",
        "seed",
        "fused",
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(run["threads"])
    try:
        return reference_run(folder, pairs, epochs, **{name: run[name] for name in names})
    finally:
        torch.set_num_threads(threads)
