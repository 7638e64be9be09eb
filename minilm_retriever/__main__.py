"""The commands: `minilm-retriever COMMAND`, or `python -m minilm_retriever COMMAND`.

Each is a dataclass of flags and a function, which imports what it needs when it runs, so that
--help answers at once."""

from __future__ import annotations

import argparse
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minilm_retriever import __version__
from minilm_retriever.completion import CompletionConfig, completion
from minilm_retriever.curation.config import InspectConfig, MineConfig, ParaphrasesConfig
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.errors import UserError, check_posix, require, run_command
from minilm_retriever.evaluation.config import CompareConfig, EvaluateConfig
from minilm_retriever.exporting.config import ExportConfig
from minilm_retriever.flags import NOTHING, Parser, add_flags, from_flags
from minilm_retriever.keywords import read_settings
from minilm_retriever.pretrained.config import FetchConfig, MixConfig
from minilm_retriever.progress import escape, fill_closed_streams, json_text, print_result, say
from minilm_retriever.search.config import IndexConfig, SearchConfig
from minilm_retriever.serving.config import ServeConfig
from minilm_retriever.training.config import TrainConfig, with_example
from minilm_retriever.vectors.config import VerifyConfig

CONFIG_HELP = "settings from a TOML file, by the names of these flags; flags win"


def fetch(config: FetchConfig) -> None:
    from minilm_retriever.pretrained.hub import fetch

    print_result(escape(fetch(config.out)))


def train(config: TrainConfig) -> int:
    from minilm_retriever.training.run import train

    return train(config)


def mix(config: MixConfig) -> None:
    from minilm_retriever.pretrained.mixing import mix

    say(mix(config))


def encode(config: EncodeConfig) -> None:
    if config.engine == "ray":
        from minilm_retriever.encoding.ray_engine import encode_files_on_ray as encode_files
    else:
        from minilm_retriever.encoding.encode_files import encode_files
    if line := encode_files(config):  # ranks other than 0 have none
        say(line)


def inspect(config: InspectConfig) -> None:
    from minilm_retriever.curation.inspect import inspect_pairs

    inspection = inspect_pairs(config)
    print_result(json_text(inspection.as_json()) if config.json else repr(inspection))


def mine(config: MineConfig) -> None:
    from minilm_retriever.curation.hard_negatives import mine

    if not config.out:
        raise UserError("--out is missing: the file to write")
    say(repr(mine(config)))


def paraphrases(config: ParaphrasesConfig) -> None:
    from minilm_retriever.curation.paraphrases import paraphrases

    rows, line = paraphrases(config)
    for rank, (score, id_0, id_1, text_0, text_1) in enumerate(() if config.out else rows, 1):
        print_result(escape(f"{rank:4}  {score:.4f}  {id_0}  {text_0}"))
        print_result(escape(f"{'':14}{id_1}  {text_1}"))
    say(line)


def index(config: IndexConfig) -> None:
    from minilm_retriever.search.command import run_index

    say(run_index(config))


def search(config: SearchConfig) -> None:
    from minilm_retriever.search.command import run_search

    run_search(config)


def serve(config: ServeConfig) -> None:
    check_posix("serve")
    require("starlette", "serve", "serve")
    require("uvicorn.protocols.http.httptools_impl", "serve", "serve")
    require("orjson", "serve", "serve")
    from minilm_retriever.serving.server import serve

    serve(config)


def evaluate(config: EvaluateConfig) -> None:
    from minilm_retriever.evaluation.line import evaluate

    report = evaluate(config)
    print_result(json_text(report.as_json()) if config.json else report.as_text())


def compare(config: CompareConfig) -> None:
    from minilm_retriever.evaluation.compare_precisions import compare_precisions

    report = compare_precisions(config)
    print_result(json_text(report.as_json()) if config.json else report.as_text())


def export(config: ExportConfig) -> None:
    from minilm_retriever.exporting.export import export

    for line in export(config):
        say(line)


def verify(config: VerifyConfig) -> None:
    from minilm_retriever.search.index_folder import verify

    for path in config.paths:
        print_result(escape(verify(Path(path))))


def complete(config: CompletionConfig) -> None:
    print_result(completion(parser(), config.shell))


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {
    "fetch": (FetchConfig, fetch),
    "train": (TrainConfig, train),
    "mix": (MixConfig, mix),
    "encode": (EncodeConfig, encode),
    "inspect": (InspectConfig, inspect),
    "mine": (MineConfig, mine),
    "paraphrases": (ParaphrasesConfig, paraphrases),
    "index": (IndexConfig, index),
    "search": (SearchConfig, search),
    "serve": (ServeConfig, serve),
    "evaluate": (EvaluateConfig, evaluate),
    "compare": (CompareConfig, compare),
    "export": (ExportConfig, export),
    "verify": (VerifyConfig, verify),
    "completion": (CompletionConfig, complete),
}


def parser(given: Mapping[str, Any] = NOTHING) -> argparse.ArgumentParser:
    """All commands and their flags; given: the fields that --config sets."""
    top = Parser(prog="minilm-retriever", description="Fine-tune, encode, retrieve.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (config, _) in COMMANDS.items():
        text = config.__doc__
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", metavar="FILE", default=SUPPRESS, help=CONFIG_HELP)
        add_flags(command, config, given)
    return top


def parse(argv: Sequence[str] | None) -> tuple[str, dict[str, Any]]:
    """The command, and the settings of --config and the flags that are given; search takes queries
    also after flags."""
    first = argparse.ArgumentParser("minilm-retriever", add_help=False, allow_abbrev=False)
    first.add_argument("command", nargs="?")
    first.add_argument("--config")
    named, _ = first.parse_known_args(argv)
    settings = {}
    if named.config is not None and named.command in COMMANDS:
        settings = read_settings(named.config, COMMANDS[named.command][0])
    top = parser(settings)
    known, rest = top.parse_known_args(argv)
    flags = vars(known)
    if flags.pop("config", None) != named.config:
        top.error("--config is written in full")
    if rest and (flags["command"] != "search" or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        flags["queries"] = [*flags.get("queries", ()), *rest]
    return flags.pop("command"), {**settings, **flags}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status."""
    fill_closed_streams()
    return run_command(lambda: run(argv))


def run(argv: Sequence[str] | None) -> int | None:
    name, flags = parse(argv)
    config, command = COMMANDS[name]
    if config is TrainConfig:
        flags = with_example(flags)
    return command(from_flags(config, flags))


if __name__ == "__main__":
    sys.exit(main())
