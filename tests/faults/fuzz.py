"""Fuzz targets: every reader of users' files, the manifest and a model folder's settings, driven by
atheris.

    python -m tests.faults.fuzz csv SECONDS SEED

runs one of them; `make faults` runs them all. What a target must do with any bytes: read them, or
raise a UserError of one line that names the file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from minilm_retriever.data import texts
from tests.conftest import ROOT
from tests.faults.row import Outcome, Row, Scene, Skipped, patched
from tests.faults.seeds import SEEDS

TARGETS = tuple(SEEDS)
SECONDS_A_FAULT = 1.0


def target(kind: str, folder: Path) -> Callable[[bytes], None]:
    """What reads the bytes. A reader for each format, the manifest, a settings file."""
    from minilm_retriever.data import lines, pairs
    from minilm_retriever.errors import UserError
    from minilm_retriever.pretrained.settings import read_json
    from minilm_retriever.storage import manifest

    lines.MAX_ROW_BYTES = 1 << 20
    name = {"gzip": "fuzz.csv.gz", "manifest": manifest.NAME, "settings": "config.json"}.get(
        kind, f"fuzz.{kind}"
    )
    path = folder / name

    def read() -> None:
        if kind == "manifest":
            manifest.verify_folder(folder)
        elif kind == "settings":
            read_json(path)
        else:
            for _ in texts.read_texts(path, on_bad=lambda _: None):
                pass
            if kind not in ("txt",):
                pairs.read_pairs(path)

    def one(raw: bytes) -> None:
        path.write_bytes(raw)
        try:
            read()
        except UserError as fault:
            if "\n" in str(fault) or name not in str(fault):
                raise AssertionError(f"not one line that names the file: {fault}") from fault

    return one


def main(kind: str, seconds: str, seed: str) -> None:
    """Fuzz until the time is over or a fault is found: libFuzzer ends the process then."""
    import atheris

    with atheris.instrument_imports(
        include=[
            "minilm_retriever.data.readers",
            "minilm_retriever.data.lines",
            "minilm_retriever.data.rows",
            "minilm_retriever.data.parquet",
            "minilm_retriever.data.pairs",
        ]
    ):
        import minilm_retriever.data  # noqa: F401
    if os.environ.get("FUZZ_MUTATION"):
        unguarded()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder = Path(name)
        corpus = folder / "corpus"
        corpus.mkdir()
        for number, raw in enumerate(SEEDS[kind]()):
            (corpus / str(number)).write_bytes(raw)
        (folder / "work").mkdir()
        one = target(kind, folder / "work")
        limits = [
            f"-max_total_time={seconds}",
            f"-seed={int(seed) + 1}",
            "-timeout=20",
            "-rss_limit_mb=3000",
            "-max_len=4096",
        ]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={name}/", str(corpus)], one)
        atheris.Fuzz()


def unguarded() -> None:
    """Mutation: errors of decoding are not turned into a user's error."""
    import zlib

    from minilm_retriever import errors
    from minilm_retriever.data import lines, parquet, readers
    from minilm_retriever.pretrained import settings
    from minilm_retriever.storage import manifest

    class Other(Exception):
        """Not a UserError."""

    for module in (lines, parquet, readers, manifest, settings):
        module.UserError = Other  # type: ignore[attr-defined]
    assert zlib and errors


def fuzzed(scene: Scene, count: int) -> Iterator[Outcome]:
    """Every target for a share of `count` seconds; an outcome stands for a second without a
    finding."""
    yield from fuzz_all(scene, count, {})


def fuzz_all(scene: Scene, count: int, environment: dict[str, str]) -> Iterator[Outcome]:
    if find_spec("atheris") is None:
        raise Skipped("atheris is not installed: pip install 'minilm_retriever[fuzz]'")
    seconds = max(1, count // len(TARGETS))
    executions = {}
    for kind in TARGETS:
        command = [sys.executable, "-m", "tests.faults.fuzz", kind, str(seconds), str(scene.seed)]
        mutated = {"FUZZ_MUTATION": "1"} if MUTATED else {}
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, cwd=ROOT,
            env={**os.environ, **environment, **mutated},
        )  # fmt: skip
        runs = re.findall(r"Done (\d+) runs|#(\d+)", done.stderr)
        executions[kind] = int(next((a or b for a, b in reversed(runs)), 0))
        if done.returncode:
            errors = [
                line
                for line in (done.stdout + done.stderr).splitlines()
                if re.match(r"\w*(Error|Exception|Other)\b|==\d+== ERROR", line.strip())
            ]
            yield Outcome("silent", f"{kind}: {' '.join(errors[:2]) or done.stderr[-300:]}")
        else:
            for _ in range(seconds):
                yield Outcome("survived")
    scene.notes["executions"] = executions


MUTATED = False


def readers_unguarded() -> object:
    """Mutation: the readers' errors are no UserErrors."""
    return patched((sys.modules[__name__], "MUTATED", True))


ROWS = (
    Row(
        "fuzz",
        f"seconds of fuzzing (atheris) over {', '.join(TARGETS)}",
        "read, or refused in one line that names the file",
        160,
        fuzzed,
        {"errors passed on raw": readers_unguarded},
        sample=0,
        mutated=16,
        minutes=15,
    ),
)

if __name__ == "__main__":
    main(*sys.argv[1:])
