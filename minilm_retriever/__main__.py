"""The commands: `minilm-retriever COMMAND` or `python -m minilm_retriever COMMAND`; train.py and
encode.py are two.

Each command imports what it needs when it runs, so that --help answers at once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from minilm_retriever import __version__
from minilm_retriever.curation.config import MineConfig
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.errors import UserError, run_command
from minilm_retriever.flags import add_flags, from_args
from minilm_retriever.pretrained.hub import BASE_FOLDER
from minilm_retriever.training.config import RECIPES, TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    args = parser().parse_args(argv)
    return run_command(lambda: args.command(args))


def parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    top = argparse.ArgumentParser(
        prog="minilm-retriever", description="Fine-tune, encode, retrieve."
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch", help="get the base model, verified")
    fetch.add_argument("--out", default=BASE_FOLDER, help=f"where to (default {BASE_FOLDER})")
    fetch.set_defaults(command=run_fetch)

    train = commands.add_parser("train", help="fine-tune a model on pairs (train.py)")
    add_flags(train, TrainConfig)
    train.set_defaults(command=run_train)

    encode = commands.add_parser("encode", help="encode files of texts (encode.py)")
    add_flags(encode, EncodeConfig, positional=["inputs"])
    encode.set_defaults(command=run_encode)

    inspect = commands.add_parser(
        "inspect", help="what is in your pairs: lengths, repeats, the floor under the loss"
    )
    inspect.add_argument("pairs", metavar="PAIRS", help="CSV, TSV, JSONL or Parquet")
    inspect.add_argument(
        "--columns", nargs="+", metavar="NAME", help="query, document and maybe hard negatives"
    )
    inspect.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="of training (default 16)"
    )
    inspect.add_argument(
        "--model", default=BASE_FOLDER, help=f"whose tokens are counted (default {BASE_FOLDER})"
    )
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(command=run_inspect)

    mine = commands.add_parser("mine", help="add hard negatives to pairs, chosen by a model")
    add_flags(mine, MineConfig, positional=["pairs"])
    mine.set_defaults(command=run_mine)

    closest = commands.add_parser("paraphrases", help="the closest pairs of texts within one file")
    closest.add_argument("file", metavar="FILE", help="texts: lines, CSV, TSV, JSONL or Parquet")
    closest.add_argument("--text", metavar="COLUMN", help="the column that holds the text")
    closest.add_argument(
        "--id", metavar="COLUMN", help="the column that holds the id (default: the row's number)"
    )
    closest.add_argument(
        "-n", type=int, metavar="N", help="the best N pairs (default 100, or all with --threshold)"
    )
    closest.add_argument(
        "--threshold", type=float, metavar="X", help="pairs with a cosine of at least X"
    )
    closest.add_argument(
        "--duplicates", action="store_true", help="pair copies of a text, too, each with the first"
    )
    closest.add_argument(
        "--model", default=BASE_FOLDER, help=f"a model folder or a hub name (default {BASE_FOLDER})"
    )
    closest.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    closest.add_argument(
        "--out", metavar="FILE", help="write .csv, .tsv or .jsonl (default: a table on stdout)"
    )
    closest.add_argument("--overwrite", action="store_true", help="replace what is there")
    closest.set_defaults(command=run_paraphrases)

    index = commands.add_parser(
        "index", help="make an index of vectors, or add documents to one and delete some"
    )
    index.add_argument("folder", metavar="DIR", help="what encode.py wrote, or an index")
    index.add_argument("--out", required=True, metavar="INDEX", help="the index to write")
    index.add_argument(
        "--kind",
        choices=("exact", "hnsw", "ivfpq"),
        help="build it anew of this kind (default: by the number of rows)",
    )
    index.add_argument(
        "--add", nargs="+", default=[], metavar="DIR", help="further folders that encode.py wrote"
    )
    index.add_argument(
        "--delete",
        nargs="+",
        default=[],
        metavar="ID",
        help="ids to leave out, or @FILE with an id a line",
    )
    index.add_argument("--overwrite", action="store_true", help="replace what is there")
    index.set_defaults(command=run_index)

    search = commands.add_parser("search", help="search a folder that encode.py wrote, or an index")
    search.add_argument("folder", metavar="DIR", help="what encode.py or index wrote")
    search.add_argument(
        "queries", metavar="QUERY", nargs="*", help="texts to search for (default: standard input)"
    )
    search.add_argument(
        "--queries",
        dest="file",
        metavar="FILE",
        help="a file of queries: text, CSV, TSV, JSONL, ...",
    )
    search.add_argument("--text", metavar="COLUMN", help="its column of texts")
    search.add_argument("--id", metavar="COLUMN", help="its column of ids")
    search.add_argument("-k", type=int, default=10, help="results a query (default 10)")
    search.add_argument(
        "--model",
        default=BASE_FOLDER,
        help=f"the model it was encoded with (default {BASE_FOLDER})",
    )
    search.add_argument("--out", metavar="FILE", help="where to write (default: standard output)")
    search.add_argument(
        "--format",
        choices=("text", "jsonl", "trec"),
        help="of the answers (default: by --out's ending, else text)",
    )
    search.add_argument(
        "--rescore",
        metavar="DIR",
        help="binary vectors: rank what they find by these, of more bits",
    )
    search.add_argument(
        "--effort",
        type=int,
        metavar="N",
        help="hnsw, ivfpq: candidates kept, or lists looked through, while searching",
    )
    search.set_defaults(command=run_search)

    evaluate = commands.add_parser(
        "evaluate", help="measure retrieval, or similarity, of models side by side"
    )
    evaluate.add_argument("data", metavar="DATA", help="pairs, a BEIR-style folder, or an STS file")
    evaluate.add_argument(
        "--columns", nargs=2, metavar="NAME", help="query and document columns of a pairs file"
    )
    evaluate.add_argument(
        "--corpus", metavar="FILE", help="documents to search besides those of the pairs"
    )
    evaluate.add_argument(
        "--split",
        default="test",
        help="judgements of a BEIR-style folder: qrels/SPLIT.tsv (default test)",
    )
    evaluate.add_argument(
        "--model",
        action="append",
        help=f"a model, or bm25; several are compared in turn (default {BASE_FOLDER})",
    )
    evaluate.add_argument(
        "--run", action="append", metavar="FILE", help="write a model's ranking as a TREC run"
    )
    evaluate.add_argument(
        "--overwrite", action="store_true", help="replace TREC runs that are there"
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(command=run_evaluate)

    verify = commands.add_parser(
        "verify", help="check every byte of a folder, or a .npy, that we wrote"
    )
    verify.add_argument("folders", metavar="DIR|FILE.npy", nargs="+")
    verify.set_defaults(command=run_verify)
    return top


def run_fetch(args: argparse.Namespace) -> None:
    """Get the base model."""
    from minilm_retriever.pretrained import hub

    print(hub.fetch(args.out))


def run_train(args: argparse.Namespace) -> int:
    """Flags -> config -> train. Without --train, the example."""
    if not hasattr(args, "train"):
        if hasattr(args, "eval") or hasattr(args, "columns"):
            raise UserError("--train is missing: the pairs to train on")
        args.train, args.eval = (
            ["examples/job_skills/train.csv"],
            "examples/job_skills/unseen_wordings.csv",
        )
        args.out = getattr(args, "out", "checkpoints/job-skills")
        sys.stderr.write(
            "no --train given: fine-tuning on examples/job_skills with the recipe's defaults\n"
        )
    if not getattr(args, "out", ""):
        raise UserError("--out is missing: the folder to publish the fine-tuned model in")
    config = from_args(TrainConfig, args, **RECIPES[getattr(args, "recipe", "printed")])

    from minilm_retriever.training.run import train

    return train(config)


def run_inspect(args: argparse.Namespace) -> None:
    """What is in a file of pairs."""
    from minilm_retriever.curation.inspect import as_text, inspect
    from minilm_retriever.pretrained.model_folder import load_pretrained

    tokenizer = load_pretrained(args.model).tokenizer
    found = inspect(args.pairs, tokenizer, columns=args.columns, batch_size=args.batch_size)
    print(json.dumps(found.as_json(), indent=2) if args.json else as_text(found))


def run_mine(args: argparse.Namespace) -> None:
    """Flags -> config -> mine."""
    config = from_args(MineConfig, args)

    from minilm_retriever.curation.hard_negatives import mine

    sys.stderr.write(f"{mine(config)}\n")


def run_paraphrases(args: argparse.Namespace) -> None:
    """The closest pairs, into a file or onto stdout."""
    from minilm_retriever.curation.paraphrases import paraphrases

    rows, told = paraphrases(
        args.file,
        args.model,
        text=args.text,
        id=args.id,
        count=args.n,
        threshold=args.threshold,
        duplicates=args.duplicates,
        out=args.out,
        overwrite=args.overwrite,
        device=args.device,
    )
    for rank, (score, one, other, left, right) in enumerate(() if args.out else rows, 1):
        print(f"{rank:4}  {score:.4f}  {one}  {left}\n{'':14}{other}  {right}")
    sys.stderr.write(f"{told}\n")


def run_encode(args: argparse.Namespace) -> None:
    """Flags -> config -> encode."""
    config = from_args(EncodeConfig, args)

    if config.engine == "ray":
        from minilm_retriever.encoding.ray_engine import encode_files_on_ray as encode_files
    else:
        from minilm_retriever.encoding.encode_files import encode_files

    if said := encode_files(config):  # other ranks than the first say nothing
        sys.stderr.write(f"{said}\n")


def run_index(args: argparse.Namespace) -> None:
    """Make an index, or change one."""
    from minilm_retriever.data.texts import read_texts
    from minilm_retriever.search.index_folder import make_index

    ids: list[str] = []
    for word in args.delete:
        ids += (
            [record.text for record in read_texts(word[1:], format="txt")]
            if word.startswith("@")
            else [word]
        )
    made = make_index(
        Path(args.folder),
        Path(args.out),
        kind=args.kind,
        add=[Path(name) for name in args.add],
        delete=ids,
        overwrite=args.overwrite,
    )
    gone = f", {len(made.deleted):,} deleted" if len(made.deleted) else ""
    if made.engine is not None and made.engine.ntotal > 1.25 * len(made):
        gone += f"; they make it slower: --kind {made.plan.kind} builds it anew without them"
    sys.stderr.write(f"{args.out}: {made.plan.kind} over {len(made):,} documents{gone}\n")


def run_search(args: argparse.Namespace) -> None:
    """Rank, score, id and text of the nearest documents of each query."""
    if args.k < 1:
        raise UserError(f"-k must be at least 1, not {args.k}")
    if args.file and args.queries:
        raise UserError("queries as arguments and --queries exclude each other")
    if args.out and not (args.file or args.queries):
        raise UserError("--out needs queries: as arguments, or in a file (--queries FILE)")
    from minilm_retriever.search import command

    form = command.format_of(args.out, args.format)
    finer = Path(args.rescore) if args.rescore else None
    index, encoder = command.open_for(
        Path(args.folder), args.model, effort=args.effort, finer=finer
    )
    if not (args.file or args.queries):
        command.converse(index, encoder, args.k, form)
        return
    given = (command.Query(str(number), text) for number, text in enumerate(args.queries))
    queries = command.queries_of(args.file, args.text, args.id) if args.file else given
    count = command.write_all(index, encoder, queries, args.k, form, args.out)
    if args.out:
        sys.stderr.write(f"{args.out}: {count:,} queries\n")


def run_evaluate(args: argparse.Namespace) -> None:
    """Metrics of models, each with the interval of its gain over the one before."""
    from minilm_retriever.evaluation.evaluate import evaluate_models

    report = evaluate_models(
        args.data,
        args.model or [BASE_FOLDER],
        columns=args.columns,
        corpus=args.corpus,
        split=args.split,
        runs=args.run or (),
        overwrite=args.overwrite,
    )
    print(json.dumps(report.as_json(), indent=2) if args.json else report.as_text())


def run_verify(args: argparse.Namespace) -> None:
    """Check folders, and single .npy files of encode.py, against their manifests."""
    from minilm_retriever.storage.manifest import read_manifest, verify_folder
    from minilm_retriever.vectors.shards import sidecar_paths
    from minilm_retriever.vectors.vector_folder import open_vectors

    for name in map(Path, args.folders):
        if name.is_file():
            checked = len(verify_folder(name.parent, sidecar_paths(name)[1].name))
        else:
            checked = len(verify_folder(name))
        if name.is_file() or "vectors" in read_manifest(name):
            vectors = open_vectors(name, verify=False)
            rows = sum(len(shard) for shard in vectors.shards)
            print(f"{name}: {checked} files as they were written, {rows:,} vectors")
        else:
            print(f"{name}: {checked} files as they were written")


if __name__ == "__main__":
    sys.exit(main())
