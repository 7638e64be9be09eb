"""What `serve` answers a second, and what it survives.

python benchmarks/serving.py load   [--seconds 60] [--rounds 10] [--clients 32]
                                    [--infinity BIN/infinity_emb]
python benchmarks/serving.py memory [--requests 200000] [--model DIR]
python benchmarks/serving.py fuzz   [--requests 10000]
python benchmarks/serving.py faults [--connections 10000]

load: each client sends a distinct text of 8 words and waits for its vector, over and over; beside
it the same texts through Encoder.encode, a server that encodes one text at a time, and infinity, in
interleaved rounds. The load takes part of the processor, too.

memory: over distinct texts it grows to a level, that of the kept vectors (--cache) and of oneDNN's
kernels for each number of tokens (it keeps ONEDNN_PRIMITIVE_CACHE_CAPACITY, 1,024)."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BASE = "checkpoints/all-MiniLM-L6-v2"
PORT = int(os.environ.get("PORT", "8123"))
HEAD = "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HERTZ = os.sysconf("SC_CLK_TCK")
ONE_BY_ONE = """
import asyncio, sys, uvicorn
from concurrent.futures import ThreadPoolExecutor
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from minilm_retriever import Encoder
encoder, worker = Encoder.from_pretrained(sys.argv[1]), ThreadPoolExecutor(1)
async def embed(request):
    text = (await request.json())["input"]
    loop = asyncio.get_running_loop()
    vector = await loop.run_in_executor(worker, encoder.encode, text)
    return JSONResponse({"data": [{"embedding": vector.tolist()}]})
async def health(request):
    return JSONResponse({})
routes = [Route("/v1/embeddings", embed, methods=["POST"]), Route("/health", health)]
uvicorn.run(Starlette(routes=routes), port=int(sys.argv[2]), log_level="critical")
"""


def words() -> list[str]:
    return (ROOT / "examples/job_skills/corpus.csv").read_text("utf-8").replace(",", " ").split()


def make_text(rng: random.Random, vocabulary: list[str]) -> str:
    return " ".join(rng.choices(vocabulary, k=8))


@contextmanager
def server(command: list[str], port: int = PORT) -> Iterator[int]:
    """A server's process id, once it answers."""
    environment, quiet = {**os.environ, "PYTHONPATH": str(ROOT)}, subprocess.DEVNULL
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=quiet, stderr=quiet
    ) as process:
        for _ in range(1200):
            if process.poll() is not None:
                raise SystemExit(f"ended with {process.returncode}: {' '.join(command)}")
            try:
                asyncio.run(get("/health", port))
                break
            except OSError:
                time.sleep(0.25)
        try:
            yield process.pid
        finally:
            process.terminate()


def ours(model: str = BASE, port: int = PORT) -> list[str]:
    command = [sys.executable, "-m", "minilm_retriever", "serve", "--port", str(port)]
    return [*command, "--model", model]


async def get(path: str, port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


async def post(streams: tuple, path: str, body: bytes) -> tuple[int, bytes]:
    reader, writer = streams
    writer.write(HEAD.replace("%s", path).encode() + b"Content-Length: %d\r\n\r\n" % len(body))
    writer.write(body)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)


def cpu_seconds(pid: int) -> float:
    """The processor's time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / HERTZ


def memory_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


# --- load -----------------------------------------------------------------------------------------


async def drive(port: int, clients: int, seconds: float, extra: dict[str, str]) -> list[float]:
    """Closed-loop clients; returns the seconds of each request."""
    vocabulary, times, rng = words(), list[float](), random.Random(time.time_ns())

    async def client(end: float) -> None:
        streams = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            body = json.dumps({"input": make_text(rng, vocabulary), **extra}).encode()
            start = time.perf_counter()
            status, _ = await post(streams, "/v1/embeddings", body)
            times.append(time.perf_counter() - start)
            assert status == 200, status

    end = time.perf_counter() + seconds
    await asyncio.gather(*(client(end) for _ in range(clients)))
    return sorted(times)


class Contestant(NamedTuple):
    name: str
    pid: int
    port: int
    extra: dict[str, str]  # fields of each request


@contextmanager
def contestants(infinity: str | None) -> Iterator[list[Contestant]]:
    """All servers at once: those that wait take no processor's time."""
    commands = {"serve": ours(port=PORT + 1)}
    commands["one text at a time"] = [sys.executable, "-c", ONE_BY_ONE, BASE, str(PORT + 2)]
    if infinity:
        command = [infinity, "v2", "--model-id", str((ROOT / BASE).resolve()), "--device", "cpu"]
        command += ["--port", str(PORT + 3), "--engine", "torch", "--no-bettertransformer"]
        command += ["--served-model-name", "m", "--no-compile", "--url-prefix", "/v1"]
        commands["infinity"] = command
    with ExitStack() as stack:
        found = []
        for port, (name, command) in enumerate(commands.items(), PORT + 1):
            pid = stack.enter_context(server(command, port))
            found.append(Contestant(name, pid, port, {"model": "m"} if name == "infinity" else {}))
        as_base64 = {"encoding_format": "base64"}
        yield [found[0], found[0]._replace(name="serve, base64", extra=as_base64), *found[1:]]


