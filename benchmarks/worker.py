"""One contestant of the benchmark, alone in a process: reads a JSON command a line, answers one a
line.

    python worker.py KIND SETTINGS_JSON

KIND is a name of CONTESTANTS or TRAINERS.

The driver (bench.py) runs each in the environment that has it, and lets one work at a time."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Settings = dict[str, Any]
Encode = Callable[[list[str]], Any]


# --- encoding -------------------------------------------------------------------------------------


def ours(settings: Settings, precision: str = "fp32") -> Encode:
    import torch

    from minilm_retriever.encoder.command import open_for_command

    torch.set_num_threads(settings["threads"])
    encoder = open_for_command(settings["model"], "cpu", precision)
    return lambda texts: encoder.encode(texts[0] if len(texts) == 1 else texts)


def sentence_transformers(settings: Settings, backend: str = "torch") -> Encode:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(settings["threads"])
    options: dict[str, Any] = {}
    if backend == "onnx":
        import onnxruntime as ort

        session = ort.SessionOptions()
        session.intra_op_num_threads = settings["threads"]
        options = {"session_options": session, "provider": "CPUExecutionProvider", "export": True}
    elif backend == "openvino":
        options = {"ov_config": {"INFERENCE_NUM_THREADS": settings["threads"]}, "export": True}
    model = SentenceTransformer(
        settings["model"], device="cpu", backend=backend, model_kwargs=options
    )
    return lambda texts: model.encode(texts, show_progress_bar=False)


def onnxruntime(settings: Settings, file: str = "model.onnx") -> Encode:
    """The usual few lines around a session, sorted by token count: batches of 32, mean pooling,
    unit length."""
    import numpy as np
    import onnxruntime as ort
    from tokenizers import Tokenizer

    options = ort.SessionOptions()
    options.intra_op_num_threads = settings["threads"]
    session = ort.InferenceSession(
        f"{settings['onnx']}/{file}", options, providers=["CPUExecutionProvider"]
    )
    tokenizer = Tokenizer.from_file(f"{settings['onnx']}/tokenizer.json")
    tokenizer.enable_truncation(256)
    tokenizer.no_padding()

    def encode(texts: list[str]) -> Any:
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        out = np.empty((len(ids), 384), dtype=np.float32)
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            padded = np.zeros((len(rows), len(ids[rows[0]])), dtype=np.int64)
            mask = np.zeros_like(padded)
            for i, row in enumerate(rows):
                padded[i, : len(ids[row])] = ids[row]
                mask[i, : len(ids[row])] = 1
            feed = {
                "input_ids": padded,
                "attention_mask": mask,
                "token_type_ids": np.zeros_like(padded),
            }
            hidden = session.run(None, feed)[0]
            pooled = (hidden * mask[..., None].astype(np.float32)).sum(1) / mask.sum(
                1, keepdims=True
            )
            out[rows] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return out

    return encode


def fastembed(settings: Settings) -> Encode:
    import numpy as np
    from fastembed import TextEmbedding

    name, folder = "sentence-transformers/all-MiniLM-L6-v2", settings["onnx"]
    model = TextEmbedding(
        name, specific_model_path=folder, threads=settings["threads"], local_files_only=True
    )
    return lambda texts: np.stack(list(model.embed(texts)))


CONTESTANTS = {
    "ours": ours,
    "ours bf16": partial(ours, precision="bf16"),
    "ours int8": partial(ours, precision="int8"),
    "sentence-transformers": sentence_transformers,
    "sentence-transformers onnx": partial(sentence_transformers, backend="onnx"),
    "sentence-transformers openvino": partial(sentence_transformers, backend="openvino"),
    "onnxruntime": onnxruntime,
    "onnxruntime int8": partial(onnxruntime, file="model_int8.onnx"),
    "fastembed": fastembed,
}


# --- training -------------------------------------------------------------------------------------


def train_ours(
    settings: Settings, next_block: Callable[[int, float], int], precision: str = "fp32"
) -> None:
    """Our loop's steps: `next_block(done, loss)` is called after each block and says how many steps
    are next."""
    import torch

    from minilm_retriever.kernels.memory import keep_freed_memory
    from minilm_retriever.training.config import TrainConfig
    from minilm_retriever.training.prepare import prepare
    from minilm_retriever.training.run import KEPT_BYTES

    torch.set_num_threads(settings["threads"])
    config = TrainConfig(
        train=(settings["pairs"],),
        model=settings["model"],
        out=settings["out"],
        batch_size=settings["batch_size"],
        max_steps=settings["steps"],
        precision=precision,
    )
    keep_freed_memory(KEPT_BYTES)
    run = prepare(config)
    block, done, loss = next_block(0, 0.0), 0, 0.0
    for number, batches in enumerate(run.batches(0, run.total)):
        loss += float(run.trainer.step(number, batches).losses.sum())
        done += 1
        if done == block:
            block, done, loss = next_block(done, loss), 0, 0.0


def train_sentence_transformers(
    settings: Settings, next_block: Callable[[int, float], int]
) -> None:
    """sentence-transformers' own Trainer with the published recipe's arguments, held after each
    block of steps."""
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    torch.set_num_threads(settings["threads"])
    model = SentenceTransformer(settings["model"], device="cpu")
    with Path(settings["pairs"]).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=settings["out"],
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch_size"],
        learning_rate=5e-5,
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=42,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    sums = {"loss": 0.0}

    class Loss(MultipleNegativesRankingLoss):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().forward(*args, **kwargs)
            sums["loss"] += float(loss.detach())
            return loss

    class Hold(TrainerCallback):
        block, done = 0, 0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.block = next_block(0, 0.0)

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.done += 1
            if self.done == self.block:
                self.block, self.done = next_block(self.done, sums["loss"]), 0
                sums["loss"] = 0.0

    columns = {name: [row[name] for row in rows] for name in ("sentence_0", "sentence_1")}
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        loss=Loss(model),
        callbacks=[Hold()],
    )
    trainer.train()


TRAINERS = {
    "ours": train_ours,
    "ours bf16": partial(train_ours, precision="bf16"),
    "sentence-transformers": train_sentence_transformers,
}


# --- what is measured -----------------------------------------------------------------------------


def matmul_peak(threads: int) -> float:
    """GFLOP/s in float32 on the model's own matrix shapes at 1,024 tokens, by torch's fastest
    kernel.

    Each shape alone on matrices that stay in the caches, best of several: a rate that no forward
    pass can exceed."""
    import torch

    torch.set_num_threads(threads)
    flop = seconds = 0.0
    with torch.inference_mode():
        for inputs, outputs in ((384, 1152), (384, 384), (384, 1536), (1536, 384)):
            x, weight, bias = (
                torch.randn(1024, inputs),
                torch.randn(outputs, inputs),
                torch.randn(outputs),
            )
            packed = (
                torch.ops.mkldnn._reorder_linear_weight(weight)
                if torch.backends.mkldnn.is_available()
                else None
            )
            best = float("inf")
            for _ in range(12):
                began = time.perf_counter()
                torch.nn.functional.linear(x, weight, bias)
                middle = time.perf_counter()
                best = min(best, middle - began)
                if packed is not None:
                    torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
                    best = min(best, time.perf_counter() - middle)
            flop, seconds = flop + 2 * 1024 * inputs * outputs, seconds + best
    return flop / seconds / 1e9


def peak_memory() -> float:
    """The most memory that this process held so far, MB (VmHWM; ru_maxrss would count the parent's
    too)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(
            line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM")
        )
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Wall and processor seconds of some work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def main(kind: str, settings: Settings) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not get between the answers

    def read() -> dict[str, Any]:
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        return dict(json.loads(line))

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")

    if settings.get("pairs"):
        clock = {}

        def next_block(done: int, loss: float) -> int:
            if done:
                wall, cpu = time.perf_counter() - clock["wall"], time.process_time() - clock["cpu"]
                answer(
                    {
                        "seconds": wall,
                        "cpu": cpu,
                        "steps": done,
                        "loss": loss / done,
                        "memory": peak_memory(),
                    }
                )
            command = read()
            clock.update(wall=time.perf_counter(), cpu=time.process_time())
            return int(command["steps"])

        TRAINERS[kind](settings, next_block)
        return
    encode = CONTESTANTS[kind](settings)
    answer({"ready": True, "memory": peak_memory()})
    while True:
        command = read()
        if "peak" in command:
            answer({"gflops": matmul_peak(settings["threads"])})
            continue
        texts = json.loads(Path(command["texts"]).read_text("utf-8")) if "texts" in command else []
        if "vectors" in command:
            import numpy as np

            np.save(command["vectors"], np.asarray(encode(texts), dtype=np.float32))
            answer({})
        elif command.get("one_by_one"):
            each = [timed(lambda text=text: encode([text])) for text in texts]
            seconds, cpu = ([t[key] for t in each] for key in ("seconds", "cpu"))
            answer({"each": seconds, "cpu": sum(cpu), "memory": peak_memory()})
        else:
            answer({**timed(lambda texts=texts: encode(texts)), "memory": peak_memory()})


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
