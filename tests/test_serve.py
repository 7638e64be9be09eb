"""The API of `serve`, over real connections: what it answers, what it refuses, what it survives."""

from __future__ import annotations

import base64
import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minilm_retriever import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.search import find, open_index
from minilm_retriever.vectors.vector_folder import save_vectors
from tests.conftest import ROOT
from tests.serving import JSON, running, wait_for

from minilm_retriever.serving import batching, connections, guard  # isort: skip
from minilm_retriever.serving.batching import Batcher  # isort: skip

TEXTS = ["he bakes bread", "she mends watches", "", "a nurse", "he bakes bread", "bread " * 300]


@pytest.fixture(scope="module")
def vectors(tiny, tmp_path_factory):
    """A folder of vectors of 40 texts."""
    texts = [f"text {number} of {40 - number} bread watch" for number in range(40)]
    folder = tmp_path_factory.mktemp("served") / "vectors"
    ids = [f"d{number}" for number in range(40)]
    save_vectors(folder, ids, texts, tiny.encode(texts), model=tiny.model.fingerprint())
    return folder


@pytest.fixture(scope="module")
def served(tiny_folder, vectors):
    with running(model=(str(tiny_folder),), folders=(str(vectors),)) as one:
        yield one


def embeddings(answer):
    assert answer.status == 200, answer.body
    return np.array([item["embedding"] for item in answer.json["data"]], np.float32)


class Hold:
    """The model waits inside its first batch until `go`."""

    def __init__(self, monkeypatch):
        self.go, self.batches = threading.Event(), []
        compute = Batcher.compute

        def held(batcher, batch):
            self.batches.append([pending.text for pending in batch])
            assert self.go.wait(30)
            return compute(batcher, batch)

        monkeypatch.setattr(Batcher, "compute", held)


# --- what it answers ------------------------------------------------------------------------------


def test_embeddings_are_those_of_encode_in_order(served, tiny):
    answer = served.embed(TEXTS)
    np.testing.assert_allclose(embeddings(answer), tiny.encode(TEXTS), rtol=0, atol=1e-6)
    assert [item["index"] for item in answer.json["data"]] == list(range(len(TEXTS)))
    lengths = tiny.model.tokenizer.tokenize(TEXTS).lengths
    assert answer.json["usage"] == {"prompt_tokens": lengths.sum(), "total_tokens": lengths.sum()}
    assert answer.json["model"] == "tiny-bert"


