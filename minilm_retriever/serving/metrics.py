"""Counts and times, in Prometheus's text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from itertools import accumulate

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # upper bounds
HELP = {
    "texts": "Texts that were asked for, repeats counted.",
    "tokens": "Tokens of these.",
    "cached": "Distinct texts of a request whose vector was there already.",
    "batches": "Batches that went through a model.",
}


class Metrics:
    """What the server has done since it began, and how many tokens wait (`queue`)."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.times = [0] * (len(SECONDS) + 1)
        self.seconds = 0.0
        self.texts = self.tokens = self.cached = self.batches = self.queue = 0

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count a request; path: one of ours, or "other"."""
        self.requests[path, status] += 1
        self.times[bisect_left(SECONDS, seconds)] += 1
        self.seconds += seconds

    def text(self) -> str:
        lines = describe("requests_total", "counter", "Requests by path and status.")
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'minilm_requests_total{{path="{path}",status="{status}"}} {count}')
        for name, text in HELP.items():
            lines += describe(f"{name}_total", "counter", text)
            lines.append(f"minilm_{name}_total {getattr(self, name)}")
        lines += describe("queue_tokens", "gauge", "Tokens that wait for a model, or are in it.")
        lines.append(f"minilm_queue_tokens {self.queue}")
        name = "request_seconds"
        lines += describe(name, "histogram", "From a request's header to the end of its answer.")
        totals = list(accumulate(self.times))
        for bound, total in zip([*SECONDS, "+Inf"], totals, strict=True):
            lines.append(f'minilm_{name}_bucket{{le="{bound}"}} {total}')
        lines.append(f"minilm_{name}_sum {self.seconds:.6f}")
        lines.append(f"minilm_{name}_count {totals[-1]}")
        return "\n".join(lines) + "\n"


def describe(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP minilm_{name} {text}", f"# TYPE minilm_{name} {kind}"]
