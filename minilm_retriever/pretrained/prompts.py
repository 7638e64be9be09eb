"""Prompts: prefixes that some models need, such as "query: ", by name in the model folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.model_folder import LoadedModel

# Names of the prompts for queries and for documents; the first that a model has counts.
QUERY = ("query",)
DOCUMENT = ("document", "passage", "corpus")


@dataclass(frozen=True)
class Prompt:
    """A prompt and how many of its leading tokens are left out of the mean."""

    text: str = ""
    tokens: int = 0  # 0 where the model pools its prompts, as nearly all do

    def before(self, texts: Sequence[str]) -> Sequence[str]:
        """The texts, each with the prompt before it."""
        # What is no str is left as it is: the tokenizer's error names it.
        return [self.text + t if isinstance(t, str) else t for t in texts] if self.text else texts


class Prompts(NamedTuple):
    """The prompts of retrieval."""

    query: Prompt = Prompt()
    document: Prompt = Prompt()

    def __str__(self) -> str:
        return (
            f"prompts {self.query.text!r} before queries, {self.document.text!r} before documents"
        )

    def __bool__(self) -> bool:
        return bool(self.query.text or self.document.text)


def retrieval_prompts(
    model: LoadedModel, query: str | None = None, document: str | None = None
) -> Prompts:
    """The prompts before queries and documents: these texts, else those of the model's folder."""
    return Prompts(
        find_prompt(model, query, task=QUERY), find_prompt(model, document, task=DOCUMENT)
    )


def pair_prompts(
    model: LoadedModel, first: str | None = None, second: str | None = None
) -> Prompts:
    """The prompts before both sides of scored pairs: without texts the model's default prompt, for
    both are texts of one kind."""
    if first is None and second is None:
        return Prompts(*[find_prompt(model)] * 2)
    return retrieval_prompts(model, first, second)


def with_prompts(
    model: LoadedModel, query: str | None, document: str | None, *, alike: bool = False
) -> LoadedModel:
    """The model with these texts as the prompts of its folder. alike: both sides of a pair are
    texts of one kind, so that one prompt for both is the default prompt, too."""
    texts = {QUERY[0]: query, DOCUMENT[0]: document}
    prompts = {name: text for name, text in texts.items() if text is not None}
    default = model.settings.default_prompt_name
    if alike and prompts and query == document:
        default = QUERY[0]
    settings = replace(
        model.settings,
        prompts={**model.settings.prompts, **prompts},
        default_prompt_name=default,
    )
    return replace(model, settings=settings)


def find_prompt(
    model: LoadedModel, text: str | None = None, name: str | None = None, task: Sequence[str] = ()
) -> Prompt:
    """The prompt of this text, else of this name, else of the task, else (without a task) the
    model's default, else none.

    As in sentence-transformers 6.2.0, a task's prompt that the folder has is used even where it is
    empty, and a task never falls back to the default. Raises UserError for a name that the model's
    folder lacks, or both a text and a name."""
    prompts = model.settings.prompts
    if text is not None and name is not None:
        raise UserError("a prompt and a prompt's name exclude each other")
    if name is not None and name not in prompts:
        known = ", ".join(prompts) or "none"
        raise UserError(f"the model folder has no prompt {name!r}; it has: {known}")
    if text is None:
        if name is None:
            of_task = (prompt for prompt in task if prompt in prompts)
            name = next(of_task, None) if task else model.settings.default_prompt_name
        text = prompts[name] if name is not None else ""
    if not text or model.settings.include_prompt:
        return Prompt(text)
    return Prompt(text, model.tokenizer.prompt_length(text))
