"""`serve` under load: what goes through the model together, who hangs, what fails, how it ends."""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from minilm_retriever.vectors.vector_folder import save_vectors
from tests.conftest import ROOT
from tests.serving import EMBED, JSON, SEARCH, Hold, running, wait_for

from minilm_retriever.serving import batching, connections, guard  # isort: skip
from minilm_retriever.serving.batching import Batcher  # isort: skip


@pytest.fixture(scope="module")
def served(tiny, tiny_folder, tmp_path_factory):
    folder, texts = tmp_path_factory.mktemp("served") / "vectors", ["bread", "a watch", ""]
    fingerprint = tiny.model.fingerprint()
    save_vectors(folder, ["x", "y", "z"], texts, tiny.encode(texts), model=fingerprint)
    with running(model=(str(tiny_folder),), folders=(str(folder),)) as one:
        yield one


# --- batching -------------------------------------------------------------------------------------


def test_what_came_while_the_model_was_busy_is_one_batch_and_equal_texts_are_one(
    tiny_folder, monkeypatch
):
    hold = Hold(monkeypatch)
    with running(model=(str(tiny_folder),)) as one, ThreadPoolExecutor(8) as threads:
        first = threads.submit(one.embed, "first")
        wait_for(lambda: hold.batches)
        rest = [threads.submit(one.embed, [f"text {n % 3}", "common"]) for n in range(6)]
        batcher = one.batcher
        wait_for(lambda: len(batcher.jobs) == 6)
        hold.go.set()
        assert {job.result().status for job in [first, *rest]} == {200}
        assert sorted(map(sorted, hold.batches)) == [
            ["common", "text 0", "text 1", "text 2"],
            ["first"],
        ]
        assert one.embed(["common", "first"]).status == 200  # from the cache
        assert len(hold.batches) == 2 and one.app.metrics.queue == 0


def test_two_batches_at_a_time(tiny_folder, monkeypatch):
    torch.set_num_threads(2)
    hold = Hold(monkeypatch, lanes=2)
    with running(model=(str(tiny_folder),)) as one, ThreadPoolExecutor(8) as threads:
        jobs = []
        for text in ("first", "second"):
            jobs.append(threads.submit(one.embed, text))
            wait_for(lambda: len(hold.batches) == len(jobs))  # noqa: B023 - at once
        jobs += [threads.submit(one.embed, f"text {n}") for n in range(4)]
        wait_for(lambda: len(one.batcher.jobs) == 4)
        hold.go.set()
        assert {job.result().status for job in jobs} == {200}
        assert hold.batches[:2] == [["first"], ["second"]] and not one.batcher.pending


def test_those_who_were_answered_come_together(tiny_folder, monkeypatch):
    monkeypatch.setattr(batching, "MOMENT", 60)
    hold = Hold(monkeypatch)
    with running(model=(str(tiny_folder),)) as one, ThreadPoolExecutor(8) as threads:
        first = threads.submit(one.embed, ["a", "b", "c"])
        wait_for(lambda: hold.batches)
        hold.go.set()
        assert first.result().status == 200
        again = [threads.submit(one.embed, text) for text in ("d", "e")]
        wait_for(lambda: len(one.batcher.jobs) == 2)
        assert len(hold.batches) == 1  # of three texts: a third is waited for
        again.append(threads.submit(one.embed, "f"))
        assert {job.result().status for job in again} == {200}
        assert [sorted(batch) for batch in hold.batches] == [["a", "b", "c"], ["d", "e", "f"]]


def test_a_long_request_holds_up_no_short_one(tiny_folder, monkeypatch):
    hold = Hold(monkeypatch)
    monkeypatch.setattr(batching, "BATCH_TOKENS", 60)
    with running(model=(str(tiny_folder),)) as one, ThreadPoolExecutor(3) as threads:
        long = threads.submit(one.embed, [f"bread and watch {n}" for n in range(300)])
        wait_for(lambda: hold.batches)
        short = threads.submit(one.embed, "short")
        batcher = one.batcher
        wait_for(lambda: len(batcher.jobs) == 2)
        hold.go.set()
        assert short.result().status == long.result().status == 200
    assert next(n for n, batch in enumerate(hold.batches) if "short" in batch) <= 2
    assert len(hold.batches) > 5


