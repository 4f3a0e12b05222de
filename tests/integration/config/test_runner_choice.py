"""Which model runner an early-exit engine gets, and what is said about it."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from vllm import envs
from vllm.config import CUDAGraphMode
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

from vllm_kangaroo import tiny_model
from vllm_kangaroo.integration.config import plan as engine_plan
from vllm_kangaroo.integration.config import runner_choice
from vllm_kangaroo.integration.config.runner_choice import takes_v2
from vllm_kangaroo.integration.inspect.inspection import INSPECTION
from vllm_kangaroo.options import EarlyExitPlan, OptionError, TargetShape, parse_options

ARGS = SimpleNamespace(scheduler_cls=None, worker_extension_cls="")
PARALLEL: Any = SimpleNamespace(tensor_parallel_size=1, distributed_executor_backend="uni")
SHAPE = TargetShape(
    name=tiny_model(),
    architecture="LlamaForCausalLM",
    num_hidden_layers=12,
    hidden_size=192,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=64,
    vocab_size=4096,
)


def plan(**options: Any) -> EarlyExitPlan:
    asked = {"method": "kangaroo", "exit_layer": 2} | options
    return parse_options({k: v for k, v in asked.items() if v is not None}).resolve(SHAPE)


def choose(
    patch: pytest.MonkeyPatch,
    asked: bool | None,
    found: EarlyExitPlan,
    *,
    triton: bool = True,
    args: Any = ARGS,
    parallel: Any = PARALLEL,
) -> bool:
    patch.setattr(envs, "VLLM_USE_V2_MODEL_RUNNER", asked, raising=False)
    patch.setattr(runner_choice, "HAS_TRITON", triton)
    return takes_v2(args, found, parallel)


@pytest.mark.parametrize(
    ("asked", "triton", "wanted"),
    [
        (None, True, True),
        (None, False, False),
        (True, True, True),
        (False, True, False),
        (True, False, True),  # vLLM itself says that it needs Triton
    ],
)
def test_vllms_own_choice_is_followed(
    monkeypatch: pytest.MonkeyPatch, asked: bool | None, triton: bool, wanted: bool
) -> None:
    assert choose(monkeypatch, asked, plan(), triton=triton) is wanted


HISPEC = {"method": "hispec", "exit_layer": None, "draft_exit_layer": 2, "verify_exit_layer": 4}
V1_ONLY: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "lookup": ({"lookup": True}, {}, "lookup in speculative_config"),
    "nothing but lookup": ({"method": "lookup", "exit_layer": None}, {}, "method='lookup'"),
    "Ray": (
        {},
        {"parallel": SimpleNamespace(tensor_parallel_size=1, distributed_executor_backend="ray")},
        "distributed_executor_backend='ray'",
    ),
    "demo": (
        {},
        {"args": SimpleNamespace(scheduler_cls=None, worker_extension_cls=INSPECTION)},
        "worker_extension_cls of demo and benchmarks",
    ),
}


@pytest.mark.parametrize("case", V1_ONLY)
def test_what_v2_does_not_serve_keeps_v1_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    options, more, named = V1_ONLY[case]
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    assert not choose(monkeypatch, None, plan(**options), **more)
    (line,) = [each.getMessage() for each in caplog.records]
    assert named in line and "V1 model runner" in line


@pytest.mark.parametrize("case", V1_ONLY)
def test_it_is_refused_where_v2_was_asked_for(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    options, more, named = V1_ONLY[case]
    with pytest.raises(OptionError) as refused:
        choose(monkeypatch, True, plan(**options), **more)
    sentence = str(refused.value)
    assert sentence.startswith("VLLM_USE_V2_MODEL_RUNNER=1 does not go with")
    assert named in sentence and sentence.endswith("leave the setting out.")


@pytest.mark.parametrize("case", V1_ONLY)
def test_nothing_is_said_where_v1_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    options, more, _ = V1_ONLY[case]
    assert not choose(monkeypatch, False, plan(**options), **more)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("mode", "captured"),
    [
        ("FULL", "FULL_DECODE_ONLY"),
        ("FULL_AND_PIECEWISE", "FULL_DECODE_ONLY"),
        ("FULL_DECODE_ONLY", "FULL_DECODE_ONLY"),
        ("PIECEWISE", "NONE"),
        ("NONE", "NONE"),
    ],
)
def test_graphs_of_mixed_steps_are_taken_out_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str, captured: str
) -> None:
    class Config:
        additional_config: ClassVar[dict[str, Any]] = {}
        use_v2_model_runner = True
        num_speculative_tokens = 4
        speculative_config = SimpleNamespace(method="draft_model")
        scheduler_config = SimpleNamespace(max_num_seqs=4, max_num_batched_tokens=64)
        parallel_config = SimpleNamespace(distributed_executor_backend="mp")
        compilation_config = SimpleNamespace(
            cudagraph_mode=CUDAGraphMode[mode], cudagraph_capture_sizes=[1, 2, 4]
        )

    class Finished(Config):
        pass

    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    monkeypatch.setattr(engine_plan, "EarlyExitV2VllmConfig", Finished)
    found: Any = engine_plan.finish(Config(), plan())  # type: ignore[arg-type]
    assert type(found) is Finished
    assert found.parallel_config.distributed_executor_backend == engine_plan.EXECUTOR_V2
    assert found.compilation_config.cudagraph_mode.name == captured
    said = " ".join(each.getMessage() for each in caplog.records)
    assert (f"cudagraph_mode {mode} is set to {captured}" in said) == (mode != captured)


def test_v2_keeps_a_slot_more_for_the_pass_without_a_head() -> None:
    config: Any = SimpleNamespace(num_speculative_tokens=4)
    of_v1 = engine_plan.EarlyExitVllmConfig.num_lookahead_tokens.fget
    of_v2 = engine_plan.EarlyExitV2VllmConfig.num_lookahead_tokens.fget
    assert (of_v1(config), of_v2(config)) == (4, 5)  # type: ignore[misc]


def test_hispec_is_served_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan(**HISPEC)
    assert found.tokens_per_round == 2
    assert choose(monkeypatch, True, found) and choose(monkeypatch, None, found)


@pytest.mark.parametrize("drawn", [{}, HISPEC], ids=["one exit", "two exits"])
def test_drawn_drafts_are_served_on_both(
    monkeypatch: pytest.MonkeyPatch, drawn: dict[str, Any]
) -> None:
    assert choose(monkeypatch, None, plan(**drawn, draft_sample_method="probabilistic"))


def test_ranks_in_processes_of_their_own_are_served_on_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks = SimpleNamespace(tensor_parallel_size=2, distributed_executor_backend="mp")
    assert choose(monkeypatch, None, plan(), parallel=ranks)


def test_goodput_control_is_served_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM finds all lengths in the table that it is given, and captures those of each batch size."""
    assert choose(monkeypatch, None, plan(goodput=True))
    found = build_dynamic_sd_schedule_lookup(engine_plan.every_length(3), 6, 3)
    assert found[1:] == [0, 1, 2, 3, 3, 3]
    assert build_dynamic_sd_schedule_lookup(engine_plan.every_length(4), 2, 4)[1:] == [0, 1]


