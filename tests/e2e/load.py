"""Clients of all manners against a running server: good requests must be answered right, bad ones be told why.

The suite does it for some seconds in ``test_serve.py``; ``load_run.py`` for as long as one likes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx
import psutil

from tests.e2e.prompts import PROMPTS, STORY, encode
from tests.e2e.serving import IDLE_S, Server

TURNS = 4
"""Of a conversation, each of which has all before it as a prefix."""
GREEDY = {"model": "demo", "temperature": 0.0}
SAID = [
    "Can you find me a hotel in London?",
    "One room, for three nights.",
    "A cheap one.",
    "Thanks.",
]
PARTS_S = 30
"""Seconds between two looks into the mappings of the worker."""
BEGUN: dict[str, Any] = GREEDY | {"prompt": PROMPTS[0], "max_tokens": 200, "ignore_eos": True}

EMPTY = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:laps_sd_requests",
    "vllm:laps_sd_paused_requests",
)
"""Gauges that go back to zero."""


@dataclass(frozen=True)
class Bad:
    """A request that must be refused."""

    path: str
    body: bytes
    said: str = ""
    """What the sentence names."""


@dataclass
class Load:
    """What a run is to do, and what it has seen."""

    url: str
    model_length: int
    clients: int = 64
    seconds: float = 20.0
    seed: int = 0
    hints: bool = True
    """Whether LAPS-SD schedules, and so refuses hints of length that cannot be true."""
    drafts: bool = True
    """Whether a method of ours drafts, and so refuses what it cannot serve."""
    long: Sequence[int] = ()
    """Tokens with which long conversations begin; the server must tell how many it had in its cache."""
    right: dict[str, str] = field(default_factory=dict)
    """The unloaded answer by request."""
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    hits: list[tuple[int, int]] = field(default_factory=list)
    """Tokens of each turn of a long conversation under load, and how many of them came from the prefix cache."""
    memory: list[dict[str, int]] = field(default_factory=list)
    """Bytes that the server's processes hold, by their names, before the load and each second of it."""
    parts: list[dict[str, int]] = field(default_factory=list)
    """Bytes of the worker by kind of mapping, each :data:`PARTS_S` seconds."""

    def bad(self) -> list[Bad]:
        """Requests that no server should take."""

        def body(**options: Any) -> bytes:
            return json.dumps(GREEDY | {"prompt": PROMPTS[0], "max_tokens": 8} | options).encode()

        def chat(**options: Any) -> bytes:
            messages = [{"role": "user", "content": SAID[0]}]
            return json.dumps(GREEDY | {"messages": messages, "max_tokens": 8} | options).encode()

        long, key = "word " * 2 * self.model_length, "expected_output_tokens"
        one, many = "completions", "chat/completions"
        of_drafts = [
            Bad(one, body(min_p=0.1, temperature=0.7), "min_p"),
            Bad(many, chat(logit_bias={"5": 2.0}), "logit_bias"),
            Bad(one, body(vllm_xargs={"kangaroo.max_drafts": -1}), "kangaroo.max_drafts=-1"),
        ]
        return [
            Bad(one, body(prompt=long), str(self.model_length)),
            Bad(many, chat(messages=[{"role": "user", "content": long}]), str(self.model_length)),
            Bad(one, body(prompt=[5] * (self.model_length + 1)), str(self.model_length)),
            Bad(one, body(prompt=[10**9])),
            Bad(one, body(prompt=[-1])),
            Bad(one, body(prompt=5)),
            Bad(one, body()[:-9]),
            Bad(many, b"{" * 5000),
            Bad(one, b""),
            Bad(many, b"[]"),
            Bad(one, b'{"model": "demo", "prompt": "\xff\xfe\x80"}'),
            Bad(many, b'{"model": "demo", "messages": [{"role": "user", "content": "\xc3\x28"}]}'),
            Bad(one, body(temperature=-1), "temperature"),
            Bad(one, body(temperature="hot"), "temperature"),
            Bad(one, body(top_p=7), "top_p"),
            Bad(one, body(max_tokens=-3), "max_tokens"),
            Bad(one, body(n=0), "n"),
            Bad(one, body(n=-5), "n"),
            Bad(one, body(stop=[5, {}]), "stop"),
            Bad(one, body(vllm_xargs={"expected_output_tokens": {"a": [1] * 500}})),
            Bad(one, body(structured_outputs={"regex": "(" * 50})),
            Bad(one, body(logprobs=10**6), "logprobs"),
            Bad(many, chat(messages=[{"content": SAID[0]}]), "role"),
            Bad(one, body(model="another"), "another"),
            *([Bad(one, body(vllm_xargs={key: -1}), f"{key}=-1")] if self.hints else []),
            *(of_drafts if self.drafts else []),
        ]

    async def run(self) -> None:
        """Ask everything unloaded, then load the server for :attr:`seconds`."""
        limits = httpx.Limits(max_connections=2 * self.clients + 8, keepalive_expiry=IDLE_S)
        async with httpx.AsyncClient(
            base_url=f"{self.url}/v1/", timeout=900, limits=limits
        ) as http:
            for prompt in PROMPTS:
                await self.completion(http, prompt)
            for at in range(len(SAID)):
                await self.conversation(http, at)
            for tokens in self.long:
                await self.long_conversation(http, tokens)
            for bad in self.bad():  # under load it is chance that says which
                await self.refused(http, bad)
            assert not self.wrong, self.wrong
            self.seen.clear()
            self.hits.clear()
            loop = asyncio.get_running_loop()
            end = loop.time() + self.seconds
            watching = asyncio.create_task(self._watch())
            await asyncio.gather(*(self._client(http, at, end) for at in range(self.clients)))
            watching.cancel()

    async def _client(self, http: httpx.AsyncClient, number: int, end: float) -> None:
        """One client, which asks one thing after the other."""
        chance = random.Random(f"{self.seed} {number}")
        bad = self.bad()
        while asyncio.get_running_loop().time() < end:
            acts: list[Callable[[], Awaitable[None]]] = [
                lambda: self.completion(http, chance.choice(PROMPTS)),
                lambda: self.streamed(http, chance.choice(PROMPTS)),
                lambda: self.conversation(http, chance.randrange(len(SAID))),
                lambda: self.aborted(http, chance.randrange(1, 20)),
                lambda: self.left(http, chance.uniform(0, 0.3)),
                lambda: self.refused(http, chance.choice(bad)),
                lambda: self.long_conversation(http, chance.choice(self.long)),
            ]
            await chance.choices(acts, weights=[5, 5, 2, 3, 3, 4, 0.2 if self.long else 0])[0]()

    def check(self, what: str, answer: str) -> None:
        """Compare with the unloaded answer, which is the first."""
        self.seen[what.partition(":")[0]] += 1
        if self.right.setdefault(what, answer) != answer:
            self.wrong.append(f"{what}: {answer!r} where it was {self.right[what]!r} unloaded")

    async def completion(self, http: httpx.AsyncClient, prompt: str) -> None:
        answer = await http.post("completions", json=GREEDY | {"prompt": prompt, "max_tokens": 32})
        if answer.status_code != 200:
            self.wrong.append(f"{prompt}: {answer.status_code} {answer.text}")
        else:
            self.check(f"completion: {prompt}", answer.json()["choices"][0]["text"])

    async def streamed(self, http: httpx.AsyncClient, prompt: str) -> None:
        body = GREEDY | {"prompt": prompt, "max_tokens": 32, "stream": True}
        async with http.stream("POST", "completions", json=body) as answer:
            pieces = [
                json.loads(line[6:]) async for line in answer.aiter_lines() if line[6:7] == "{"
            ]
        text = "".join(piece["choices"][0]["text"] for piece in pieces)
        self.check(f"completion: {prompt}", text)
        self.seen["streamed"] += 1

    async def conversation(self, http: httpx.AsyncClient, first: int) -> None:
        """Turn by turn, with what was answered before."""
        said = [SAID[(first + turn) % len(SAID)] for turn in range(TURNS)]
        await self._turns(http, "turn", f"from {first}", said)

    async def long_conversation(self, http: httpx.AsyncClient, tokens: int) -> None:
        """The same about a text of so many tokens, which each turn but the first finds in the prefix cache."""
        said = [f"{text_of(tokens)}\n{SAID[0]}", *SAID[1:]]
        used = await self._turns(http, "long turn", f"about {tokens} tokens", said)
        self.hits += (
            (each["prompt_tokens"], (each["prompt_tokens_details"] or {}).get("cached_tokens", 0))
            for each in used
        )

    async def _turns(
        self, http: httpx.AsyncClient, kind: str, about: str, said: Sequence[str]
    ) -> list[dict[str, Any]]:
        """What the server says of the tokens of each turn."""
        messages: list[dict[str, str]] = []
        used: list[dict[str, Any]] = []
        for turn, sentence in enumerate(said):
            messages.append({"role": "user", "content": sentence})
            body = GREEDY | {"messages": messages, "max_tokens": 24}
            answer = await http.post("chat/completions", json=body)
            if answer.status_code != 200:
                self.wrong.append(f"{kind} {turn}: {answer.status_code} {answer.text}")
                break
            found = answer.json()
            text = found["choices"][0]["message"]["content"]
            self.check(f"{kind}: {turn} {about}", text)
            messages.append({"role": "assistant", "content": text})
            used.append(found["usage"])
        return used

    async def aborted(self, http: httpx.AsyncClient, pieces: int) -> None:
        """A stream that is closed after some pieces."""
        async with http.stream("POST", "completions", json=BEGUN | {"stream": True}) as answer:
            async for _ in answer.aiter_lines():
                pieces -= 1
                if pieces < 0:
                    break
        self.seen["aborted"] += 1

    async def left(self, http: httpx.AsyncClient, seconds: float) -> None:
        """A client that waits for nothing."""
        try:
            await http.post("completions", json=BEGUN, timeout=httpx.Timeout(300, read=seconds))
        except httpx.TimeoutException:
            self.seen["left"] += 1

    async def refused(self, http: httpx.AsyncClient, bad: Bad) -> None:
        headers = {"Content-Type": "application/json"}
        answer = await http.post(bad.path, content=bad.body, headers=headers)
        self.seen["refused"] += 1
        try:
            found = answer.json()
            sentence = found["error"]["message"] if "error" in found else found["detail"]
        except (ValueError, KeyError, TypeError):
            sentence = ""
        if not 400 <= answer.status_code < 500 or not sentence or bad.said not in sentence:
            self.wrong.append(f"{bad.body[:120]!r}: {answer.status_code} {answer.text[:300]}")

    async def _watch(self) -> None:
        """Memory of whoever listens on the server's port, and of its children."""
        server = listener(int(self.url.rpartition(":")[2]))
        loop = asyncio.get_running_loop()
        began = loop.time()
        for second in itertools.count(1):
            self.memory.append(held(server))
            if second % PARTS_S == 1:
                self.parts.append(mapped(server))
            await asyncio.sleep(began + second - loop.time())

    def growth(self) -> int:
        """Bytes by which memory grew from the second fifth of the run to the last."""
        totals = [sum(each.values()) for each in self.memory]
        fifth = len(totals) // 5
        early, late = totals[fifth : 2 * fifth], totals[-fifth:]
        return sum(late) // len(late) - sum(early) // len(early)


