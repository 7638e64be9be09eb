"""NaN and infinity: in a loss, a gradient, a weight, a state, a vector."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from minilm_retriever.core.model import SentenceEncoder
from minilm_retriever.core.trainer import Batch, Trainer
from minilm_retriever.encoder import Encoder, encode_texts
from minilm_retriever.encoding import shard_encoder
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import encode_files
from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_folders
from minilm_retriever.training import callbacks, checkpoint
from minilm_retriever.training.run import train
from tests.faults.row import Outcome, Row, Scene, judge, patched
from tests.faults.scenes import texts_file, tiny_model, train_config

NAN, INFINITY = float("nan"), float("inf")


def poisoned_loss(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda loss: loss * value


def poisoned_gradient(loss: torch.Tensor) -> torch.Tensor:
    """A loss that is finite, with a gradient that is not."""
    return loss + (loss - loss.detach()).clamp(min=0).sqrt()


def infinite_gradient(loss: torch.Tensor) -> torch.Tensor:
    """The same with infinity."""
    return loss + (loss - loss.detach()) * 1e38 * 1e38


def in_training(
    scene: Scene, poison: Callable[[torch.Tensor], torch.Tensor], at: int, accumulate: int = 1
) -> str:
    """Poison the batch `at`; the step is not taken, its rows are named and the last good state
    stays."""
    out = scene.room("poisoned") / "out"
    config = replace(
        train_config(scene.place, out, steps=4, save=1), gradient_accumulation_steps=accumulate
    )
    seen, real, steps = [0], Trainer.batch_loss, [0]

    def batch_loss(self: Trainer, batch: Batch) -> torch.Tensor:
        seen[0] += 1
        loss = real(self, batch)
        return poison(loss) if seen[0] == at else loss

    optimizer_step = torch.optim.AdamW.step

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in parameters]
        result = optimizer_step(self, *args, **kwargs)
        steps[0] += any(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
        return result

    with patched((Trainer, "batch_loss", batch_loss), (torch.optim.AdamW, "step", counted)):
        message = error_of(lambda: train(config))
    good = (at - 1) // accumulate
    newest = checkpoint.latest(Path(f"{out}.run")).path
    kept = newest.name if newest else "the base model"
    wanted = f"step-{good:08d}" if good else "the base model"
    if (
        not re.search(rf"of step {good + 1} is not finite", message)
        or "pairs-42.csv:" not in message
    ):
        return message or "no error"
    return (
        ""
        if kept == wanted and wanted in message and steps[0] == good
        else f"{kept} stands, {steps[0]} steps were taken: {message}"
    )


def error_of(act: Callable[[], object]) -> str:
    """The one line of a UserError; "" where there is none."""
    try:
        with redirect_stderr(io.StringIO()):
            act()
    except UserError as fault:
        return str(fault)
    return ""


def too_high_a_rate(scene: Scene, rate: float, steps: int) -> str:
    """A learning rate that blows the weights up: nothing is published, the last good state
    stays."""
    out = scene.room("too high") / "out"
    config = train_config(scene.place, out, steps=steps, save=1)
    vars(config)["learning_rate"] = rate  # beyond what a flag may be
    message = error_of(lambda: train(config))
    if "finite" not in message or out.exists():
        return f"{'published' if out.exists() else 'stopped'}: {message}"
    for state in Path(f"{out}.run").glob("step-*"):
        if not all(
            bool(t.isfinite().all()) for t in load_file(state / "model.safetensors").values()
        ):
            return f"{state.name} keeps weights that are not finite"
    return ""


def in_weights(scene: Scene, value: float, open_it: Callable[[Path], object]) -> str:
    """One weight of a model's file; opening names its tensor."""
    folder = Path(shutil.copytree(tiny_model(scene.place), scene.room("weights") / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][3, 5] = value
    save_file(tensors, folder / "model.safetensors")
    message = error_of(lambda: open_it(folder))
    return (
        ""
        if "encoder.layer.1.output.dense.weight holds a value that is not finite" in message
        else message or "opened"
    )


def in_a_state(scene: Scene) -> str:
    """A state whose manifest is right and whose weights are not finite: the run does not
    resume from it."""
    out = scene.room("state") / "out"
    config = train_config(scene.place, out, steps=4, save=1, keep=3)
    with (
        patched((Trainer, "step", dying_at(3))),
        redirect_stderr(io.StringIO()),
        suppress(KeyboardInterrupt),
    ):
        train(config)
    newest = checkpoint.latest(Path(f"{out}.run")).path
    assert newest is not None
    tensors = load_file(newest / "model.safetensors")
    tensors["bert.embeddings.LayerNorm.weight"][0] = NAN
    save_file(tensors, newest / "model.safetensors")
    atomic_folders.write_manifest(newest)
    message = error_of(lambda: train(config))
    return "" if "not finite" in message and not out.exists() else message or "it went on"


def dying_at(step: int) -> Callable[..., Any]:
    real = Trainer.step

    def dying(self: Trainer, number: int, batches: Any) -> Any:
        if number == step:
            raise KeyboardInterrupt
        return real(self, number, batches)

    return dying


def in_a_vector(scene: Scene, value: float, bulk: bool) -> str:
    """A vector that is not finite is neither returned nor written; the text is named."""
    forward = SentenceEncoder.forward
    folder = tiny_model(scene.place)

    def poisoned(self: SentenceEncoder, *args: Any, **kwargs: Any) -> torch.Tensor:
        vectors = forward(self, *args, **kwargs).clone()
        vectors[0, 3] = value
        return vectors

    out = scene.room("vectors") / "out"
    source = str(texts_file(scene.place, 8))
    with patched((SentenceEncoder, "forward", poisoned)):
        if bulk:
            message = error_of(
                lambda: encode_files(
                    EncodeConfig(inputs=(source,), model=str(folder), out=str(out))
                )
            )
            return (
                ""
                if re.search("the vector of row '[0-9]' is not finite", message)
                and not out.exists()
                else message or "written"
            )
        message = error_of(
            lambda: Encoder.from_pretrained(folder, device="cpu").encode(
                ["soil", "a nurse and a cook"]
            )
        )
    return "" if "the vector of text 1 is not finite" in message else message or "given"


CASES: dict[str, Callable[[Scene], str]] = {
    "a NaN loss in the first step": lambda scene: in_training(scene, poisoned_loss(NAN), 1),
    "a NaN loss in the third step": lambda scene: in_training(scene, poisoned_loss(NAN), 3),
    "an infinite loss": lambda scene: in_training(scene, poisoned_loss(INFINITY), 2),
    "a NaN loss in a later batch of a step": lambda scene: in_training(
        scene, poisoned_loss(NAN), 4, 2
    ),
    "a NaN gradient under a finite loss": lambda scene: in_training(scene, poisoned_gradient, 3),
    "an infinite gradient under a finite loss": lambda scene: in_training(
        scene, infinite_gradient, 2
    ),
    "weights blown up in the last step": lambda scene: too_high_a_rate(scene, 1e39, 1),
    "weights blown up on the way": lambda scene: too_high_a_rate(scene, 1e39, 3),
    "weights too large to compute with": lambda scene: too_high_a_rate(scene, 1e37, 1),
    "a NaN weight in a model": lambda scene: in_weights(
        scene, NAN, lambda folder: Encoder.from_pretrained(folder)
    ),
    "an infinite weight in a model to train": lambda scene: in_weights(
        scene,
        -INFINITY,
        lambda folder: train(replace(train_config(scene.place, folder / "out"), model=str(folder))),
    ),
    "a NaN weight in a state": in_a_state,
    "a NaN vector in bulk": lambda scene: in_a_vector(scene, NAN, True),
    "an infinite vector in Python": lambda scene: in_a_vector(scene, INFINITY, False),
}


def non_finite(scene: Scene, count: int) -> Iterator[Outcome]:
    """Each once, or as many of them as asked."""
    for name in list(CASES)[:count]:
        problem = CASES[name](scene)
        yield judge(not problem, "detected", f"{name}: {problem}")


def steps_unchecked() -> object:
    """Mutation: losses and gradients are not checked."""
    return patched((callbacks, "check_finite", lambda *_: None))


def vectors_unchecked() -> object:
    """Mutation: vectors are not checked."""
    unchecked = lambda *_, **__: None  # noqa: E731
    return patched(
        (encode_texts, "check_vectors", unchecked), (shard_encoder, "check_vectors", unchecked)
    )


ROWS = (
    Row(
        "non-finite",
        "NaN and infinity in a loss, a gradient, a weight, a state or a vector",
        "no step taken, rows named, the last good state kept, nothing published",
        12,
        non_finite,
        {"steps not checked": steps_unchecked, "vectors not checked": vectors_unchecked},
        sample=14,
        mutated=14,
        minutes=5,
    ),
)
