"""Two replicas behind one address: scaled up by load, replaced by a rolling update, one lost; no request may go wrong.

    python scripts/ray_serve_check.py --clients 24
    python scripts/ray_serve_check.py --only-loss     # two replicas from the start, one of which is killed

Starts a Ray of its own with the application of ``examples/ray_serve`` and clients that ask without a pause, every other one for a
stream. Every answer must be the one that was given before there was any load; a client may be told to ask again only while a
replica is dead. Takes some minutes on two cores, since each replica starts an engine.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PORT = 18311
URL = f"http://127.0.0.1:{PORT}/v1"
PROMPTS = ("The old man looked at", "Once upon a time", "I would like to", "The train leaves at")
PATIENCE_S = 900.0
DEPLOYMENT: dict[str, Any] = {
    "autoscaling_config": {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 4,
        "upscale_delay_s": 2,
        "downscale_delay_s": 600,
    },
    "health_check_period_s": 1,
    "graceful_shutdown_timeout_s": 30,
}


@dataclass
class Clients:
    """Threads that ask the same things over and over."""

    right: dict[str, str]
    stopped: threading.Event = field(default_factory=threading.Event)
    seen: Counter[str] = field(default_factory=Counter)
    forgiving: bool = False
    """Whether a replica is dead just now, so that a request may fail and be asked again."""

    def work(self, number: int) -> None:
        prompt = PROMPTS[number % len(PROMPTS)]
        asks, kind = (streamed, "right streams") if number % 2 else (ask, "right answers")
        while not self.stopped.is_set():
            forgiven = self.forgiving
            said = asks(prompt)
            if said == self.right[prompt]:
                self.seen[kind] += 1
            elif said.startswith("error") and (forgiven or self.forgiving):
                self.seen["asked again"] += 1
            else:
                self.seen["WRONG"] += 1
                typer.echo(f"WRONG: {prompt!r} -> {said[:300]!r}")

    def __str__(self) -> str:
        return ", ".join(f"{what}: {count}" for what, count in sorted(self.seen.items()))


def body_of(prompt: str) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": 24, "temperature": 0}


def ask(prompt: str) -> str:
    """The answer, or what went wrong."""
    try:
        answer = httpx.post(f"{URL}/completions", json=body_of(prompt), timeout=300)
    except httpx.TransportError as error:
        return f"error: {error!r}"
    if answer.status_code != 200:
        return f"error: {answer.status_code} {answer.text}"
    text: str = answer.json()["choices"][0]["text"]
    return text


def streamed(prompt: str) -> str:
    """The same, put together of the pieces of a stream; it must come in several and end as one does."""
    body = body_of(prompt) | {"stream": True}
    pieces: list[str] = []
    ended = False
    try:
        with httpx.stream("POST", f"{URL}/completions", json=body, timeout=300) as answer:
            if answer.status_code != 200:
                return f"error: {answer.status_code} {answer.read().decode()}"
            for line in answer.iter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    ended = True
                elif data.startswith("{"):
                    piece = json.loads(data)
                    if "choices" not in piece:
                        return f"error: {data}"
                    pieces.append(piece["choices"][0]["text"])
    except httpx.TransportError as error:
        return f"error: {error!r}"
    if not ended:
        return f"error: a stream without an end, {pieces}"
    return "".join(pieces) if len(pieces) > 2 else f"in {len(pieces)} pieces: {pieces}"


def engines() -> list[int]:
    """Engine cores that are running."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] == ["VLLM::EngineCore"]:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def busy(pid: int) -> float:
    """CPU seconds that an engine core and its workers have taken."""
    engine = psutil.Process(pid)
    times = [each.cpu_times() for each in (engine, *engine.children())]
    return sum(each.user + each.system for each in times)