def test_one_text_formats_and_dimensions(served, tiny):
    expected = tiny.encode("a nurse")
    np.testing.assert_allclose(embeddings(served.embed("a nurse"))[0], expected, atol=1e-6)
    coded = served.embed("a nurse", encoding_format="base64", model="tiny-bert", user="me")
    decoded = np.frombuffer(base64.b64decode(coded.json["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=1e-6)
    short = embeddings(served.embed("a nurse", dimensions=7))[0]
    np.testing.assert_allclose(short, expected[:7] / np.linalg.norm(expected[:7]), atol=1e-6)


def test_concurrent_requests_have_their_own_answers(served, tiny):
    rng = random.Random(0)
    batches = [[f"{rng.choice('abc')} bread {rng.randrange(9)}" for _ in range(n)] for n in
               [1, 2, 40, 1, 3, 70, 1, 1] * 4]  # fmt: skip
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(served.embed, batches))
    for texts, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(embeddings(answer), tiny.encode(texts), rtol=0, atol=1e-6)


def test_input_type_puts_the_models_prompt_before(tiny_copy):
    path = tiny_copy / "config_sentence_transformers.json"
    content = {**json.loads(path.read_bytes()), "prompts": {"query": "q: ", "passage": "p: "}}
    path.write_text(json.dumps(content))
    encoder = Encoder.from_pretrained(tiny_copy)
    with running(model=(str(tiny_copy),)) as one:
        vectors = [
            embeddings(one.embed("bread", **fields))[0]
            for fields in ({}, {"input_type": "query"}, {"input_type": "document"})
        ]
    expected = encoder.encode(["bread", "q: bread", "p: bread"])
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)


def test_search_finds_what_find_finds(served, tiny, vectors):
    queries = ["bread", "watch 3", ""]
    expected = find(open_index(vectors), tiny.encode(queries), 5)
    answer = served.post("/search", {"query": queries, "k": 5}).json
    assert (answer["index"], answer["model"]) == ("vectors", "tiny-bert")
    for query, hits, result in zip(queries, expected, answer["results"], strict=True):
        assert result["query"] == query
        assert [hit["id"] for hit in result["hits"]] == [hit.id for hit in hits]
        assert [hit["text"] for hit in result["hits"]] == [hit.text for hit in hits]
        assert [hit["rank"] for hit in result["hits"]] == [1, 2, 3, 4, 5]
        scores = [hit["score"] for hit in result["hits"]]
        np.testing.assert_allclose(scores, [hit.score for hit in hits], atol=1e-6)
    assert len(served.post("/search", {"query": "bread"}).json["results"][0]["hits"]) == 10


def test_models_health_metrics_and_description(served):
    assert [model["id"] for model in served.get("/v1/models").json["data"]] == ["tiny-bert"]
    assert served.get("/health").json["status"] == "ok"
    before = served.get("/metrics").body.decode()
    served.embed(["bread", "a watch of bread"])
    after = served.get("/metrics").body.decode()

    def value(text, name):
        found = re.search(rf"^{re.escape(name)} (.+)$", text, re.M)
        return float(found[1]) if found else 0.0

    assert value(after, "minilm_texts_total") - value(before, "minilm_texts_total") == 2
    name = 'minilm_requests_total{path="/v1/embeddings",status="200"}'
    assert value(after, name) - value(before, name) == 1
    buckets = [int(line.split()[1]) for line in after.splitlines() if "_bucket{" in line]
    assert buckets == sorted(buckets) and buckets[-1] == value(
        after, "minilm_request_seconds_count"
    )
    described = served.get("/openapi.json").json
    assert set(described["paths"]) == {route.path for route in served.api.routes()}
    api = served.api
    schemas = described["components"]["schemas"]
    assert set(schemas["EmbeddingRequest"]["properties"]) == set(api.embedding_fields)
    assert set(schemas["SearchRequest"]["properties"]) == set(api.search_fields)


def test_metrics_do_not_grow_with_paths_that_are_made_up(served):
    for number in range(20):
        assert served.get(f"/made/up/{number}").status == 404
    assert "made" not in served.get("/metrics").body.decode()


# --- what it refuses ------------------------------------------------------------------------------

EMBED, SEARCH = "/v1/embeddings", "/search"
WRONG = {
    "no JSON": (EMBED, b"{", 400, "no JSON"),
    "NaN": (EMBED, b'{"input": NaN}', 400, "no JSON"),
    "not UTF-8": (EMBED, b'{"input": "\xff"}', 400, "no JSON"),
    "a lone surrogate": (EMBED, b'{"input": "\\ud800"}', 400, "no JSON"),
    "deep": (EMBED, b"[" * 100_000, 400, "no JSON"),
    "empty": (EMBED, b"", 400, "no JSON"),
    "a list": (EMBED, [], 422, "must be a JSON object"),
    "no input": (EMBED, {}, 422, "input: missing"),
    "null": (EMBED, {"input": None}, 422, "input: missing"),
    "no texts": (EMBED, {"input": []}, 422, "input: an empty list"),
    "tokens": (EMBED, {"input": [1, 2]}, 422, "input: tokens are those of another model"),
    "lists of tokens": (EMBED, {"input": [[1, 2]]}, 422, "input: tokens are those"),
    "no string": (EMBED, {"input": ["a", {}]}, 422, "input: text 1 is no string"),
    "true": (EMBED, {"input": True}, 422, "input: text 0 is no string"),
    "a misspelt field": (EMBED, {"input": "a", "dimension": 3}, 422, "'dimension': no field"),
    "another format": (EMBED, {"input": "a", "encoding_format": "hex"}, 422, "encoding_format"),
    "0 dimensions": (EMBED, {"input": "a", "dimensions": 0}, 422, "dimensions: must be"),
    "many dimensions": (EMBED, {"input": "a", "dimensions": 33}, 422, "dimensions: must be"),
    "half dimensions": (EMBED, {"input": "a", "dimensions": 1.5}, 422, "dimensions: must be"),
    "true dimensions": (EMBED, {"input": "a", "dimensions": True}, 422, "dimensions: must be"),
    "another model": (EMBED, {"input": "a", "model": "gpt"}, 404, "is not one of: tiny-bert"),
    "a path": (EMBED, {"input": "a", "model": "/etc"}, 404, "is not one of: tiny-bert"),
    "another index": (SEARCH, {"query": "a", "index": "../x"}, 404, "is not one of: vectors"),
    "no query": (SEARCH, {"k": 3}, 422, "query: missing"),
    "k 0": (SEARCH, {"query": "a", "k": 0}, 422, "k: must be"),
    "k 1001": (SEARCH, {"query": "a", "k": 1001}, 422, "k: must be"),
    "many hits": (SEARCH, {"query": ["a"] * 11, "k": 1000}, 422, "k: 11 queries may have"),
    "many texts": (EMBED, {"input": ["a"] * 2049}, 422, "2,049 texts"),
    "another path": ("/v1/../etc/passwd", {}, 404, "Not Found"),
    "another method": ("/health", {}, 405, "Method Not Allowed"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_request_is_one_line_with_its_status(served, kind):
    path, body, status, message = WRONG[kind]
    answer = served.post(path, body)
    assert (answer.status, message in answer.message) == (status, True), answer.body
    assert "\n" not in answer.message and answer.json["error"]["code"] == status
    assert served.embed("bread").status == 200


def test_what_a_form_of_another_site_could_send_is_refused(served):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = served.post(EMBED, b'{"input": "a"}', Content_Type=kind)
        assert answer.status == 415
    assert served.post(EMBED, {"input": "a"}, Content_Type="application/json; charset=utf-8")


def test_another_hosts_name_is_refused(served):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        assert served.get("/health", Host=host).status == 421
    for host in ("localhost", f"localhost:{served.port}", "127.0.0.1", "[::1]:80"):
        assert served.get("/health", Host=host).status == 200


def test_every_answer_has_the_headers_of_safety_and_none_of_cors(served):
    answers = [served.get("/health"), served.get("/none"), served.post(EMBED, b"{"),
               served.get("/health", Host="x"), served.embed("a"),
               served.send("OPTIONS", EMBED, Origin="http://x")]  # fmt: skip
    for answer in answers:
        assert guard.HEADERS.items() <= answer.headers.items()
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "server" not in answer.headers


def test_the_key(tiny_folder):
    with running(model=(str(tiny_folder),), api_key="zebra-7") as one:
        assert one.get("/health").status == 200
        basic = base64.b64encode(b"me:zebra-7").decode()
        for value in ("Bearer zebra-7", "bearer zebra-7", f"Basic {basic}"):
            assert one.get("/v1/models", Authorization=value).status == 200
        for value in (
            "",
            "Bearer",
            "Bearer zebra-",
            "Bearer zebra-77",
            "zebra-7",
            "Basic !",
            "Basic",
        ):
            answer = one.get("/v1/models", Authorization=value)
            assert answer.status == 401 and "www-authenticate" in answer.headers
        assert one.post(EMBED, b"x" * 100).status == 401


def test_a_body_that_is_too_long(tiny_folder):
    with running(model=(str(tiny_folder),), max_body=2000) as one:
        assert one.embed("a" * 1900).status == 200
        assert one.embed("a" * 2000).status == 413
        connection = one.connect()  # without a Content-Length
        connection.request("POST", EMBED, iter([b"x" * 1500] * 2), JSON, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()


def test_too_many_texts_and_tokens(tiny_folder):
    with running(model=(str(tiny_folder),), max_texts=3, max_tokens=20) as one:
        assert one.embed(["a"] * 3).status == 200
        assert one.embed(["a"] * 4).status == 422
        answer = one.embed("a " * 30)
        assert (answer.status, "a request may have 20" in answer.message) == (422, True)
        assert one.embed(["a " * 17] * 3).status == 200  # 19 tokens, computed once


def test_a_full_queue_is_429_and_too_long_a_wait_503(tiny_folder, monkeypatch):
    hold = Hold(monkeypatch)
    with running(model=(str(tiny_folder),), max_queue=20, timeout=1.0) as one:
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(one.embed, "a " * 10)
            wait_for(lambda: hold.batches)
            full = one.embed("b " * 10)
            assert (full.status, full.headers["retry-after"]) == (429, "1")
            assert waiting.result().status == 503
        hold.go.set()
        wait_for(lambda: one.app.metrics.queue == 0)
        assert one.embed("b " * 10).status == 200


def test_serving_others_than_oneself_needs_a_key_or_a_clear_wish():
    from minilm_retriever.serving.config import ServeConfig

    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", ""):
        with pytest.raises(UserError, match="--api-key"):
            ServeConfig(host=host)
        ServeConfig(host=host, api_key="k")
        ServeConfig(host=host, insecure=True)
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        ServeConfig(host=host)
    with pytest.raises(UserError, match="empty"):
        ServeConfig(api_key="")


def test_a_folder_of_no_served_model_and_a_model_twice(tiny_folder, vectors, tmp_path):
    from tests.tiny import make_tiny_bert

    other = make_tiny_bert(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="encoded with another model"), running(
        model=(str(other),), folders=(str(vectors),)
    ):  # fmt: skip
        pass
    with pytest.raises(UserError, match="twice"), running(model=(str(other), str(other))):
        pass
    both = (str(other), str(tiny_folder))
    with running(model=both, folders=(str(vectors),)) as one:
        assert one.post(SEARCH, {"query": "a"}).json["model"] == "tiny-bert"
        assert one.embed("a").json["model"] == "other"


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
    for _ in range(600):
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
