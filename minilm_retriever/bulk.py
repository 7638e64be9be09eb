"""encode.py's job: records of text in, vectors with their ids and texts out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from minilm_retriever import files, folders
from minilm_retriever.config import EncodeConfig
from minilm_retriever.data import read_texts
from minilm_retriever.encoder import Encoder
from minilm_retriever.encoding import encode_texts
from minilm_retriever.errors import UserError
from minilm_retriever.progress import Progress
from minilm_retriever.vectors import write_shard


def encode_files(config: EncodeConfig) -> str:
    """Encode all inputs to a folder of shards, or to one .npy with the ids beside it; returns a line that says so."""
    out = Path(config.out)
    if out.exists() and not config.overwrite:
        raise UserError(f"{out}: exists; choose another --out, or replace it with --overwrite")
    if config.threads:
        torch.set_num_threads(config.threads)
    encoder = Encoder.from_pretrained(config.model, device=config.device)
    records = list(read_texts(config.inputs, text=config.text, id=config.id, format=config.format))
    ids, texts = [record.id for record in records], [record.text for record in records]
    with Progress("encoding", len(texts), "texts") as progress:
        vectors = encode_texts(
            encoder.model.encoder,
            encoder.model.tokenizer,
            texts,
            batch_size=config.batch_size,
            progress=progress.at,
        )
    if out.suffix == ".npy":
        with files.writing(out) as stream:
            np.save(stream, vectors, allow_pickle=False)
        files.write_text(out.with_suffix(".ids.txt"), "".join(f"{i}\n" for i in ids))
        return f"{len(ids)} vectors of {encoder.dimension} in {out}, their ids in {out.with_suffix('.ids.txt')}"
    info = {
        "model": encoder.model.fingerprint(),
        "rows": len(ids),
        "dimension": encoder.dimension,
        "dtype": "float32",
        "shard_size": config.shard_size,
    }
    with folders.publish_folder(out, overwrite=config.overwrite, extra={"vectors": info}) as making:
        for number, start in enumerate(range(0, len(ids), config.shard_size)):
            rows = slice(start, start + config.shard_size)
            write_shard(making, number, ids[rows], texts[rows], vectors[rows])
    return f"{len(ids)} vectors of {encoder.dimension} in {out}"
