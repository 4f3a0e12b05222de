"""Everything a user can set for adapter training: one field, one flag."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from vllm_kangaroo.adapters.config import ModelType
from vllm_kangaroo.training.run.training_options import TrainingOptions

MODEL_TYPES: dict[str, ModelType] = {
    "attention": "kangaroo_adapter",
    "ffn": "kangaroo_ffn_adapter",
    "memory": "kangaroo_memory_adapter",
}


class AdapterTrainingOptions(TrainingOptions):
    """Options of ``vllm-kangaroo train adapter``; the flags are the field names with dashes."""

    model: str = Field(description="local checkpoint directory of the target")
    data: tuple[Path, ...] = Field(
        default=(),
        description=".txt or .jsonl files, also .xz or .gz; a file named twice counts twice",
    )
    answers: tuple[Path, ...] = Field(
        default=(),
        description="directories of `train answers`, in place of --data: the states that the model had "
        "while it wrote them are read, and the model is not run",
    )
    held_out_answers: tuple[Path, ...] = Field(
        default=(), description="further ones, to measure on; needed with --answers"
    )
    kind: Literal["attention", "ffn", "memory"] = Field(
        default="attention",
        description="attention alone, as published; with a feed-forward part; or with that and a "
        "memory of the last verified position. The latter two need --answers",
    )
    draft_vocab: int | None = Field(
        default=None,
        ge=1,
        description="draft only the so many tokens that stand most often in the answers; all if not "
        "given. Needs --answers",
    )
    round_length: int = Field(
        default=6, ge=1, description="most drafts of a round, which a memory is trained for"
    )
    exit_layer: tuple[int, ...] = Field(
        min_length=1,
        description="layers of the target that draft; given several times, an adapter for each is "
        "trained in the same pass over the data",
    )
    out: Path = Field(
        description="directory to write the adapter to; of several, to exit-L inside it"
    )
    targets: Literal["model", "text", "acceptance"] = Field(
        default="model",
        description="what to learn: the model's distribution over the next token; the token that "
        "follows in the text, which needs only the layers up to the deepest exit; or, with "
        "--answers, the model's distribution by a loss that follows acceptance",
    )
    cache_gib: float = Field(
        default=0.0,
        ge=0,
        description="memory to keep exit states in, so that later passes over the data do not run "
        "the target; 0 for none",
    )
    on_policy: bool = Field(
        default=False,
        description="train on answers that the model itself gives, by vLLM, in place of those in "
        "the conversations",
    )
    on_policy_temperature: float = Field(
        default=0.8, ge=0, description="of those answers; 0 is greedy"
    )
    on_policy_tokens: int = Field(default=256, ge=1, description="most tokens of such an answer")
    learning_rate: float = Field(
        default=2e-3, gt=0, description="peak; 5e-5 suits 7B targets, small ones take more"
    )
    warmup_steps: int = Field(
        default=50, ge=0, description="linear warm-up, then cosine to a tenth"
    )
    init: Literal["next-layer", "random"] = Field(
        default="next-layer",
        description="start attention from that of the target's layer after the exit, or at random",
    )
    start_from: Path | None = Field(
        default=None,
        description="directory of an adapter of the same kind, exit and draft vocabulary to start from, in place "
        "of --init: to learn from further answers what it has not seen",
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="of the target, of the adapter's products, as stored"
    )
    shard: bool = Field(
        default=False,
        description="spread the target's layers over the processes that torchrun started, for a "
        "target larger than a device",
    )
    seed: int = Field(default=0, ge=0, description="order of data, split and initial weights")
    eval_every: int = Field(
        default=200, ge=1, description="steps between measurements, the best of which is kept"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_source()
        if len(set(self.exit_layer)) < len(self.exit_layer):
            raise ValueError(f"--exit-layer {self.exit_layer} names an exit twice; name it once")
        if self.start_from is not None and len(self.exit_layer) > 1:
            raise ValueError(
                f"--start-from is an adapter of one exit, and --exit-layer {self.exit_layer} names several; "
                "train them one by one"
            )
        if self.shard and self.cache_gib:
            raise ValueError(
                f"--cache-gib {self.cache_gib:g} would let some processes run the target less often "
                "than others, which --shard does not allow; leave one of them out"
            )
        return self

    def _check_source(self) -> None:
        if bool(self.data) == bool(self.answers):
            both = "exclude each other" if self.data else "are both missing"
            raise ValueError(f"--data and --answers {both}; give one of them")
        if self.answers and not self.held_out_answers:
            raise ValueError(
                "--answers needs --held-out-answers to measure on; let 'train answers' make some of "
                "other prompts"
            )
        for flag, given, needs in (
            ("--kind", self.kind, self.kind != "attention"),
            ("--draft-vocab", self.draft_vocab, self.draft_vocab is not None),
            ("--held-out-answers", self.held_out_answers, bool(self.held_out_answers)),
            ("--targets", self.targets, self.targets == "acceptance"),
        ):
            if needs and not self.answers:
                raise ValueError(f"{flag} {given} needs --answers; give them, or leave it out")
        for flag, without in (
            ("--on-policy", self.on_policy),
            ("--shard", self.shard),
            ("--held-out", self.held_out),
            ("--cache-gib", self.cache_gib),
        ):
            if self.answers and without:
                raise ValueError(f"{flag} has no effect with --answers; leave one of them out")

    @property
    def model_type(self) -> ModelType:
        """That of the adapter's config."""
        return MODEL_TYPES[self.kind]

    def out_of(self, exit_layer: int) -> Path:
        """Where the adapter of an exit goes."""
        return self.out if len(self.exit_layer) == 1 else self.out / f"exit-{exit_layer}"