def test_a_client_that_goes_is_not_computed_for(tiny_folder, monkeypatch):
    hold = Hold(monkeypatch)
    with running(model=(str(tiny_folder),)) as one, ThreadPoolExecutor(2) as threads:
        first = threads.submit(one.embed, "first")
        wait_for(lambda: hold.batches)
        gone = one.connect()
        gone.request("POST", EMBED, json.dumps({"input": ["gone", "shared"]}), JSON)
        batcher = one.batcher
        wait_for(lambda: len(batcher.jobs) == 1)
        stays = threads.submit(one.embed, "shared")
        wait_for(lambda: len(batcher.jobs) == 2)
        gone.close()
        wait_for(lambda: one.app.metrics.requests[EMBED, 499] == 1)
        hold.go.set()
        assert first.result().status == stays.result().status == 200
        assert hold.batches == [["first"], ["shared"]]
        assert (one.app.metrics.queue, batcher.pending) == (0, {})


def test_a_fault_in_the_model_is_a_500_and_the_next_request_works(tiny_folder, monkeypatch, capsys):
    compute = Batcher.compute
    faults = [RuntimeError("a\x1b[31m fault"), MemoryError(), SystemExit(3), KeyboardInterrupt()]

    def faulty(batcher, batch):
        if batch[0].text.startswith("fault"):
            raise faults[int(batch[0].text[5:])]
        return compute(batcher, batch)

    monkeypatch.setattr(Batcher, "compute", faulty)
    with running(model=(str(tiny_folder),)) as one:
        for number in range(len(faults)):
            answer = one.embed(f"fault{number}")
            assert (answer.status, answer.message) == (500, "the server failed on this request")
            assert one.embed(f"bread {number}").status == 200
        assert one.app.metrics.queue == 0
    said = capsys.readouterr().err
    assert "a\\x1b[31m fault" in said and "\x1b" not in said


def test_kept_vectors_are_bounded(tiny_folder):
    with running(model=(str(tiny_folder),), cache=5) as one:
        for number in range(9):
            one.embed(f"text {number}")
        batcher = one.batcher
        assert list(batcher.cache) == [f"text {number}" for number in range(4, 9)]
        one.embed("text 4")
        one.embed("long " * 101)
        assert list(batcher.cache)[-1] == "text 4" and len(batcher.cache) == 5


def test_an_answer_is_sent_at_once(served):
    with open_socket(served, b"") as client:
        own = client.getsockname()
        wait_for(lambda: own in [c.client for c in served.uvicorn.server_state.connections])
        for connection in served.uvicorn.server_state.connections:
            sock = connection.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# --- what it survives -----------------------------------------------------------------------------


def open_socket(one, data):
    client = socket.create_connection(("127.0.0.1", one.port), timeout=20)
    client.sendall(data)
    return client


HALVES = {
    "nothing": b"",
    "half a header": b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nX: ",
    "half a body": b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    "half a chunk": b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    "a request, then half a header": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /h",
}


@pytest.mark.parametrize("kind", HALVES)
def test_a_client_that_hangs_is_let_go(tiny_folder, monkeypatch, kind):
    monkeypatch.setattr(connections, "SILENT_SECONDS", 0.4)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    with running(model=(str(tiny_folder),)) as one, open_socket(one, HALVES[kind]) as client:
        received = b""
        try:
            while data := client.recv(65536):
                received += data
        except ConnectionResetError:
            pass
        if "half a body" in kind or "chunk" in kind:
            assert b"HTTP/1.1 408" in received
        wait_for(lambda: not one.uvicorn.server_state.connections)
        assert one.embed("bread").status == 200


def test_a_client_that_reads_slowly_has_its_whole_answer_and_one_that_does_not_is_let_go(
    tiny_folder, monkeypatch
):
    monkeypatch.setattr(connections, "SILENT_SECONDS", 0.2)
    body = json.dumps({"input": [f"bread {n % 9}" for n in range(2000)]}).encode()
    head = f"POST {EMBED} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = head.encode() + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with running(model=(str(tiny_folder),)) as one:
        open_connections = one.uvicorn.server_state.connections
        with slow_socket(one, request) as slow:
            received = b""
            while data := slow.recv(1 << 15):
                received += data
                time.sleep(0.02)
            assert len(json.loads(received.partition(b"\r\n\r\n")[2])["data"]) == 2000
        wait_for(lambda: not open_connections)
        with slow_socket(one, request):
            wait_for(lambda: any(c.transport.get_write_buffer_size() for c in open_connections))
            wait_for(lambda: not open_connections)


