"""Model folders that a stranger made to run code, to write or read elsewhere, or to fill the
memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shlex
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minilm_retriever.encoder import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained import json_files, load_weights, model_folder, pipeline
from minilm_retriever.storage import manifest
from minilm_retriever.vectors.vector_folder import open_vectors
from tests.faults.processes import limited
from tests.faults.row import Outcome, Row, Scene, patched
from tests.faults.scenes import tiny_model

MOST = 300 << 20  # bytes of memory that opening a folder of 300 KB may take at its peak
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


def hostile_folders(scene: Scene, count: int) -> Iterator[Outcome]:
    """Opened and used in a process with limits; then its effects are checked."""
    names = list(HOSTILE)[:count]
    template = tiny_model(scene.place)
    Encoder.from_pretrained(
        template, device="cpu"
    )  # the children are forked with what this imports
    if count >= len(HOSTILE):
        load_weights.bert_tensors(another_layout(scene, template))
    rooms = []
    for number, name in enumerate(names):
        room = scene.room(f"stranger{number}")
        HOSTILE[name](Path(shutil.copytree(template, room / "model")))
        rooms.append((room, snapshot(room)))

    def work(number: int) -> str:
        folder, before = rooms[number][0] / "model", peak()
        try:
            open_anything(folder)
            outcome = "survived"
        except UserError as fault:
            outcome = (
                "detected"
                if "\n" not in str(fault) and len(str(fault)) < 2000
                else f"several lines: {fault}"
            )
            outcome += f" {str(fault)[:200]}"
        used = peak() - before
        return outcome if used < MOST else f"{used >> 20} MiB of memory: {outcome}"

    for number, outcome in limited(work, len(names)):
        room, before = rooms[number]
        kind = outcome.partition(" ")[0]
        if (room / CANARY).exists():
            outcome, kind = "code was run", ""
        elif snapshot(room) != before:
            outcome, kind = f"something was written: {sorted(snapshot(room) - before)}", ""
        where = f"{names[number]}: {outcome}"
        yield Outcome(kind, where) if kind in ("survived", "detected") else Outcome("silent", where)  # type: ignore[arg-type]


def open_anything(folder: Path) -> None:
    """As people would: vectors where it says so, else a model."""
    if (folder / "vectors-00000.npy").exists():
        vectors = open_vectors(folder)
        _ = [shard.sum() for shard in vectors.shards]
        return
    vectors = Encoder.from_pretrained(folder, device="cpu").encode(["a nurse", "a cook"])
    if not np.isfinite(vectors).all():
        raise ArithmeticError("vectors that are not finite")


def snapshot(room: Path) -> set[tuple[str, int]]:
    """Names and sizes of all files."""
    return {(str(path.relative_to(room)), path.lstat().st_size) for path in room.rglob("*")}


def peak() -> int:
    """Bytes of memory that this process held at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def pickles_read() -> object:
    """Mutation: weights in a pickle are read."""

    def trusting(folder: Path, name: str = "") -> str:
        for path in sorted(folder.glob("*")):
            if path.suffix in load_weights.PICKLES:
                pickle.loads(path.read_bytes())
        return "no weights"

    return patched((load_weights, "_no_weights", trusting))


def paths_unchecked() -> object:
    """Mutation: paths in modules.json are followed wherever they lead."""
    return patched((pipeline, "inside", lambda folder, relative, named_in: folder / relative))


def sizes_unchecked() -> object:
    """Mutation: files of settings are read whatever their size, devices included."""

    def unlimited(path: Path, largest: int = 0) -> bytes:
        return path.read_bytes()

    return patched((json_files, "read_file", unlimited), (model_folder, "read_file", unlimited))


ROWS = (
    Row(
        "hostile-folders",
        "model folders and vectors made by a stranger: pickles, code, paths, bombs, links, devices",
        "nothing executed, nothing written, memory bounded, one clear line",
        20,
        hostile_folders,
        {"pickles read": pickles_read, "sizes not checked": sizes_unchecked},
        sample=27,
        mutated=22,
        minutes=10,
    ),
)