def test_laps_sd_schedules_both(monkeypatch: pytest.MonkeyPatch) -> None:
    args = SimpleNamespace(scheduler_cls="vllm_kangaroo.LapsSdScheduler", worker_extension_cls="")
    assert choose(monkeypatch, True, plan(), args=args)


def test_a_check_of_all_requests_has_to_fit_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = SimpleNamespace(
        additional_config={},
        use_v2_model_runner=True,
        speculative_config=SimpleNamespace(method="draft_model"),
        scheduler_config=SimpleNamespace(max_num_seqs=64, max_num_batched_tokens=127),
        parallel_config=SimpleNamespace(distributed_executor_backend="uni"),
        compilation_config=SimpleNamespace(cudagraph_mode=None, cudagraph_capture_sizes=[]),
    )
    with pytest.raises(OptionError, match="max_num_batched_tokens=127: raise the last"):
        engine_plan.finish(config, plan(**HISPEC))


def test_a_setting_that_is_new_is_not_left_unheeded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Newer(EarlyExitPlan):
        colour: str = "none"

    values = plan().model_dump()
    assert choose(monkeypatch, True, Newer(**values))
    with pytest.raises(OptionError, match="colour in speculative_config"):
        choose(monkeypatch, True, Newer(**values, colour="blue"))