def slow_socket(one, data):
    """A connection with small buffers, so that the server can't send much ahead."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
    client.connect(("127.0.0.1", one.port))
    wait_for(lambda: one.uvicorn.server_state.connections)
    for connection in one.uvicorn.server_state.connections:
        server_end = connection.transport.get_extra_info("socket")
        server_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    client.sendall(data)
    return client


@pytest.mark.parametrize("kind", HALVES)
def test_others_are_served_however_many_hang(tiny_folder, kind):
    with running(model=(str(tiny_folder),), max_connections=20) as one:
        clients = [open_socket(one, HALVES[kind]) for _ in range(60)]
        for _ in range(5):
            assert one.embed("bread").status == 200
        assert len(one.uvicorn.server_state.connections) <= 20
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    "endless",
    [
        b"GET /" + b"a" * 1000,
        b"GET / HTTP/1.1\r\n" + b"X-Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 20,
        b"POST /search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        + b"X-Trailer: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 20,
    ],
    ids=["a line", "headers", "trailers"],
)
def test_what_never_ends_is_cut_off(tiny_folder, endless):
    with running(model=(str(tiny_folder),), max_body=2000) as one:
        client, sent = open_socket(one, endless), 0
        more = endless[-500:] * 100
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while sent < 64 << 20:
                client.sendall(more)
                sent += len(more)
        client.close()
        assert one.embed("bread").status == 200


def test_random_bodies_are_answered_with_2xx_or_4xx(served):
    rng = random.Random(7)
    values = [None, True, 0, -1, 1.5, 10**400, "", "a", "\x00\x1b[31m\u202e", [], [[]], ["a"], {},
              [1], [None], {"a": {}}, "a" * 9999, ["a", 2], 7, 1e308]  # fmt: skip
    names = ["input", "model", "encoding_format", "dimensions", "input_type", "user", "query",
             "index", "k", "", "\ud800", "x" * 99]  # fmt: skip
    connection = served.connect()
    for _ in range(3000):
        body = json.dumps({rng.choice(names): rng.choice(values) for _ in range(rng.randrange(4))})
        data = bytearray(body.encode())
        for _ in range(rng.choice([0, 0, 1, 5])):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        connection.request("POST", rng.choice([EMBED, SEARCH]), bytes(data), JSON)
        answer = connection.getresponse()
        answer.read()
        assert 200 <= answer.status < 300 or 400 <= answer.status < 500, data
    connection.close()


# --- the command ----------------------------------------------------------------------------------


def test_sigterm_answers_what_is_in_work_and_ends(tiny_folder, tmp_path):
    (tmp_path / "key").write_text("zebra\nrest")
    command = [sys.executable, "-m", "minilm_retriever", "serve", "--model", str(tiny_folder)]
    command += ["--port", "0", "--api-key", f"@{tmp_path / 'key'}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    line = process.stderr.readline()
    port = int(line.split("127.0.0.1:")[1].split("/")[0])
    texts = [f"bread {n} " * 20 for n in range(400)]
    body = json.dumps({"input": texts}).encode()
    head = f"POST {EMBED} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer zebra\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(head.encode() + body)
        wait_for(lambda: is_in_work(port))
        process.send_signal(signal.SIGTERM)
        received = b"".join(iter(lambda: client.recv(1 << 20), b""))
    answer = json.loads(received.partition(b"\r\n\r\n")[2])
    assert len(answer["data"]) == len(texts)
    assert (process.wait(30), "stopped after" in process.stderr.read()) == (0, True)


def is_in_work(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics", headers={"Authorization": "Bearer zebra"})
    text = connection.getresponse().read().decode()
    connection.close()
    return "minilm_queue_tokens 0\n" not in text


def test_a_port_that_is_taken_is_one_line(tiny_folder, capsys, served):
    from minilm_retriever.__main__ import main

    command = ["serve", "--model", str(tiny_folder), "--port", str(served.port)]
    assert main(command) == 2
    assert "Address already in use" in capsys.readouterr().err
