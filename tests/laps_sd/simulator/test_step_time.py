"""The time of a step, fitted to steps of which the truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vllm_kangaroo.laps_sd.policy_options import LapsSdError
from vllm_kangaroo.laps_sd.simulator.step_time import StepTime, fit
from vllm_kangaroo.laps_sd.step_records import StepRecord, read_steps


def test_fit_finds_the_coefficients_it_was_made_from(tmp_path: Path):
    rng = np.random.default_rng(0)
    true = StepTime(
        fixed=0.008,
        per_token=4e-5,
        per_kv=2e-7,
        per_request=3e-4,
        draft=0.001,
        draft_per_request=1e-4,
    )
    file = tmp_path / "steps.jsonl"
    lines = []
    for _ in range(400):
        requests, drafts = int(rng.integers(1, 17)), int(rng.integers(0, 7))
        tokens, kv = (
            requests * (drafts + 1) + int(rng.integers(0, 200)),
            int(rng.integers(0, 20000)),
        )
        seconds = true.seconds(requests, tokens, kv, drafts) * rng.normal(1.0, 0.02)
        if rng.random() < 0.02:
            seconds *= 20  # something else had the machine
        lines.append(
            StepRecord(
                seconds=seconds, requests=requests, tokens=tokens, kv_tokens=kv, drafts=drafts
            )
        )
    file.write_text("\n".join(each.model_dump_json() for each in lines))
    found = fit(read_steps(file))
    for requests, tokens, kv, drafts in ((1, 1, 100, 0), (8, 56, 3000, 6), (16, 200, 9000, 3)):
        expected = true.seconds(requests, tokens, kv, drafts)
        assert found.seconds(requests, tokens, kv, drafts) == pytest.approx(expected, rel=0.05)
    with pytest.raises(LapsSdError, match="at least 20"):
        fit(lines[:5])


def test_fitted_steps_take_as_long_together_as_those_measured():
    rng = np.random.default_rng(1)
    true = StepTime(fixed=0.008, per_token=1e-4, per_prompt_token=5e-5)
    steps = []
    for _ in range(3000):
        requests, prompt = int(rng.integers(1, 5)), int(rng.integers(0, 2)) * 200
        seconds = true.seconds(requests, 3 * requests + prompt, 0, 2, prompt)
        steps.append(
            StepRecord(
                seconds=seconds * float(rng.lognormal(0.0, 0.4)),
                requests=requests,
                tokens=3 * requests + prompt,
                kv_tokens=0,
                drafts=2,
                prompt_tokens=prompt,
            )
        )
    found = fit(steps)
    expected = sum(
        found.seconds(each.requests, each.tokens, 0, 2, each.prompt_tokens) for each in steps
    )
    assert expected == pytest.approx(sum(each.seconds for each in steps), rel=0.01)
    noise = np.exp(0.4**2 / 2)
    assert found.prompt_rate == pytest.approx(5e-5 * noise, rel=0.1)