# Reads how many seconds to work from each line; prints how many texts it encoded, in which time.
ENCODE = f"""
import random, sys, time
from benchmarks.serving import make_text, words
from minilm_retriever import Encoder
encoder, rng, vocabulary = Encoder.from_pretrained("{BASE}"), random.Random(0), words()
for line in sys.stdin:
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < float(line):
        encoder.encode([make_text(rng, vocabulary) for _ in range(1024)])
        count += 1024
    print(count, time.perf_counter() - start, time.process_time() - cpu, flush=True)
"""


class Slice(NamedTuple):
    """A few seconds of one contestant."""

    rate: float  # texts a second
    cpu: float  # ms of the processor a text
    times: list[float]  # of each request, in seconds


def encode_slice(process: subprocess.Popen[str], seconds: float) -> Slice:
    assert process.stdin and process.stdout
    print(seconds, file=process.stdin, flush=True)
    count, took, cpu = map(float, process.stdout.readline().split())
    return Slice(count / took, 1000 * cpu / count, [])


def serve_slice(one: Contestant, clients: int, seconds: float) -> Slice:
    before, start = cpu_seconds(one.pid), time.perf_counter()
    times = asyncio.run(drive(one.port, clients, seconds, one.extra))
    took = time.perf_counter() - start
    return Slice(len(times) / took, 1000 * (cpu_seconds(one.pid) - before) / len(times), times)


def load(args: argparse.Namespace) -> None:
    """Interleaved rounds of a few seconds for each; ratios are taken within a round."""
    print(f"machine's load before: {os.getloadavg()[0]:.1f}", flush=True)
    seconds = args.seconds / args.rounds
    command, pipe = [sys.executable, "-c", ENCODE], subprocess.PIPE
    with (
        contestants(args.infinity) as servers,
        subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe) as encoder,
    ):
        encode_slice(encoder, 1)
        for one in servers:
            serve_slice(one, args.clients, 3)  # warm
        rounds: list[list[Slice]] = []
        for _ in range(args.rounds):
            slices = [serve_slice(one, args.clients, seconds) for one in servers]
            rounds.append([encode_slice(encoder, seconds), *slices])
        memory = [f"{memory_mb(pid):.0f} MB" for pid in [encoder.pid, *(s.pid for s in servers)]]
        encoder.stdin.close()  # type: ignore[union-attr]
    print("| | texts/s | of Encoder.encode | p50 | p99 | processor, a text | memory |")
    print("|---|---|---|---|---|---|---|")
    names = ["`Encoder.encode`, 1,024 texts at a time", *(one.name for one in servers)]
    for column, name in enumerate(names):
        own = [each[column] for each in rounds]
        rate, cpu = median(s.rate for s in own), median(s.cpu for s in own)
        shares = sorted(each[column].rate / each[0].rate for each in rounds)
        share = f"{median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f})" if column else ""
        times = sorted(t for s in own for t in s.times)
        waits = [
            f"{1000 * times[int(len(times) * p)]:.0f} ms" if times else "" for p in (0.5, 0.99)
        ]
        cells = [name, f"{rate:.0f}", share, *waits, f"{cpu:.2f} ms", memory[column]]
        print(f"| {' | '.join(cells)} |")
    print(f"machine's load after: {os.getloadavg()[0]:.1f}", flush=True)


# --- memory, fuzz, faults -------------------------------------------------------------------------


