"""Flags of `serve`."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from minilm_retriever.errors import UserError
from minilm_retriever.flags import check_bounds, flag
from minilm_retriever.pretrained.config import (
    BASE_FOLDER,
    MODEL_HELP,
    PRECISION_HELP,
    THREADS_HELP,
    Precision,
)


@dataclass(frozen=True)
class ServeConfig:
    """A page to search and compare models, and an API to call them."""

    folders: tuple[str, ...] = flag(
        (), "what `encode` or `index` wrote, each by one of the models", name="DIR", nargs="*"
    )
    model: tuple[str, ...] = flag(
        (), f"{MODEL_HELP}; repeat it to compare (default {BASE_FOLDER})", nargs=None,
        action="append",
    )  # fmt: skip
    precision: Precision = flag("fp32", PRECISION_HELP)
    threads: int | None = flag(None, THREADS_HELP, at_least=1)
    host: str = flag("127.0.0.1", "address to listen on", "address")
    port: int = flag(8000, "port to listen on; 0: any that is free", at_least=0, below=65536)
    api_key: str | None = flag(
        None, "what clients must send; @FILE: its first line, which other users can't see"
    )
    insecure: bool = flag(False, "open to the network without --api-key", action="store_true")
    pairs: str | None = flag(
        None, "show each model's worst queries on these: pairs, or a BEIR-style folder",
        "evaluation",
    )  # fmt: skip
    columns: tuple[str, ...] = flag((), "query and document columns of the pairs", nargs=2)
    corpus: str | None = flag(None, "more documents to search than those of the pairs")
    split: str = flag("test", "judgements of a BEIR-style folder: qrels/SPLIT.tsv")
    max_body: int = flag(4 << 20, "bytes of a request (413)", "limits", at_least=1024)
    max_texts: int = flag(2048, "texts of a request (422)", at_least=1)
    max_tokens: int = flag(300_000, "tokens of a request (422)", at_least=1)
    max_queue: int = flag(300_000, "tokens that wait for a model (429)", at_least=1)
    max_connections: int = flag(1000, "open connections", at_least=1)
    timeout: float = flag(60.0, "seconds that a request may take (503)", above=0)
    cache: int = flag(10_000, "vectors of short texts that are kept", at_least=0)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.api_key == "":
            raise UserError("--api-key is empty")
        if not (self.is_local or self.api_key or self.insecure):
            open_to = f"--host {self.host} is open to the network"
            raise UserError(f"{open_to}: give an --api-key, or --insecure if that is meant")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
