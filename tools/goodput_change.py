"""How soon goodput control is back at its pace after a sudden change: of acceptance, or of the number of requests.

    python tools/goodput_change.py --model smollm2 --requests 4 --acceptance 0.8 --acceptance 0.2
    python tools/goodput_change.py --model tiny --requests 1 --requests 16 --acceptance 0.6

One engine under control, with real costs and drafts that are accepted by chance. Phases of some seconds follow one another, in
each another of the given acceptances and numbers of requests, over and over. Each line has the tokens a second of parts of a phase
over those of its second half.
"""

import argparse
import itertools
import json
import time
from typing import Any

import numpy as np

from vllm_kangaroo import environment
from vllm_kangaroo.bench.engines import EngineSettings, engine
from vllm_kangaroo.bench.prompts import DEMO_PROMPTS, encode, load_prompts
from vllm_kangaroo.demo import smollm2
from vllm_kangaroo.demo.models import served
from vllm_kangaroo.integration.inspect.inspection import INSPECTION

PARTS = (0.0, 1.0, 2.0, 4.0)
"""Seconds at which the parts of a phase begin that are compared with its second half, which the last of them reaches."""


class Feed:
    """Keeps so many requests running."""

    def __init__(self, llm: Any, prompts: list[list[int]]) -> None:
        from vllm import SamplingParams

        self._engine = llm.llm_engine
        self._prompts = itertools.cycle(prompts)
        self._params = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
        self._numbers = itertools.count()
        self._got: dict[str, int] = {}

    def run(self, requests: int, seconds: float) -> tuple[list[float], list[int]]:
        """Times of steps since the call, and the tokens of each."""
        for name in list(self._got)[requests:]:
            self.abort([name])
        times, tokens, began = list[float](), list[int](), time.perf_counter()
        while not times or times[-1] < seconds:
            while len(self._got) < requests:
                name = str(next(self._numbers))
                self._engine.add_request(
                    name, {"prompt_token_ids": next(self._prompts)}, self._params
                )
                self._got[name] = 0
            new = 0
            for output in self._engine.step():
                count = len(output.outputs[0].token_ids)
                new += count - self._got[output.request_id]
                self._got[output.request_id] = count
                if output.finished:
                    del self._got[output.request_id]
            times.append(time.perf_counter() - began)
            tokens.append(new)
        return times, tokens

    def abort(self, names: list[str] | None = None) -> None:
        """End requests, all of them by default."""
        names = list(self._got) if names is None else names
        self._engine.abort_request(names)
        for name in names:
            del self._got[name]


def main() -> None:
    """Print a line for each phase."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--requests", type=int, action="append")
    parser.add_argument("--acceptance", type=float, action="append")
    parser.add_argument("--seconds", type=float, default=16.0, help="of a phase")
    parser.add_argument("--phases", type=int, default=8)
    options = parser.parse_args()
    environment.apply()
    model, counts = served(options.model), options.requests or [1]
    settings = EngineSettings(
        model=model, dtype=options.dtype, eager=options.eager, max_num_seqs=max(counts), engines=1
    )
    config = {"method": "kangaroo", "num_speculative_tokens": 6, "confidence_threshold": 0.0}
    if options.model == "smollm2":
        config["model"] = smollm2.adapter()
    with engine(settings, {**config, "goodput": True}, INSPECTION) as llm:
        tokenizer = llm.get_tokenizer()
        feed = Feed(llm, [encode(tokenizer, each) for each in load_prompts(DEMO_PROMPTS, model)])
        rates = options.acceptance or [0.8, 0.2]
        phases = zip(itertools.cycle(counts), itertools.cycle(rates), strict=False)
        for number, (requests, rate) in enumerate(itertools.islice(phases, options.phases + 1)):
            llm.collective_rpc("accept_by_chance", args=(rate,))
            times, tokens = map(np.array, feed.run(requests, options.seconds))
            if not number:
                continue  # it began with a cold engine

            def pace(begin: float, end: float, at: Any = times, of: Any = tokens) -> float:
                return float(of[(at > begin) & (at <= end)].sum()) / (end - begin)

            steady = pace(options.seconds / 2, options.seconds)
            ends = (*PARTS[1:], options.seconds / 2)
            found = {
                "requests": requests,
                "acceptance": rate,
                "tokens_per_second": round(steady, 1),
                **{
                    f"{begin:g}-{end:g}s": round(pace(begin, end) / steady, 3)
                    for begin, end in zip(PARTS, ends, strict=True)
                },
            }
            print(json.dumps(found), flush=True)
        feed.abort()


if __name__ == "__main__":
    main()
