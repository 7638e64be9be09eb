"""What a stranger's folder may hold: code, links and paths that lead out, sizes without end."""

from __future__ import annotations

import io
import json
import os
import pickle
import shlex
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minilm_retriever.storage import manifest
from tests.faults.row import Scene

CANARY = "canary"


class Trap:
    """Pickled, it is a command that writes the canary when it is read."""

    def __init__(self, place: Path) -> None:
        self.command = f"touch {shlex.quote(str(place / CANARY))}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **values}), "utf-8")


def pickle_in_place_of_weights(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Trap(folder.parent)))

    return make


def pickle_called_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(folder.parent)))


def pickle_beside(folder: Path) -> None:
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "rng_state.pth",
        "scaler.pkl",
    ):
        (folder / name).write_bytes(pickle.dumps(Trap(folder.parent)))


def code_beside(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text(
        f"import os\nos.system('touch {folder.parent / CANARY}')\n", "utf-8"
    )
    edit(
        folder / "config.json",
        auto_map={"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"},
    )
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_evil.Evil", None]})


def code_and_another_layout(folder: Path) -> None:
    """Weights under old names go through transformers, which knows auto_map."""
    from safetensors.torch import load_file, save_file

    tensors = {
        f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    code_beside(folder)


def another_layout(scene: Scene, template: Path) -> Path:
    """A good folder of that kind, which makes this process import what reading it takes."""
    folder = Path(shutil.copytree(template, scene.room("good") / "model"))
    code_and_another_layout(folder)
    edit(folder / "config.json", auto_map={})
    return folder


def module_of_its_own(folder: Path) -> None:
    code_beside(folder)
    modules = json.loads((folder / "modules.json").read_bytes())
    modules[1]["type"] = "modeling_evil.Evil"
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")


def path_out_of_the_folder(path: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        outside = folder.parent / "outside"
        shutil.copytree(folder / "1_Pooling", outside)
        modules = json.loads((folder / "modules.json").read_bytes())
        modules[1]["path"] = path.replace("OUTSIDE", str(outside))
        (folder / "modules.json").write_text(json.dumps(modules), "utf-8")

    return make


def safetensors_header(size: int, text: bytes = b"") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + text)

    return make


def huge_tensor(folder: Path) -> None:
    """Terabytes are claimed, in the header and in config.json; the file holds 100 bytes."""
    header = {
        "embeddings.word_embeddings.weight": {
            "dtype": "F32",
            "shape": [1 << 40, 32],
            "data_offsets": [0, 1 << 47],
        }
    }
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(100))
    edit(folder / "config.json", vocab_size=1 << 30)


def huge_config(**values: int) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **values)


def header_of_many_tensors(folder: Path) -> None:
    """Megabytes of names for tensors of no bytes."""
    header = {
        f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(20_000)
    }
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)


def weights_are_a_link(folder: Path) -> None:
    (folder.parent / "secret").write_text("a secret", "utf-8")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder.parent / "secret")


def settings_are_a_device(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")


def settings_are_a_pipe(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


def huge_settings(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: a terabyte on paper


def deep_json(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("[" * 1_000_000, "utf-8")
    (folder / "sentence_bert_config.json").unlink()


def tokenizer_bomb(folder: Path) -> None:
    """A vocabulary of thirty thousand pieces that the model has no rows for."""
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    tokenizer["model"]["vocab"] |= {f"piece{n}": n for n in range(1000, 30_000)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")


def manifest_that_leads_out(folder: Path) -> None:
    (folder.parent / "secret").write_text("a secret", "utf-8")
    entry = {"bytes": 8, "sha256": "0" * 64}
    (folder / "manifest.json").write_bytes(manifest.to_bytes({"../secret": entry}, {}))


def vectors_of_objects(folder: Path) -> None:
    """A folder of vectors, its manifest right in every sum, whose array is pickled objects."""
    objects = np.array([Trap(folder.parent)], dtype=object)
    stream = io.BytesIO()
    np.save(stream, objects, allow_pickle=True)
    of_vectors(folder, stream.getvalue())


def vectors_of_a_huge_shape(folder: Path) -> None:
    header = (
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 32), }".ljust(117)
        + b"\n"
    )
    of_vectors(
        folder, b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header + bytes(128), rows=1 << 40
    )


def vectors_with_code_in_the_header(folder: Path) -> None:
    code = f"__import__('os').system('touch {folder.parent / CANARY}')"
    header = f"{{'descr': {code}, 'fortran_order': False, 'shape': (1,)}}"
    raw = header.encode().ljust(245) + b"\n"
    of_vectors(folder, b"\x93NUMPY\x01\x00" + struct.pack("<H", 246) + raw + bytes(128))


def of_vectors(folder: Path, npy: bytes, rows: int = 1) -> None:
    for path in list(folder.rglob("*")):
        if path.is_file():
            path.unlink()
    (folder / "vectors-00000.npy").write_bytes(npy)
    (folder / "rows-00000.jsonl").write_bytes(b'{"id": "0"}\n')
    listed = {
        name: manifest.entry(folder / name) for name in ("vectors-00000.npy", "rows-00000.jsonl")
    }
    info = {
        "rows": rows,
        "dimension": 32,
        "dtype": "float32",
        "ranges": None,
        "unit": True,
        "shard_format": "npy",
    }
    (folder / "manifest.json").write_bytes(
        manifest.to_bytes(listed, {"vectors": {**info, "shards": [rows]}})
    )


def object_arrays_beside(folder: Path) -> None:
    np.savez(folder / "weights.npz", a=np.array([Trap(folder.parent)], dtype=object))
    (folder / "model.safetensors").rename(folder / "model.npz")


HOSTILE: dict[str, Callable[[Path], None]] = {
    "pytorch_model.bin": pickle_in_place_of_weights("pytorch_model.bin"),
    "model.pkl": pickle_in_place_of_weights("model.pkl"),
    "a pickle called safetensors": pickle_called_safetensors,
    "pickles beside good weights": pickle_beside,
    "auto_map code": code_beside,
    "a module of its own code": module_of_its_own,
    "../ in modules.json": path_out_of_the_folder("../outside"),
    "an absolute path in modules.json": path_out_of_the_folder("OUTSIDE"),
    "a backslash path in modules.json": path_out_of_the_folder("..\\outside"),
    "a header of 2^63 bytes": safetensors_header((1 << 63) - 1),
    "a header of 100 MB that is not there": safetensors_header(100 << 20, b'{"a":'),
    "a deeply nested header": safetensors_header(1_000_000, b"[" * 1_000_000),
    "a header of 20,000 names": header_of_many_tensors,
    "a tensor of terabytes": huge_tensor,
    "a vocabulary of 2^30": huge_config(vocab_size=1 << 30),
    "2^30 layers": huge_config(num_hidden_layers=1 << 30),
    "weights that are a link outside": weights_are_a_link,
    "settings that are /dev/zero": settings_are_a_device,
    "a pipe for a tokenizer": settings_are_a_pipe,
    "settings of a terabyte": huge_settings,
    "a million brackets": deep_json,
    "a tokenizer bomb": tokenizer_bomb,
    "a manifest that leads outside": manifest_that_leads_out,
    "object arrays in .npz": object_arrays_beside,
    "vectors of pickled objects": vectors_of_objects,
    "vectors of a huge shape": vectors_of_a_huge_shape,
    "code in an .npy header": vectors_with_code_in_the_header,
    "auto_map code and weights for transformers": code_and_another_layout,
}
