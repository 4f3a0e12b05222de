"""The tokenizer of a GGUF file, where what the file names is known well enough to rebuild it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from vllm_kangaroo.training.checkpoints.gguf_file import GgufError, GgufFile

# What llama.cpp (src/llama-vocab.cpp) does for the values of tokenizer.ggml.pre, beyond the splits
# that transformers knows: every digit by itself, or GPT-2's split as it is.
DIGITS = frozenset(
    ("codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder")
)
AS_GPT2 = frozenset(
    ("gpt-2", "granite-docling", "jais", "jina-de", "jina-es", "mpt", "olmo", "phi-2", "trillion")
)
# Vocabularies in which a word that is a token is never built from merges, and a text begins with BOS.
WHOLE_WORDS = frozenset(
    (
        "falcon-h1",
        "falcon3",
        "lfm2",
        "llama-bpe",
        "llama-v3",
        "llama3",
        "midm-2.0",
        "pixtral",
        "tekken",
    )
)
_REMEDY = "name a directory with the model's own tokenizer with --tokenizer"


def load_tokenizer(file: GgufFile, folder: Path | None) -> Any:
    """The tokenizer of a file as transformers has it.

    Args:
        folder: where to take it from instead.

    Raises:
        GgufError: one of an unknown kind, or a folder without one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if folder is not None:
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers names no class for this
            raise GgufError(
                f"--tokenizer '{folder}' holds no usable tokenizer ({_line(error)}); name a "
                "directory that does"
            ) from None
    kind, pre = (file.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind == "gpt2":
        _refuse_unknown_split(file, pre)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            file.path.parent, gguf_file=file.path.name, local_files_only=True
        )
    except Exception as error:  # as above
        raise GgufError(
            f"'{file.path}' holds no usable tokenizer (tokenizer.ggml.model={kind!r}: "
            f"{_line(error)}); {_REMEDY}"
        ) from None
    backend = tokenizer.backend_tokenizer
    if kind == "gpt2" and pre in DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    whole = kind == "gpt2" and pre in WHOLE_WORDS
    if whole:
        backend.model.ignore_merges = True
    begins = file.metadata.get("tokenizer.ggml.add_bos_token", whole or kind == "llama")
    tokenizer.add_bos_token = bool(begins) and tokenizer.bos_token is not None
    tokenizer.add_eos_token = bool(file.metadata.get("tokenizer.ggml.add_eos_token", False))
    tokenizer.update_post_processor()
    return tokenizer


def _refuse_unknown_split(file: GgufFile, pre: str | None) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if pre not in DIGITS | AS_GPT2 | GGUF_PRE_TOKENIZER_SPLITS.keys():
        raise GgufError(
            f"'{file.path}' has tokenizer.ggml.pre={pre!r}, for which no way of splitting text is "
            f"known; {_REMEDY}"
        )


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
