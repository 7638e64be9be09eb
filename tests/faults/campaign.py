"""The whole campaign: every fault of every row, two rows at a time, and a scorecard of outcomes.

    python -m tests.faults.campaign                          all of it; writes scorecard.json here
    python -m tests.faults.campaign --share 0.05             a twentieth of each row
    python -m tests.faults.campaign --rows power-loss fuzz   some rows
    python -m tests.faults.campaign --rows fuzz --merge      some rows, renewed in scorecard.json

A row runs in a process of its own, with a time limit, in a folder that is removed afterwards. Exit
status 1 where anything was silent, skipped, below its volume or left in the working directory, or
where a mutation (a check switched off) was not noticed."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.faults import (
    bad_rows,
    crashes,
    damage,
    damage_foreign,
    damage_unfinished,
    flags_and_screens,
    full_disk,
    fuzz,
    hostile_clients,
    hostile_models,
    hostile_states,
    hostile_strings,
    hostile_vectors,
    kills,
    non_finite,
    orphans,
    ownership,
    places,
    power,
    strangers,
    streams,
)
from tests.faults.row import Outcome, Row, Scene, Skipped, Tally, outcomes
from tests.faults.scorecard import SCORECARD, commit, machine, table

FAMILIES = (
    kills,
    crashes,
    power,
    full_disk,
    damage,
    damage_foreign,
    damage_unfinished,
    bad_rows,
    hostile_strings,
    strangers,
    hostile_vectors,
    hostile_models,
    hostile_states,
    ownership,
    streams,
    orphans,
    flags_and_screens,
    non_finite,
    places,
    hostile_clients,
    fuzz,
)


ROWS: dict[str, Row] = {row.name: row for family in FAMILIES for row in family.ROWS}


ALL = 1 << 40  # as many faults as there are


EXAMPLES = 10  # silent outcomes that are written out


def run_row(row: Row, place: Path, seed: int, share: float) -> dict[str, Any]:
    """One row and its mutations, in this process."""
    began = time.monotonic()
    volume = max(1, round(row.volume * share))
    exhaustive = row.name in EXHAUSTIVE and share == 1
    scene, tally, skipped = Scene(place / "row", seed), Tally(), None
    scene.place.mkdir(parents=True)
    try:
        for outcome in outcomes(row, scene, ALL if exhaustive else volume):
            tally.add(outcome)
    except Skipped as reason:
        skipped = str(reason)
    except Exception as fault:
        tally.add(Outcome("silent", f"the campaign itself: {type(fault).__name__}: {fault}"))
    mutations = {}
    if not skipped:
        for name in row.mutations:
            mutations[name] = mutated(row, name, place / "mutated", seed)
            shutil.rmtree(place / "mutated", ignore_errors=True)
    result = {
        "fault": row.fault,
        "must hold": row.holds,
        "volume": volume,
        "injected": tally.injected,
        **{kind: tally.counts[kind] for kind in ("survived", "detected", "silent")},
        "skipped": skipped,
        "seconds": round(time.monotonic() - began, 1),
        "mutations": mutations,
    }
    return (
        result
        | ({"notes": scene.notes} if scene.notes else {})
        | ({"examples": tally.silent[:EXAMPLES]} if tally.silent else {})
    )


# Rows that put in every fault there is; their volume is the least that this has to come to.
EXHAUSTIVE = {
    "crash-at-every-operation",
    "refusal-at-every-operation",
    "bad-rows",
    "non-finite",
    "hostile-folders",
}


def mutated(row: Row, name: str, place: Path, seed: int) -> dict[str, int]:
    """The row's faults with a check switched off: how many were injected, and how many of
    them were noticed."""
    scene, tally = Scene(place, seed), Tally()
    place.mkdir(parents=True)
    with row.mutations[name]():
        for outcome in row.inject(scene, row.mutated):
            tally.add(outcome)
    return {"injected": tally.injected, "caught": tally.counts["silent"]}


def failures(name: str, result: dict[str, Any]) -> list[str]:
    """Why a row fails."""
    reasons = []
    if result["skipped"]:
        reasons.append(f"SKIPPED: {result['skipped']}")
    elif result["injected"] < result["volume"]:
        reasons.append(f"{result['injected']} injected, {result['volume']} wanted")
    if result["silent"]:
        reasons += [f"SILENT: {where}" for where in result.get("examples", [])]
    for mutation, counts in result["mutations"].items():
        if not counts["caught"]:
            reasons.append(
                f"the mutation {mutation!r} was not noticed in {counts['injected']} faults"
            )
    return [f"{name}: {reason}" for reason in reasons]


def in_a_process(row: Row, seed: int, share: float) -> dict[str, Any]:
    """A row in a process group of its own: what hangs is ended, what is left is removed."""
    place = Path(
        tempfile.mkdtemp(prefix="faults-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    )
    place.chmod(0o755)
    result_file, output = place / "result.json", place / "output"
    command = [
        sys.executable,
        "-m",
        "tests.faults.campaign",
        "--one",
        row.name,
        str(place),
        str(seed),
        str(share),
    ]
    if row.name == "full-file-system" and os.geteuid():
        command = ["unshare", "--user", "--map-root-user", "--mount", *command]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        with output.open("wb") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, cwd=ROOT, env=environment, start_new_session=True
            )
            try:
                process.wait(60 * row.minutes)
            except subprocess.TimeoutExpired:
                pass
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if result_file.exists():
            return dict(json.loads(result_file.read_bytes()))
        words = output.read_text("utf-8", "replace").strip().splitlines()
        ended = f"no result after {row.minutes:g} minutes, or ended with {process.returncode}"
        reason = f"{ended}: {' '.join(words[-3:])}"
        empty = {
            "fault": row.fault,
            "must hold": row.holds,
            "volume": max(1, round(row.volume * share)),
            "injected": 0,
        }
        return {
            **empty,
            "survived": 0,
            "detected": 0,
            "silent": 0,
            "skipped": reason,
            "seconds": 0,
            "mutations": {},
        }
    finally:
        shutil.rmtree(place, ignore_errors=True)


def campaign(
    names: list[str], seed: int, share: float, scorecard: Path | None, jobs: int, merge: bool
) -> int:
    """Run rows, `jobs` at a time, the longest first; returns the exit status."""
    began, rows, made_from = time.monotonic(), dict[str, dict[str, Any]](), commit()
    if merge and scorecard:
        rows |= json.loads(scorecard.read_bytes())["rows"]

    def one(name: str) -> None:
        result = rows[name] = in_a_process(ROWS[name], seed, share)
        word = "SKIPPED" if result["skipped"] else f"{result['silent']} silent"
        print(f"{name}: {result['injected']} injected, {word}, {result['seconds']} s", flush=True)
        result["commit"] = made_from
        if scorecard:
            ordered = {known: rows[known] for known in ROWS if known in rows}
            head = {
                "commit": made_from,
                "seed": seed,
                "share": share,
                # Two rows run at a time; rows that were merged have run at another time.
                "seconds": round(sum(row["seconds"] for row in rows.values()) / 2),
            }
            head |= {"machine": machine(), "rows": ordered}
            scorecard.write_text(json.dumps(head, indent=1) + "\n", "utf-8")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, sorted(names, key=lambda name: -ROWS[name].minutes)))
    rows = {name: rows[name] for name in ROWS if name in rows}
    minutes = (time.monotonic() - began) / 60
    print(f"\n{table(rows)}\n\nseed {seed}, {made_from}, {minutes:.1f} minutes")
    problems = [line for name, result in rows.items() for line in failures(name, result)]
    print("\n".join(problems) or "nothing silent, nothing skipped, every mutation noticed")
    return 1 if problems else 0


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--one"]:
        name, place, seed, share = words[1:]
        result = run_row(ROWS[name], Path(place), int(seed), float(share))
        (Path(place) / "result.tmp").write_text(json.dumps(result), "utf-8")
        (Path(place) / "result.tmp").rename(Path(place) / "result.json")
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--share", type=float, default=1.0, help="of each row's volume (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default 0)")
    parser.add_argument(
        "--scorecard",
        type=Path,
        help=f"where to write it (default {SCORECARD.name}, for the whole)",
    )
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time (default 2)")
    parser.add_argument("--merge", action="store_true", help="keep the scorecard's other rows")
    args = parser.parse_args(words)
    whole = args.share == 1 and (args.merge or len(args.rows) == len(ROWS))
    scorecard = args.scorecard or (SCORECARD if whole else None)
    return campaign(args.rows, args.seed, args.share, scorecard, args.jobs, args.merge)


if __name__ == "__main__":
    sys.exit(main())
