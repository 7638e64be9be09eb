"""Hold the reference loop against recorded runs of the tiny model, made on this machine: bit for
bit for 3.x.

    python tests/reference/replay_fixtures.py --made DIR     exit status 1 on any deviation

DIR/training_*.{json,safetensors} as make_training.py wrote them. On another kind of CPU than the
one that recorded them, the same dropout masks are drawn and the losses agree within 1e-5, but not
bit for bit. 6.x writes its loss in another form, so its runs agree within 1e-5 anywhere."""

import argparse
import json
import tempfile
from pathlib import Path

from peer import Checks, read_pairs

# isort: split
import torch
from reference_loop import replay
from safetensors.torch import load_file

from tests.tiny import make_tiny_bert

LIMIT = 1e-5
EXACT = {"st3": True, "st6": False}
SPARE = tuple(
    f"fit-dropout-{seed}" for seed in range(43, 47)
)  # as fit-dropout-42, with other seeds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--made", type=Path, required=True, help="folder of training fixtures")
    made = parser.parse_args().made

    checks = Checks()
    for peer in (peer for peer in EXACT if (made / f"training_{peer}.json").exists()):
        runs = json.loads((made / f"training_{peer}.json").read_text("ascii"))["runs"]
        kept = load_file(made / f"training_{peer}.safetensors")
        for name, run in runs.items():
            if run["model"] != "tiny" or name in SPARE:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                folder = make_tiny_bert(Path(scratch) / "tiny", dropout=run["dropout"])
                losses, weights = replay(run, folder, read_pairs())
            difference = max(abs(a - b) for a, b in zip(losses, run["losses"], strict=True))
            if EXACT[peer]:
                same = sum(a == b for a, b in zip(losses, run["losses"], strict=True))
                figure = (
                    f"{same} of {len(losses)} losses identical, largest difference {difference:.2g}"
                )
                checks.line(f"reference loop, {peer} {name}: losses", same == len(losses), figure)
            else:
                checks.at_most(f"reference loop, {peer} {name}: losses", difference, LIMIT)
            if EXACT[peer] and run["keep"]:
                unequal = [
                    p
                    for p, tensor in weights.items()
                    if not torch.equal(tensor, kept[f"{name}/{p}"])
                ]
                figure = f"{len(weights) - len(unequal)} of {len(weights)} tensors identical"
                checks.line(f"reference loop, {peer} {name}: weights", not unequal, figure)
    checks.exit()


if __name__ == "__main__":
    main()