async def many(requests: int, clients: int, pid: int) -> None:
    vocabulary, rng, done = words(), random.Random(1), 0
    for tenth in range(11):
        print(f"after {done:,} requests: {memory_mb(pid):.0f} MB", flush=True)

        async def client(count: int) -> None:
            streams = await asyncio.open_connection("127.0.0.1", PORT)
            for _ in range(count):
                body = json.dumps({"input": make_text(rng, vocabulary)}).encode()
                assert (await post(streams, "/v1/embeddings", body))[0] == 200

        if tenth < 10:
            each = requests // 10 // clients
            await asyncio.gather(*(client(each) for _ in range(clients)))
            done += each * clients


async def fuzz(requests: int) -> Counter[int]:
    """Random and damaged bodies; counts of statuses."""
    rng, statuses = random.Random(2), Counter[int]()
    values = [None, True, 0, -1, 1.5, 10**400, "", "a", "\x00\u202e", [], [[]], ["a"], {}, [1],
              [None], {"a": {}}, "a" * 9999, ["a", 2], 7, 1e308, "base64", "query"]  # fmt: skip
    names = ["model", "encoding_format", "dimensions", "input_type", "user", "index", "k", "x"]
    streams = await asyncio.open_connection("127.0.0.1", PORT)
    for _ in range(requests):
        fields = {rng.choice(names): rng.choice(values) for _ in range(rng.randrange(3))}
        fields[rng.choice(["input", "query"])] = rng.choice(values)
        body = bytearray(json.dumps(fields).encode())
        for _ in range(rng.choice([0, 0, 0, 1, 3])):
            body[rng.randrange(len(body))] = rng.randrange(256)
        if rng.random() < 0.1:
            body = bytearray(rng.randbytes(rng.randrange(300)))
        path = rng.choice(["/v1/embeddings", "/search"])
        statuses[(await post(streams, path, bytes(body)))[0]] += 1
    return statuses


async def faults(connections: int, pid: int) -> None:
    """Others are asked for a vector while clients misbehave."""
    small = json.dumps({"input": "bread"}).encode()

    async def served(name: str) -> None:
        start = time.perf_counter()
        streams = await asyncio.open_connection("127.0.0.1", PORT)
        status, _ = await asyncio.wait_for(post(streams, "/v1/embeddings", small), 30)
        streams[1].close()
        took = 1000 * (time.perf_counter() - start)
        print(f"{name}: another client has {status} in {took:.0f} ms, {memory_mb(pid):.0f} MB",
              flush=True)  # fmt: skip

    await served("before")
    head = HEAD.replace("%s", "/v1/embeddings").encode()
    halves = {"that say nothing": b"", "with half a header": head,
              "with half a body": head + b"Content-Length: 100\r\n\r\n{"}  # fmt: skip
    for name, half in halves.items():
        held = []
        for _ in range(connections // 3):
            try:
                held.append(await asyncio.open_connection("127.0.0.1", PORT))
                held[-1][1].write(half)
            except OSError:
                continue
        await served(f"{len(held):,} connections {name}")
        for _, writer in held:
            writer.close()
    for _ in range(300):
        _, writer = await asyncio.open_connection("127.0.0.1", PORT)
        body = json.dumps({"input": [f"bread {random.random()}"] * 20}).encode()
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()
    await served("300 clients that left before their answer")
    _, writer = await asyncio.open_connection("127.0.0.1", PORT)
    writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
    sent, block = 0, b"10000\r\n" + b" " * 65536 + b"\r\n"
    try:
        while sent < 1 << 30:
            writer.write(block)
            await writer.drain()
            sent += 65536
    except OSError:
        pass
    await served(f"a body of 1 GB, cut off after {sent >> 20} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["load", "memory", "fuzz", "faults"])
    defaults = {"seconds": 60, "rounds": 10, "clients": 32, "requests": 0, "connections": 9999}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default=BASE, help="of all but load")
    parser.add_argument("--infinity", help="infinity_emb of an environment that has it")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if args.what == "load":
        return load(args)
    with server(ours(args.model)) as pid:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # after the server has begun
        if args.what == "memory":
            asyncio.run(many(args.requests or 200_000, args.clients, pid))
        elif args.what == "fuzz":
            print(dict(asyncio.run(fuzz(args.requests or 10_000))))
        else:
            asyncio.run(faults(args.connections, pid))
    return None


if __name__ == "__main__":
    main()
