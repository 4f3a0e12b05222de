"""A part of the target's LM head: the rows of the tokens that an adapter drafts.

The head of a model with a large vocabulary costs as much as several of its layers, and few tokens make up most of what
it writes. A token outside is never drafted, which costs acceptance and changes no output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from vllm_kangaroo.adapters.checkpoint import check_draft_vocab
from vllm_kangaroo.adapters.config import DRAFT_VOCAB, AdapterConfig
from vllm_kangaroo.integration.passes.cutting import Cut
from vllm_kangaroo.options import OptionError


class DraftVocabulary(nn.Module):
    """Logits of some tokens, computed from copies of their rows of the target's LM head.

    Under tensor parallelism each rank holds a slice of the rows.
    """

    token_ids: Tensor
    """The tokens, ascending, int64 ``[R]``."""

    def __init__(self, cut: Cut, config: AdapterConfig) -> None:
        super().__init__()
        # Not as an attribute, or the target would become a submodule of ours.
        self._cut = (cut,)
        size = config.draft_vocab_size
        assert size is not None
        self.config = config
        self.rows = ParallelLMHead(size, config.hidden_size, org_num_embeddings=size)
        theirs: Any = getattr(cut.target, "logits_processor", None)
        self.processor = LogitsProcessor(
            size, scale=getattr(theirs, "scale", 1.0), soft_cap=getattr(theirs, "soft_cap", None)
        )
        self.register_buffer("token_ids", torch.arange(size), persistent=False)
        self.parallel = get_tensor_model_parallel_world_size() > 1

    def forward(self, hidden: Tensor) -> Tensor:
        """Normed hidden states of the target's decoder ``[tokens, N]`` -> logits ``[tokens, R]``."""
        logits = self.processor(self.rows, self._cut[0].finished(hidden))
        assert logits is not None
        return logits

    def likeliest(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of the likeliest tokens among the logits, and their probabilities in float32: ``[tokens]`` each.

        Tensor-parallel ranks exchange a logit, a place and a sum for each token, and no logits.
        """
        if self.parallel:
            columns, log_probs = self.processor.get_top_k_tokens(
                self.rows, self._cut[0].finished(hidden), 1, return_log_probs=True
            )
            return columns[:, 0], log_probs[:, 0].exp()
        logits = self(hidden).float()
        top, column = logits.max(dim=-1)
        return column, (top - logits.logsumexp(dim=-1)).exp()

    def load(self, weights: dict[str, Tensor], directory: Path) -> None:
        """Take the rows that the checkpoint names out of the target's LM head.

        Raises:
            AdapterError: if they are no tokens of the target.
            OptionError: if the target's head has no plain rows.
        """
        token_ids = weights[DRAFT_VOCAB].long()
        check_draft_vocab(token_ids, self.config, directory)
        self.token_ids.copy_(token_ids)
        target = self._cut[0].target
        head = lm_head_of(target)
        if head is None:
            raise OptionError(
                f"speculative_config names the adapter '{directory}', which drafts {len(token_ids)} tokens of the "
                f"vocabulary, but {type(target).__name__} has no plain LM head to take their rows from: use an adapter "
                f"trained with `--draft-vocab all`."
            )
        self.rows.weight_loader(self.rows.weight, _rows(head, self.token_ids))

    @torch.no_grad()
    def check(self, directory: Path) -> None:
        """Compare with the target's own logits of a state drawn at random: some classes do more than their head.

        Raises:
            OptionError: if they differ.
        """
        like = self.rows.weight
        generator = torch.Generator().manual_seed(0)
        state = torch.randn(2, like.shape[1], generator=generator).to(like)
        cut = self._cut[0]
        theirs: Tensor | None = cut.logits(state)
        ours = self(state)
        if theirs is None:  # gathered to another rank, which compares them
            return
        wanted = theirs.index_select(1, self.token_ids).float()
        if not torch.allclose(ours.float(), wanted, rtol=0.02, atol=0.02 * float(wanted.std())):
            raise OptionError(
                f"speculative_config names the adapter '{directory}', which drafts a part of the vocabulary, but "
                f"{type(cut.target).__name__} does more to its logits than its LM head does: use an adapter trained with "
                f"`--draft-vocab all`."
            )


def lm_head_of(target: nn.Module) -> VocabParallelEmbedding | None:
    """The module whose rows give the target's logits, or None if they are not plain numbers."""
    head = getattr(target, "lm_head", None)
    if not isinstance(head, VocabParallelEmbedding):
        decoder = getattr(target, "model", None)
        head = getattr(decoder, "embed_tokens", None)
    plain = isinstance(head, VocabParallelEmbedding) and isinstance(
        head.quant_method, UnquantizedEmbeddingMethod
    )
    return head if plain else None


def _rows(head: VocabParallelEmbedding, token_ids: Tensor) -> Tensor:
    """Rows ``[R, N]`` of a head that may be split over ranks."""
    first = head.shard_indices.org_vocab_start_index
    last = head.shard_indices.org_vocab_end_index
    own = (token_ids >= first) & (token_ids < last)
    found = head.weight.new_zeros(len(token_ids), head.weight.shape[1])
    found[own] = head.weight.data[token_ids[own] - first]
    if get_tensor_model_parallel_world_size() == 1:
        return found
    summed: Tensor = tensor_model_parallel_all_reduce(found)
    return summed
