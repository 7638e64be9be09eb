"""Hold `serve` against the clients that people have: `make clients`.

    python tests/reference/clients.py [--base checkpoints/all-MiniLM-L6-v2] [--python BIN/python]

Makes an environment of their own for openai and langchain-openai (.peers/clients; needs a package
index, once), serves the model, and compares what the clients return with Encoder.encode, with and
without a key. One line a check; exit status 1 if any fails."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TEXTS = ["He bakes bread.", "She repairs watches.", "", "שלום 👩‍🔧"]

CHECKS = """
import json, sys
import openai
from langchain_openai import OpenAIEmbeddings
base, texts = sys.argv[1], json.loads(sys.argv[2])
client = openai.OpenAI(base_url=base, api_key="zebra-7", max_retries=0)
model = client.models.list().data[0].id
made = {}
for name, options in {"default": {}, "float": {"encoding_format": "float"}}.items():
    answer = client.embeddings.create(model=model, input=texts, **options)
    made["openai, " + name] = [item.embedding for item in answer.data]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens > 0
made["openai, 1 text"] = [client.embeddings.create(model=model, input=t).data[0].embedding for t in texts]
answer = client.embeddings.create(model=model, input=texts, dimensions=64)
assert {len(item.embedding) for item in answer.data} == {64}
chain = OpenAIEmbeddings(base_url=base, api_key="zebra-7", model=model, check_embedding_ctx_length=False)
made["langchain, documents"] = chain.embed_documents(texts)
made["langchain, query"] = [chain.embed_query(text) for text in texts]
failures = {
    "another model": (openai.NotFoundError, lambda: client.embeddings.create(model="no", input="a")),
    "no texts": (openai.UnprocessableEntityError, lambda: client.embeddings.create(model=model, input=[])),
    "tokens": (openai.UnprocessableEntityError, lambda: client.embeddings.create(model=model, input=[1])),
    "a wrong key": (openai.AuthenticationError, lambda: client.with_options(api_key="x").models.list()),
}
raised = {}
for name, (kind, call) in failures.items():
    try:
        call()
        raised[name] = "nothing"
    except kind:
        raised[name] = "ok"
    except Exception as other:
        raised[name] = repr(other)
print(json.dumps({"made": made, "raised": raised}))
"""  # noqa: E501


def clients_python() -> Path:
    """The interpreter of an environment with the clients, made where there is none."""
    folder = ROOT / ".peers" / "clients"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "openai", "langchain-openai"], check=True)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=str(ROOT / "checkpoints/all-MiniLM-L6-v2"))
    parser.add_argument("--python", type=Path)
    args = parser.parse_args()
    python = args.python or clients_python()
    command = [sys.executable, "-m", "minilm_retriever", "serve", "--model", args.base]
    command += ["--port", "0", "--api-key", "zebra-7"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        base = server.stderr.readline().split("serving at ")[1].split()[0] + "v1"
        try:
            run = [python, "-c", CHECKS, base, json.dumps(TEXTS)]
            answer = json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE).stdout)
        finally:
            server.terminate()
    return report(args.base, answer)


def report(base: str, answer: dict) -> int:
    import numpy as np

    sys.path.insert(0, str(ROOT))
    from minilm_retriever import Encoder

    expected = Encoder.from_pretrained(base).encode(TEXTS)
    bad = 0
    for name, vectors in answer["made"].items():
        difference = float(np.abs(np.array(vectors) - expected).max())
        bad += difference > 1e-6
        print(f"{'ok ' if difference <= 1e-6 else 'BAD'}  {name}: difference {difference:.1e}")
    for name, outcome in answer["raised"].items():
        bad += outcome != "ok"
        print(f"{'ok ' if outcome == 'ok' else 'BAD'}  {name}: refused ({outcome})")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
