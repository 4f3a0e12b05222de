"""A toy causal model cut into tiers, over a toy KV cache.

Small enough to recompute from scratch, and built so that every mistake shows: a layer's output depends on all tokens up
to its position, a cell of the KV cache that nobody wrote is NaN, and every position a tier computes is logged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from vllm_kangaroo.ladder.ladder import Ladder
from vllm_kangaroo.ladder.spans import IntArray, Spans
from vllm_kangaroo.ladder.store import State

VOCAB, HIDDEN, LONGEST = 13, 5, 96


class ToyModel:
    """Layers that add ``tanh`` of the mean key of all positions so far; double precision.

    As in vLLM, a layer takes and returns hidden states and residual, whose sum is the residual stream.
    """

    def __init__(self, layers: int) -> None:
        generator = torch.Generator().manual_seed(5)
        wide = {"generator": generator, "dtype": torch.float64}
        self.embedding = torch.randn(VOCAB, HIDDEN, **wide)
        self.keys = torch.randn(layers, HIDDEN, HIDDEN, **wide)

    def reference(self, token_ids: Sequence[int]) -> list[Tensor]:
        """Residual streams ``[tokens, HIDDEN]``: of the embeddings, then after each layer. No cache, no tiers."""
        streams = [self.embedding[list(token_ids)]]
        count = torch.arange(1, len(token_ids) + 1, dtype=torch.float64)[:, None]
        for key in self.keys:
            streams.append(streams[-1] + torch.tanh((streams[-1] @ key).cumsum(0) / count))
        return streams


class ToyAttention:
    """Serves passes over spans from one KV cache per request; ``requests[row]`` names the owner of a batch row."""

    def __init__(self, model: ToyModel) -> None:
        self.model = model
        self.requests: list[str] = []
        self.cells: dict[str, Tensor] = {}  # [layers, LONGEST, HIDDEN]
        self.computed: list[tuple[str, int, int]] = []  # request, layer, position
        self._spans: Spans | None = None
        self._joined: tuple[Spans, Spans] | None = None

    def lose(self, request: str) -> None:
        """Free the KV blocks of a request."""
        self.cells.pop(request, None)

    @contextmanager
    def over(self, spans: Spans) -> Iterator[Tensor]:
        self._spans = spans
        yield torch.from_numpy(spans.positions())
        self._spans = None

    @contextmanager
    def joined(self, tail: Spans, spans: Spans) -> Iterator[tuple[Tensor, Tensor]]:
        self._joined = (tail, spans)
        yield torch.from_numpy(tail.positions()), torch.from_numpy(spans.positions())
        self._joined = self._spans = None

    @contextmanager
    def chain(self, rows: IntArray, starts: IntArray, steps: int) -> Iterator[ToyChain]:
        yield ToyChain(self, rows, starts, steps)
        self._spans = None

    def run(self, layers: range, positions: Tensor, state: State) -> State:
        """Run ``layers`` over what the context says, writing and reading the cache."""
        spans = self._spans
        assert spans is not None, "a pass outside of any attention context"
        assert positions.tolist() == spans.positions().tolist()
        assert len(state[0]) == spans.tokens
        for layer in layers:
            stream = sum(state)
            assert isinstance(stream, Tensor)
            mixed = [
                self._attend(layer, self.requests[row], range(start, end), part)
                for row, start, end, part in zip(
                    spans.rows.tolist(),
                    spans.starts.tolist(),
                    spans.ends.tolist(),
                    (stream @ self.model.keys[layer]).split(spans.lengths.tolist()),
                    strict=True,
                )
            ]
            state = (torch.cat(mixed), stream)
        return state

    def _attend(self, layer: int, request: str, where: range, keys: Tensor) -> Tensor:
        blank = torch.full((len(self.model.keys), LONGEST, HIDDEN), torch.nan, dtype=torch.float64)
        cells = self.cells.setdefault(request, blank)[layer]
        cells[where.start : where.stop] = keys
        self.computed += [(request, layer, position) for position in where]
        return torch.stack([torch.tanh(cells[: position + 1].mean(0)) for position in where])


class ToyChain:
    """One-token passes of the same requests."""

    def __init__(
        self, attention: ToyAttention, rows: IntArray, starts: IntArray, steps: int
    ) -> None:
        self.attention, self.rows, self.starts = attention, rows, starts
        self.steps_left = steps
        self.retained: list[list[int]] = []
        self._enter()

    def _enter(self) -> None:
        self.steps_left -= 1
        assert self.steps_left >= 0, "a chain advanced past the steps it was opened for"
        lengths = self.starts - self.starts + 1
        self.attention._spans = Spans(self.rows, self.rows, self.starts, lengths)
        self.positions = torch.from_numpy(self.starts)

    def advance(self) -> None:
        self.starts = self.starts + 1
        self._enter()

    def retain(self, which: IntArray) -> None:
        self.retained.append(which.tolist())
        self.rows, self.starts = self.rows[which], self.starts[which]


class ToyTiers:
    """A ladder over a :class:`ToyModel`, and a draft pass with an argmax head over the embeddings."""

    def __init__(
        self, exits: tuple[int, ...], width: int, *, joined: bool = False, whole: bool = False
    ) -> None:
        self.model = ToyModel(exits[-1])
        self.attention = ToyAttention(self.model)
        self.exits = exits
        self.joined_passes = 0
        self.whole_passes = 0
        self.ranges = ranges = [
            range(low, high) for low, high in zip((0, *exits), exits, strict=False)
        ]
        self.ladder = Ladder(
            lambda input_ids, positions: self._bottom(ranges[0], input_ids, positions),
            [
                lambda positions, state, layers=layers: self.attention.run(layers, positions, state)
                for layers in ranges[1:-1]
            ],
            lambda positions, state: torch.stack(
                self.attention.run(ranges[-1], positions, state)
            ).sum(0),
            width=width,
            device=torch.device("cpu"),
            joined=self._joined if joined else None,
            whole=self._whole if whole else None,
        )

    def _whole(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        self.whole_passes += 1
        state = self._bottom(self.ranges[0], input_ids, positions)
        for layers in self.ranges[1:]:
            state = self.attention.run(layers, positions, state)
        return torch.stack(state).sum(0)

    def _joined(
        self,
        input_ids: Tensor,
        tail_positions: Tensor,
        positions: Tensor,
        order: Tensor,
        state: State,
    ) -> Tensor:
        self.joined_passes += 1
        attention = self.attention
        assert attention._joined is not None
        attention._spans, whole = attention._joined
        tail = self._bottom(self.ranges[0], input_ids, tail_positions)
        for layers in self.ranges[1:-1]:
            tail = attention.run(layers, tail_positions, tail)
        attention._spans = whole
        mixed = tuple(torch.cat(parts)[order] for parts in zip(state, tail, strict=True))
        return torch.stack(attention.run(self.ranges[-1], positions, mixed)).sum(0)

    def _bottom(self, layers: range, input_ids: Tensor, positions: Tensor) -> State:
        embedded = self.model.embedding[input_ids.long()]
        return self.attention.run(layers, positions, (embedded, torch.zeros_like(embedded)))

    def draft_pass(
        self, input_ids: Tensor, positions: Tensor, memory: Tensor | None = None
    ) -> tuple[State, Tensor, Tensor]:
        """See :class:`vllm_kangaroo.drafting.kangaroo.DraftPass`."""
        state = self.ladder.bottom(input_ids, positions)
        token_ids, confidences = self.head(torch.stack(state).sum(0))
        return state, token_ids.to(torch.int32), confidences

    def head(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Next tokens of residual streams ``[tokens, HIDDEN]``, and their probabilities."""
        confidences, token_ids = (stream @ self.model.embedding.t()).softmax(-1).max(-1)
        return token_ids, confidences
