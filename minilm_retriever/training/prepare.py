"""What a run needs before its first step: base model, data, batches, loss, trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from minilm_retriever.core.model import SentenceEncoder
from minilm_retriever.core.trainer import Batch, Hyperparameters, Trainer
from minilm_retriever.data.pairs import Pairs, collect
from minilm_retriever.distributed import Ranks
from minilm_retriever.encoder.encode_texts import encode_texts
from minilm_retriever.encoder.precision import default_device
from minilm_retriever.evaluation.general import GeneralMeasure, read_general
from minilm_retriever.flags import flag_values
from minilm_retriever.pretrained.config import with_revision
from minilm_retriever.pretrained.model_folder import LoadedModel, load_pretrained
from minilm_retriever.pretrained.prompts import (
    Prompts,
    pair_prompts,
    retrieval_prompts,
    with_prompts,
)
from minilm_retriever.pretrained.tokenizer import TokenizedTexts
from minilm_retriever.progress import Progress, say
from minilm_retriever.storage import manifest
from minilm_retriever.storage.resume import RunFolder
from minilm_retriever.training.batches import BatchSampler, NegativeSampler
from minilm_retriever.training.captured_step import CapturedTrainer
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.dataset import TrainingData
from minilm_retriever.training.make_trainer import make_trainer
from minilm_retriever.training.objective import (
    Objective,
    check_contrast,
    check_matryoshka,
    check_negatives,
    target_scores,
)
from minilm_retriever.training.sparse_embedding import SparseEmbedding
from minilm_retriever.training.stay_near import StayNear
from minilm_retriever.training.validation import Validation, general_encoders

NONE = torch.empty(0)


class TrainingRun(NamedTuple):
    """The parts of a run."""

    config: TrainConfig
    base: LoadedModel
    data: TrainingData
    validation: Validation | None
    general: GeneralMeasure | None
    sampler: BatchSampler
    objective: Objective
    trainer: Trainer
    total: int  # optimizer steps

    @property
    def folder(self) -> Path:
        """Of the unfinished run."""
        return Path(f"{self.config.out}.run")

    @property
    def metric(self) -> str:
        """The one that decides which weights are published."""
        return self.validation.metric if self.validation else self.config.metric or "mrr@10"

    @property
    def log_steps(self) -> int:
        """Steps between loss lines: the published recipe's 500, or a tenth of a short run."""
        return self.config.log_steps or min(500, max(1, self.total // 10))

    def batches(self, first: int, last: int) -> Iterator[Sequence[Batch]]:
        """The batches of each step first..last-1; among ranks, the tokens of our own rows."""
        data, ranks, trainer = self.data, self.trainer.ranks, self.trainer
        epochs = (number // self.sampler.steps_per_epoch for number in range(first, last))
        steps = zip(self.sampler.steps(first, last), epochs, strict=True)
        if isinstance(trainer, CapturedTrainer):  # has the tokens
            rows = ([Batch(data.rows(i, r, e), NONE, NONE) for i, r in step] for step, e in steps)
            yield from trainer.ahead(first, rows)
            return
        for step, epoch in steps:
            yield [data.batch(i, rows, ranks.own_rows(len(rows)), epoch) for i, rows in step]


def prepare(config: TrainConfig, ranks: Ranks | None = None) -> TrainingRun:
    """Read and tokenise the data, open the base model, and set up what trains it."""
    ranks = ranks or Ranks()
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    base = open_base(config)
    if ranks.world_size > 1:
        ranks.check_same({**asdict(config), **run_settings(config, base)})
    sources, validation = read_data(config, base, write=ranks.is_first and not config.dry_run)
    if ranks.world_size > 1:
        ranks.check_same(data_sums(config, sources))
    data = tokenize(config, base, sources)
    check_matryoshka(config, base.encoder.dimension)
    avoid = config.false_negatives == "avoid"
    avoided = tuple(map(data.without_absent, data.text_ids)) if avoid else None
    accumulation = config.gradient_accumulation_steps
    sampler = BatchSampler(data.sizes, config.batch_size, accumulation, config.seed, avoided)
    total = config.max_steps or sampler.steps_per_epoch * config.epochs
    guide = guide_vectors(config.guide, config, base, data, ranks)
    near = guide_vectors("base" if config.stay_near else None, config, base, data, ranks)
    objective = Objective(config, ranks, guide, data.absent)
    epoch = chain.from_iterable(sampler.steps(0, sampler.steps_per_epoch))
    check_contrast(config, objective, ((i, data.rows(i, rows)) for i, rows in epoch))
    encoder = base.encoder.to(torch.device(config.device or default_device()))
    general = general_measure(config, base, ranks)
    encoder.bert.checkpoint_layers = config.gradient_checkpointing
    sparse = train_used_words(encoder, data.tokens, config)
    settings = hyperparameters(config, sampler, total)
    loss: Callable[[Tensor, Any], Tensor] = objective.loss
    if near is not None:
        loss = StayNear(loss, config.stay_near, near, ranks)
    trainer = make_trainer(config, encoder, loss, settings, data, sampler, ranks)
    if sparse is not None:
        trainer.optimizer.register_step_post_hook(sparse.update_table)
    return TrainingRun(config, base, data, validation, general, sampler, objective, trainer, total)


def read_data(
    config: TrainConfig, base: LoadedModel, *, write: bool
) -> tuple[list[Pairs], Validation | None]:
    """The pairs of each --train and the data of --eval, with a line on their columns; bad rows are
    set aside, in a file if `write`."""
    bad_rows = config.bad_rows()
    may_replace = config.overwrite or RunFolder(Path(config.out)).folder.exists()
    bad_rows.check(may_replace, [*config.train, config.eval])
    sources = []
    with bad_rows.open(write=write) as on_bad:
        for path in config.train:
            scored = config.loss != "infonce"
            most = 0 if scored else config.max_negatives
            if config.sample_negatives and most is None:
                most = sys.maxsize
            source = config.pair_source(path, config.columns, max_negatives=most, scores=scored)
            sources.append(collect(source, on_bad))
            say(sources[-1].note)
        validation = Validation.read(config, base, on_bad)
    if bad_rows.count:
        say(f"{bad_rows.count:,} bad rows{f' in {config.skip_bad}' if write else ''}")
    return [pairs.distinct() for pairs in sources] if config.distinct else sources, validation


def tokenize(config: TrainConfig, base: LoadedModel, sources: Sequence[Pairs]) -> TrainingData:
    """The rows as token ids; UserError where there is nothing to learn from them."""
    scored = config.loss != "infonce"
    scores = [target_scores(config, pairs) for pairs in sources] if scored else ()
    count, prompts = config.sample_negatives, training_prompts(config, base)
    drawn = None if count is None else NegativeSampler(count, config.seed)
    data = TrainingData.tokenize(sources, base.tokenizer, prompts, scores, drawn)
    if not scored:
        check_negatives(config, data.text_ids)
    return data


def open_base(config: TrainConfig) -> LoadedModel:
    """The base model, with the prompts, dropout and token limit of the flags."""
    alike = config.loss != "infonce"
    loaded = load_pretrained(with_revision(config.model, config.revision))
    base = with_prompts(loaded, config.query_prompt, config.document_prompt, alike=alike)
    if config.dropout is not None:
        for module in base.encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
    return base if config.max_length is None else base.with_max_length(config.max_length)


def training_prompts(config: TrainConfig, base: LoadedModel) -> Prompts:
    """The prompts of both sides of a pair. Scored pairs are texts of one kind: unless flags say
    otherwise, they have the model's default prompt, as `evaluate` reads them."""
    if config.loss == "infonce":
        return retrieval_prompts(base)
    return pair_prompts(base, config.query_prompt, config.document_prompt)


def general_measure(config: TrainConfig, base: LoadedModel, ranks: Ranks) -> GeneralMeasure | None:
    """What is measured of general ability, if anything is evaluated."""
    if config.eval is None and config.general is None and config.mix != "auto":
        return None
    return read_general(config.general, general_encoders(base, ranks)[0])


def guide_vectors(
    name: str | None, config: TrainConfig, base: LoadedModel, data: TrainingData, ranks: Ranks
) -> Tensor | None:
    """Unit vectors (M, G) of the inputs by a frozen model: "base", or a folder or hub name."""
    if name is None:
        return None
    guide = base if name == "base" else load_pretrained(name)
    device = torch.device(config.device or default_device())
    guide.encoder.to(device)
    prompts = data.prompts if guide is base else guide_prompts(guide, data.prompts)
    parts = []
    for role, prompt in enumerate(prompts):
        texts = prompt.before([data.texts[i] for i in data.by_role[role]])
        with Progress("guide", ranks.own_rows(len(texts)).stop, "texts") as progress:
            encode = partial(
                encode_texts,
                guide.encoder,
                guide.tokenizer,
                normalize=True,
                prompt_tokens=prompt.tokens,
                progress=progress.at,
            )
            parts.append(ranks.split_work(encode, texts))
    return torch.from_numpy(np.concatenate(parts)).to(device)


def guide_prompts(guide: LoadedModel, prompts: Prompts) -> Prompts:
    """Those of the guide's own folder, if it has any; else the run's."""
    if any(guide.settings.prompts.values()):
        return retrieval_prompts(guide)
    return retrieval_prompts(guide, prompts.query.text, prompts.document.text)


def train_used_words(
    encoder: SentenceEncoder, tokens: TokenizedTexts, config: TrainConfig
) -> SparseEmbedding | None:
    """Train only the word embeddings that the texts use, unless weights decay or most are used."""
    table = encoder.bert.embeddings.word_embeddings
    used = torch.from_numpy(np.unique(tokens.ids).astype(np.int64))
    if config.weight_decay or len(used) > table.num_embeddings // 2:
        return None
    encoder.bert.embeddings.word_embeddings = sparse = SparseEmbedding(table, used)
    return sparse


def hyperparameters(config: TrainConfig, sampler: BatchSampler, steps: int) -> Hyperparameters:
    """The flags of the same names, and the step at which the schedule ends."""
    if config.recipe == "fit" and not config.max_steps:
        # fit() leaves ragged batches out of its schedule: its last steps have a learning rate of 0.
        steps = sampler.full_batches_per_epoch * config.epochs
    _, *names = (item.name for item in fields(Hyperparameters))
    return Hyperparameters(steps, *(getattr(config, name) for name in names))


def data_sums(config: TrainConfig, sources: Sequence[Pairs]) -> dict[str, Any]:
    """What tells whether the data are the same: by their texts, for a pipe is read only once."""
    pairs = zip(config.train, sources, strict=True)
    return {f"data {path}": source.digest() for path, source in pairs}


def run_settings(config: TrainConfig, base: LoadedModel) -> dict[str, Any]:
    """Settings that determine a run's numbers; a resumed run must have the same, and data_sums."""
    flags = flag_values(config, may_change=False)
    measured = [path for path in (config.eval, config.general) if path and Path(path).is_file()]
    data = {f"data {path}": manifest.sha256_file(path) for path in measured}
    models = {"base model": base.fingerprint()}
    if config.guide not in (None, "base"):
        models["guide"] = load_pretrained(str(config.guide)).fingerprint()
    return {**flags, **data, **models}