def wait(what: str, done: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not done():
        if time.monotonic() - began > PATIENCE_S:
            raise SystemExit(f"{what}: not within {PATIENCE_S:.0f} s")
        time.sleep(1)
    typer.echo(f"{what}: after {time.monotonic() - began:.0f} s")


def deploy(replicas: int, **engine_kwargs: Any) -> None:
    """Serve the application, or bring it up to date.

    Args:
        replicas: at least.
    """
    from ray import serve
    from ray.serve.llm import build_openai_app

    from examples.ray_serve.app import llm_config

    fixed = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256}
    scaling = DEPLOYMENT["autoscaling_config"] | {"min_replicas": replicas}
    deployment = DEPLOYMENT | {"autoscaling_config": scaling}
    app = build_openai_app(
        {
            "llm_configs": [llm_config(deployment, **fixed | engine_kwargs)],
            # Another is a process more on two cores, and none of what is looked at here.
            "ingress_deployment_config": {"autoscaling_config": {"max_replicas": 1}},
        }
    )
    serve.run_many([serve.RunTarget(app)], wait_for_applications_running=False)


def scale_and_roll(crowd: Clients) -> None:
    """A second replica comes with the load, and both are replaced by an update."""
    wait("scaled to two", both_run)
    before = set(engines())
    show_share(before)
    typer.echo(f"so far {crowd}")
    deploy(1, max_num_seqs=64)
    wait("rolled over", lambda: both_run() and not before & set(engines()))
    typer.echo(f"so far {crowd}")


def lose_one(crowd: Clients) -> None:
    """The engine of a replica is killed; the other serves on, and a third takes its place."""
    time.sleep(10)
    before = set(engines())
    show_share(before)
    typer.echo(f"so far {crowd}")
    crowd.forgiving = True
    [victim, *_] = before
    os.kill(victim, signal.SIGKILL)
    typer.echo(f"killed engine {victim}")
    wait("noticed", lambda: not both_run())
    typer.echo(f"so far {crowd}")
    wait("replaced", lambda: both_run() and victim not in engines())
    crowd.forgiving = False
    typer.echo(f"so far {crowd}")
    time.sleep(10)
    show_share(set(engines()))


def show_share(replicas: set[int]) -> None:
    """How much each works."""
    worked = {pid: busy(pid) for pid in replicas}
    time.sleep(10)
    for pid in replicas:
        typer.echo(f"replica {pid}: {busy(pid) - worked[pid]:.1f} s of CPU in 10 s of load")


def both_run() -> bool:
    """Whether there are two replicas, each with its engine."""
    return running() == 2 and len(engines()) == 2


def main(
    clients: Annotated[int, typer.Option(help="At the same time.")] = 24,
    only_loss: Annotated[
        bool, typer.Option(help="Begin with two replicas, and only lose one.")
    ] = False,
) -> None:
    """Scale up, update and lose a replica under load."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    import ray

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    from ray import serve

    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request

    serve.start(http_options={"port": PORT})
    try:
        deploy(2 if only_loss else 1)
        if only_loss:
            wait("two replicas", both_run)
        wait("an answer", lambda: not ask(PROMPTS[0]).startswith("error"))
        crowd = Clients({prompt: ask(prompt) for prompt in PROMPTS})
        threads = [threading.Thread(target=crowd.work, args=[at]) for at in range(clients)]
        for thread in threads:
            thread.start()
        try:
            if not only_loss:
                scale_and_roll(crowd)
            lose_one(crowd)
        finally:
            crowd.stopped.set()
            for thread in threads:
                thread.join()
        typer.echo(f"at the end {crowd}")
    finally:
        serve.shutdown()
        ray.shutdown()
    raise typer.Exit(bool(crowd.seen["WRONG"]))


def running() -> int:
    """Replicas of the model that Serve calls running."""
    from ray import serve

    deployments = serve.status().applications["default"].deployments
    states = deployments["LLMServer:tiny"].replica_states
    return int(states.get("RUNNING", 0)) if set(states) == {"RUNNING"} else 0


if __name__ == "__main__":
    typer.run(main)
