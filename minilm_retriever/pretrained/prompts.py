"""Prompts: words that some models want before a text, such as "query: ". They stand in the model's
folder, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.model_folder import Settings
from minilm_retriever.pretrained.tokenizer import TextTokenizer

# The names under which model folders keep the prompts of queries and documents; the first that is
# there counts.
QUERY = ("query",)
DOCUMENT = ("document", "passage", "corpus")


@dataclass(frozen=True)
class Prompt:
    """A prompt and how many of its leading tokens are left out of the mean."""

    text: str = ""
    tokens: int = 0  # 0 where the model pools its prompts, as nearly all do

    def before(self, texts: Sequence[str]) -> Sequence[str]:
        """The texts with the prompt before each."""
        # What is no str is left as it is: the tokenizer names it.
        return [self.text + t if isinstance(t, str) else t for t in texts] if self.text else texts


def find_prompt(
    settings: Settings,
    tokenizer: TextTokenizer,
    text: str | None,
    name: str | None,
    task: Sequence[str] = (),
) -> Prompt:
    """The prompt that was asked for: its text, else its name, else the task's, else the model's
    default, else none.

    Raises UserError for a name that the model folder does not have, or both a text and a name."""
    if text is not None and name is not None:
        raise UserError("a prompt and a prompt's name exclude each other")
    if text is None and name is not None:
        if name not in settings.prompts:
            known = ", ".join(settings.prompts) or "none"
            raise UserError(f"the model folder has no prompt {name!r}; it has: {known}")
        text = settings.prompts[name]
    if text is None:
        text = next((settings.prompts[one] for one in task if settings.prompts.get(one)), None)
    if text is None and settings.default_prompt_name is not None:
        text = settings.prompts[settings.default_prompt_name]
    if not text:
        return Prompt()
    # [CLS] and the prompt's own tokens, as in sentence-transformers; its [SEP] stands behind the
    # text.
    return Prompt(
        text, 0 if settings.include_prompt else int(tokenizer.tokenize([text]).lengths[0]) - 1
    )
