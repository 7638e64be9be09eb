"""The API of `serve`, over real connections: what it answers, what it refuses, what it survives."""

from __future__ import annotations

import base64
import json
import random
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minilm_retriever import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.search import find, open_index
from minilm_retriever.vectors.vector_folder import save_vectors
from tests.serving import EMBED, JSON, SEARCH, Hold, running, wait_for

from minilm_retriever.serving import guard  # isort: skip

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
    fields = described["components"]["schemas"]["EmbeddingRequest"]["properties"]
    assert fields["model"]["enum"] == ["tiny-bert"] and fields["dimensions"]["maximum"] == 32


@pytest.mark.parametrize("path, schema", [(EMBED, "EmbeddingRequest"), (SEARCH, "SearchRequest")])
def test_a_field_is_as_it_is_described(served, path, schema):
    described = served.get("/openapi.json").json["components"]["schemas"][schema]
    required = dict.fromkeys(described["required"], "bread")
    assert served.post(path, required).status == 200
    for name, field in described["properties"].items():
        right = [*field.get("enum", []), field.get("minimum"), field.get("maximum")]
        for value in filter(None, right):
            assert served.post(path, {**required, name: value}).status == 200, (name, value)
        wrong = [{}, 0.5, False, field.get("minimum", 1) - 1, field.get("maximum", 0) + 1]
        for value in [*wrong, *(["other"] if "enum" in field else [])]:
            answer = served.post(path, {**required, name: value})
            assert answer.status in (404, 422) and answer.message.startswith(f"{name}: ")


def test_metrics_do_not_grow_with_paths_that_are_made_up(served):
    for number in range(20):
        assert served.get(f"/made/up/{number}").status == 404
    assert "made" not in served.get("/metrics").body.decode()


# --- what it refuses ------------------------------------------------------------------------------

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
        wrong = "|Bearer|Bearer zebra-|Bearer zebra-77|zebra-7|Basic !|Basic".split("|")
        for value in wrong:
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
