"""The openai client and LangChain against `serve`, in an environment that has them: BASE_URL TEXTS
-> a JSON line of the vectors they made and what refusals they raised. Called by clients.py."""

import json
import sys
from collections.abc import Callable
from typing import Any

import openai
from langchain_openai import OpenAIEmbeddings


def main(base: str, texts: list[str]) -> dict[str, Any]:
    client = openai.OpenAI(base_url=base, api_key="zebra-7", max_retries=0)
    model = client.models.list().data[0].id
    create = client.embeddings.create
    made = {}
    for name, options in {"default": {}, "float": {"encoding_format": "float"}}.items():
        answer = create(model=model, input=texts, **options)
        made[f"openai, {name}"] = [item.embedding for item in answer.data]
        assert answer.usage.total_tokens == answer.usage.prompt_tokens > 0
    made["openai, 1 text"] = [create(model=model, input=t).data[0].embedding for t in texts]
    answer = create(model=model, input=texts, dimensions=64)
    assert {len(item.embedding) for item in answer.data} == {64}
    chain = OpenAIEmbeddings(
        base_url=base, api_key="zebra-7", model=model, check_embedding_ctx_length=False
    )
    made["langchain, documents"] = chain.embed_documents(texts)
    made["langchain, query"] = [chain.embed_query(text) for text in texts]
    failures: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
        "another model": (openai.NotFoundError, lambda: create(model="no", input="a")),
        "no texts": (openai.UnprocessableEntityError, lambda: create(model=model, input=[])),
        "tokens": (openai.UnprocessableEntityError, lambda: create(model=model, input=[1])),
        "a wrong key": (
            openai.AuthenticationError,
            lambda: client.with_options(api_key="x").models.list(),
        ),
    }
    return {"made": made, "raised": {name: raised(*case) for name, case in failures.items()}}


def raised(kind: type[Exception], call: Callable[[], Any]) -> str:
    """ "ok", or what came in place of the error that was to come."""
    try:
        call()
    except kind:
        return "ok"
    except Exception as other:  # noqa: BLE001 - whatever came instead is shown
        return repr(other)
    return "nothing"


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
