"""Prompts: prefixes that some models need, such as "query: ", by name in the model folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