@cache
def text_of(tokens: int) -> str:
    """A text of about so many tokens, which begins as that of no other length does."""
    chapters: list[str] = []
    length = 0
    while length < tokens:
        chapters.append(f"Of {tokens}, {len(chapters)}: {STORY}")
        length += len(encode(chapters[-1]))
    return "".join(chapters)


def at_rest(server: Server, patience: float = 60.0, *, ladder: bool = True) -> list[str]:
    """What a server still holds when all clients have gone, a sentence each; it must have been started in dev mode.

    Args:
        ladder: whether a method of ours drafts.
    """
    until = time.monotonic() + patience
    while not server.idle() and time.monotonic() < until:
        time.sleep(0.1)
    # The worker hears with the next step of requests that have ended.
    last = GREEDY | {"prompt": PROMPTS[0], "max_tokens": 1}
    httpx.post(f"{server.url}/v1/completions", json=last, timeout=60).raise_for_status()
    metrics = server.metrics()
    empty = [name for name in metrics if name in EMPTY and metrics[name] != 0]
    wrong = [f"{name} is {metrics[name]}" for name in empty]
    if not ladder:
        return wrong
    asked = {"method": "early_exit_counters"}
    answer = httpx.post(f"{server.url}/collective_rpc", json=asked, timeout=60)
    [counters] = answer.json()["results"]
    if counters["requests"] > 1:
        wrong.append(
            f"{counters['requests']} requests are in the ladder's table, where 1 is the last"
        )
    if counters["defects"]:
        wrong.append(f"{counters['defects']} defects were counted")
    return wrong


def listener(port: int) -> psutil.Process:
    """The process that listens on a loopback port."""
    found = [
        each.pid
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port
    ]
    return psutil.Process(found[0])


def held(server: psutil.Process) -> dict[str, int]:
    """Resident bytes of a server's processes by name, those of one name together; shared pages count in each."""
    found: Counter[str] = Counter()
    for each in (server, *server.children(recursive=True)):
        try:
            name = (each.cmdline() or [each.name()])[0].rpartition("/")[2]
            found[name] += each.memory_info().rss
        except psutil.Error:  # it may have just ended
            continue
    return dict(found)


def mapped(server: psutil.Process) -> dict[str, int]:
    """Resident bytes of a server's worker by kind of mapping.

    ``code`` is what was written while running and can be executed: kernels that oneDNN has made for a size of matrix.
    """
    found: Counter[str] = Counter()
    for each in server.children(recursive=True):
        if "Worker" not in "".join(each.cmdline()[:1]):
            continue
        for one in each.memory_maps(grouped=False):
            kind = "files" if one.path.startswith("/") else "code" if "x" in one.perms else "heap"
            found[kind] += one.rss
    return dict(found)
