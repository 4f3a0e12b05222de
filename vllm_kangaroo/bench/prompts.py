"""Prompts of the demo and of Spec-Bench, and how some are chosen from many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, TypeAdapter

from vllm_kangaroo.demo.models import MEASURED
from vllm_kangaroo.text_inputs import InputError, TextInput

DEMO_PROMPTS = MEASURED.prompts
FORM = "a JSON list of {name, messages} or Spec-Bench's question.jsonl"
# Spec-Bench (arXiv 2401.07851) reports the eight categories of its MT-Bench part as one task.
MT_BENCH = frozenset(
    ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
)


class PromptError(InputError):
    """Prompts that cannot be used; one sentence with the remedy."""


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(BaseModel):
    """A chat for the model to answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    messages: tuple[Message, ...] = Field(min_length=1)
    category: str = "demo"
    _where: str = PrivateAttr(default="")

    @classmethod
    def of_text(cls, name: str, text: str, category: str = "demo") -> Prompt:
        """A chat of one user's turn."""
        return cls(name=name, messages=(Message(role="user", content=text),), category=category)

    @property
    def where(self) -> str:
        """Its place in words: line or entry of a file, or its name."""
        return self._where or f"prompt {self.name!r}"

    def found_at(self, where: str) -> Prompt:
        """The same prompt, read from there."""
        self._where = where
        return self


class _Question(BaseModel):
    """A line of Spec-Bench's question.jsonl; what else stands in it is not used."""

    question_id: int | str
    category: str
    turns: list[str] = Field(min_length=1)


def load_prompts(path: Path, model: str = "") -> list[Prompt]:
    """Read the demo's form (a JSON list of name and messages) or Spec-Bench's ``question.jsonl``.

    Of a Spec-Bench question only the first turn is taken.

    Args:
        model: the model that is to answer; if it is a local directory, its chat template is tried now and
            not when the engines have been started.

    Raises:
        PromptError: if the file is missing, empty or in neither form, or the model's chat template
            refuses a prompt.
    """
    source = TextInput(path, PromptError, f"--prompts {path}", f": give {FORM}.")
    if source.suffix == ".jsonl":
        prompts = [
            _of_question(line.read_as(_Question)).found_at(line.where) for line in source.lines()
        ]
    else:
        prompts = [
            prompt.found_at(f"entry {number} of {source.title}")
            for number, prompt in enumerate(source.document(TypeAdapter(list[Prompt])), start=1)
        ]
    if not prompts:
        raise source.fault("holds no prompt")
    if model and Path(model).is_dir():
        _try_template(prompts, model)
    return prompts


def _try_template(prompts: Sequence[Prompt], model: str) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError):
        return  # a tokenizer that vLLM alone can read
    for prompt in prompts:
        encode(tokenizer, prompt)


def _of_question(question: _Question) -> Prompt:
    category = "mt_bench" if question.category in MT_BENCH else question.category
    return Prompt.of_text(str(question.question_id), question.turns[0], category)


def evenly(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Choose ``count`` prompts: as many of each category as can be, evenly spaced within it.

    Their order stays as it was; all of them if there are no more than ``count``.
    """
    categories: dict[str, list[int]] = {}
    for at, prompt in enumerate(prompts):
        categories.setdefault(prompt.category, []).append(at)
    shares = _shares([len(members) for members in categories.values()], count)
    chosen = [
        members[(2 * at + 1) * len(members) // (2 * share)]
        for members, share in zip(categories.values(), shares, strict=True)
        for at in range(share)
    ]
    return [prompts[at] for at in sorted(chosen)]


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """Split ``count`` over groups as evenly as their sizes allow."""
    shares = [0] * len(sizes)
    for _ in range(min(count, sum(sizes))):
        open_groups = [at for at, size in enumerate(sizes) if shares[at] < size]
        shares[min(open_groups, key=lambda at: shares[at])] += 1
    return shares


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a chat up to where the answer begins, by the model's chat template.

    Raises:
        PromptError: if the model has none, or refuses the chat.
    """
    if not getattr(tokenizer, "chat_template", None):
        name = Path(str(tokenizer.name_or_path)).name
        raise PromptError(f"--model {name} has no chat template: choose a model for chats.")
    messages = [message.model_dump() for message in prompt.messages]
    try:
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # a template is a program of the model's
        raise PromptError(
            f"{prompt.where} is refused by the model's chat template ({error}): correct it."
        ) from None
    return [int(token_id) for token_id in encoded]
