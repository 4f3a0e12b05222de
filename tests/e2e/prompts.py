"""Prompts near the demo model's data, so that early exits have something to agree with."""

from __future__ import annotations

from functools import cache
from typing import Any

from vllm_kangaroo import tiny_model

QUESTIONS = (
    "Can you find me a bus to San Francisco?",
    "I want to book a table for four people at an Italian restaurant tonight.",
    "What is the weather like in London on Sunday?",
    "I am looking for a cheap hotel near the city centre.",
    "Tom has 12 apples and gives 5 of them to Anna. How many apples does Tom have left?",
    "Please play some jazz music in the living room.",
    "Who wrote the first novel about a white whale?",
    "I would like to see a comedy at seven in the evening.",
    "A shop sells 3 pens for 2 dollars. How much do 12 pens cost?",
    "Is there a flight from Seattle to New York next Friday morning?",
    "Tell me why the sky is blue.",
    "I need a doctor in San Jose who takes new patients.",
    "Write a short story about a fox and a river.",
    "Make an appointment with the hair dresser for tomorrow at noon.",
    "Which of these is a fruit: a carrot, an apple or a stone?",
    "How many minutes are there in three hours and a half?",
)
PROMPTS = [
    "The weather in London today is",
    "Book a table for two",
    "Once upon a time there was a",
    "How many rooms do you need?",
    "I would like to",
    "The train leaves at",
    "List three things to do in Paris:",
    "Yes, please. The number is",
]
"""Texts to go on with, as ``/v1/completions`` takes them."""
STORY = (
    "The old man walked along the river every morning before the sun came up, and every morning he counted the "
    "boats that lay at the pier. There were seven of them on most days. When there were eight he stopped and asked "
    "who had come, and when there were six he sat down on the bench and waited for the one that was missing. "
)


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model())


def encode(text: str) -> list[int]:
    ids: list[int] = tokenizer()(text, add_special_tokens=False)["input_ids"]
    return ids


def chat(question: str) -> list[int]:
    """A question as the demo model was trained to see it."""
    return encode(f"<|bos|><|user|>\n{question}\n<|assistant|>\n")


@cache
def mixed() -> tuple[list[int], ...]:
    """Sixteen prompts from a handful of tokens to most of two hundred."""
    return tuple(
        chat(STORY * (number % 4 if number % 3 == 0 else 0) + question)
        for number, question in enumerate(QUESTIONS)
    )
