"""Hold fixtures made just now against the committed ones.

    PEER/bin/python tests/reference/compare_fixtures.py --made DIR     exit status 1 on any deviation

DIR/embeddings.{npz,json} and DIR/training_*.{json,safetensors}, as far as they are there, against
those beside this script. Numbers may differ by what another CPU or thread count does to float32;
orders, ids and hashes may not."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from peer import HERE, Checks  # first: it keeps the model hub out of the way

# isort: split
import numpy as np
import torch
from safetensors.torch import load_file

from tests.tiny import make_tiny_bert

EMBEDDINGS = 1e-6
LOSSES = {"tiny": 1e-5, "real": 1e-4}
VECTORS = 1e-9  # in float64
CHANGE = 1e-3  # relative L2 distance of the weight change


def load_json(path: Path) -> Any:
    return json.loads(path.read_text("ascii"))


def largest_difference(ours: list[float], theirs: list[float]) -> float:
    """Infinite where one is longer."""
    return (
        max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        if len(ours) == len(theirs)
        else float("inf")
    )


def compare_embeddings(made: Path, checks: Checks) -> None:
    new, old = load_json(made / "embeddings.json"), load_json(HERE / "embeddings.json")
    for key in ("texts_sha256", "model_sha256", "max_tokens", "token_ids"):
        checks.equal(f"embeddings: {key}", new[key], old[key])
    ours, theirs = (np.load(folder / "embeddings.npz")["embeddings"] for folder in (made, HERE))
    checks.at_most("embeddings: largest difference", float(np.abs(ours - theirs).max()), EMBEDDINGS)


def compare_losses(made: Path, checks: Checks) -> None:
    new, old = (load_json(folder / "losses_st6.json") for folder in (made, HERE))
    for name, theirs in old["vectors"]["losses"].items():
        ours = new["vectors"]["losses"][name]
        checks.at_most(f"loss {name}: value", abs(ours["value"] - theirs["value"]), VECTORS)
        difference = np.abs(np.array(ours["gradients"]) - theirs["gradients"]).max()
        checks.at_most(f"loss {name}: gradients", float(difference), VECTORS)
    for name, theirs in old["runs"].items():
        difference = largest_difference(new["runs"][name]["losses"], theirs["losses"])
        checks.at_most(f"run {name}: losses", difference, LOSSES["tiny"])
    checks.equal("mined negatives", new["mined"], old["mined"])


def weight_changes(
    folder: Path, peer: str, run: str, start: dict[str, torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    """Parameter -> what training added to it: whole for the tiny model, the sampled entries for the
    real one.

    Key biases are left out: their true gradient is zero, and Adam amplifies its rounding."""
    kept = load_file(folder / f"training_{peer}.safetensors")
    tensors = {
        name.removeprefix(f"{run}/"): t.double()
        for name, t in kept.items()
        if name.startswith(f"{run}/")
    }
    tensors = {name: tensor for name, tensor in tensors.items() if "key.bias" not in name}
    if start is not None:
        return {name: tensor - start[name].double() for name, tensor in tensors.items()}
    positions = {name: tensor for name, tensor in tensors.items() if name.endswith("/indices")}
    changes = {name: tensor for name, tensor in tensors.items() if name.endswith("/change")}
    return positions | changes


def relative_distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """L2 norm of the difference of all tensors together, over that of theirs; infinite where they
    do not match."""
    if {name: t.shape for name, t in ours.items()} != {name: t.shape for name, t in theirs.items()}:
        return float("inf")
    if any(
        not torch.equal(ours[name], theirs[name]) for name in theirs if name.endswith("/indices")
    ):
        return float("inf")
    values = [name for name in theirs if not name.endswith("/indices")]
    difference = sum(float((ours[name] - theirs[name]).square().sum()) for name in values)
    return (difference / sum(float(theirs[name].square().sum()) for name in values)) ** 0.5


def compare_training(made: Path, peer: str, checks: Checks) -> None:
    new, old = (load_json(folder / f"training_{peer}.json") for folder in (made, HERE))
    for key in ("pairs_sha256", "tiny_sha256", "model_sha256"):
        checks.equal(f"training {peer}: {key}", new[key], old[key])
    checks.equal(f"training {peer}: runs", sorted(new["runs"]), sorted(old["runs"]))
    with tempfile.TemporaryDirectory() as scratch:
        tiny = load_file(make_tiny_bert(Path(scratch) / "tiny") / "model.safetensors")
    recorded = ("order", "losses", "change_norms")
    for name in sorted(set(new["runs"]) & set(old["runs"])):
        ours, theirs = new["runs"][name], old["runs"][name]
        settings = [
            {key: value for key, value in run.items() if key not in recorded}
            for run in (ours, theirs)
        ]
        checks.equal(f"training {peer} {name}: settings and learning rates", *settings)
        checks.equal(f"training {peer} {name}: order of rows", ours["order"], theirs["order"])
        limit = LOSSES[theirs["model"]]
        checks.at_most(
            f"training {peer} {name}: losses",
            largest_difference(ours["losses"], theirs["losses"]),
            limit,
        )
        if theirs["keep"]:
            start = tiny if theirs["model"] == "tiny" else None
            changes = [weight_changes(folder, peer, name, start) for folder in (made, HERE)]
            checks.at_most(
                f"training {peer} {name}: weight change", relative_distance(*changes), CHANGE
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--made", type=Path, required=True, help="folder of fixtures made just now")
    made = parser.parse_args().made

    checks = Checks()
    if (made / "embeddings.json").exists():
        compare_embeddings(made, checks)
    if (made / "losses_st6.json").exists():
        compare_losses(made, checks)
    for peer in ("st3", "st6"):
        if (made / f"training_{peer}.json").exists():
            compare_training(made, peer, checks)
    checks.exit()


if __name__ == "__main__":
    main()
