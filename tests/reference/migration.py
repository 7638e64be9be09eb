"""The pairs of docs/from_sentence_transformers.md: code of sentence-transformers, and ours.

In the peer's environment, from the repository's root:

    python tests/reference/migration.py --out migration.json       what its code gives
    python tests/reference/migration.py --compare                  and whether that is migration.json

tests/test_migration.py runs ours against that file."""

import argparse
import copy
import csv
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODEL = ROOT / "checkpoints" / "all-MiniLM-L6-v2"
PAGE, KNOWN = ROOT / "docs" / "from_sentence_transformers.md", HERE / "migration.json"
BLOCK = re.compile(r"```python (before|after)\n(.*?)```", re.S)


def blocks(kind: str) -> list[str]:
    """The code of one side, in the page's order."""
    return [code for side, code in BLOCK.findall(PAGE.read_text("utf-8")) if side == kind]


def inputs() -> dict[str, Any]:
    """The lists that the page names."""
    with (ROOT / "examples/job_skills/unseen_occupations.csv").open(encoding="utf-8") as file:
        rows = [(row["description"], row["skills"]) for row in csv.DictReader(file)]
    distinct = list({skills: (text, skills) for text, skills in rows}.values())
    queries, documents = zip(*distinct[:24], strict=True)
    texts = ["He bakes bread.", "", "She repairs watches, clocks and barometers."]
    return {
        "texts": texts,
        "queries": list(queries),
        "documents": list(documents),
        "pairs": distinct[:16],
    }


def results(code: list[str], model: Path = MODEL) -> list[Any]:
    """What each block leaves in `result`, as JSON has it; each with a copy of the first's model."""
    found, before = [], Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "checkpoints").mkdir()
        (Path(place) / "checkpoints" / MODEL.name).symlink_to(model)
        os.chdir(place)
        try:
            first = inputs()
            for block in code:
                names = first if block is code[0] else {**first, **copies(first)}
                exec(block, names)
                result = names["result"]
                found.append(result.tolist() if hasattr(result, "tolist") else result)
        finally:
            os.chdir(before)
    return json.loads(json.dumps(found))


def copies(names: dict[str, Any]) -> dict[str, Any]:
    return {name: copy.deepcopy(names[name]) for name in ("model", "encoder") if name in names}


def difference(one: Any, other: Any) -> float:
    """The largest of any number in two values of the same shape; infinite where they differ."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = zip(one, other, strict=True)
        return max((difference(a, b) for a, b in pairs), default=0.0)
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other)
    return float("inf")


def main() -> None:
    from peer import Checks, write_json

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=KNOWN)
    parser.add_argument("--compare", action="store_true")
    args = parser.parse_args()
    made = results(blocks("before"))
    if not args.compare:
        write_json(args.out, made)
        return
    checks, known = Checks(), json.loads(KNOWN.read_text("ascii"))
    for number, (one, other) in enumerate(zip(made, known, strict=True), 1):
        checks.at_most(
            f"from_sentence_transformers.md, pair {number}", difference(one, other), 1e-5
        )
    checks.exit()


if __name__ == "__main__":
    main()
