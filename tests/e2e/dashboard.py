"""The Grafana dashboard of ``examples/compose``: what its queries ask for, and what a server has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.serving import ROOT, free_port

COMPOSE = ROOT / "examples" / "compose"
DASHBOARD = COMPOSE / "grafana" / "dashboards" / "vllm-kangaroo.json"
NAME = re.compile(r"vllm:\w+")
SELECTED = re.compile(r"(vllm:\w+)\{([^}]*)\}")
GROUPED = re.compile(r"by \(([^)]*)\) \((?:rate\()?(vllm:\w+)")
LABEL = re.compile(r"(\w+)\s*=~?")


def queries() -> list[tuple[str, str]]:
    """Title and PromQL of every query of every panel, variables filled in."""
    board = json.loads(DASHBOARD.read_text())
    found = [
        (panel["title"], target["expr"])
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]
    filled = {"$__rate_interval": "5s", "$model": ".*"}
    for name, value in filled.items():
        found = [(title, query.replace(name, value)) for title, query in found]
    assert all("$" not in query for _, query in found)
    return found


def asked_for() -> set[str]:
    """Names of all series in the queries."""
    return {name for _, query in queries() for name in NAME.findall(query)}


def labels_asked_for() -> dict[str, set[str]]:
    """By series, the labels that queries select or group by."""
    found: dict[str, set[str]] = {}
    for _, query in queries():
        for name, selection in SELECTED.findall(query):
            found.setdefault(name, set()).update(LABEL.findall(selection))
        for labels, name in GROUPED.findall(query):
            found.setdefault(name, set()).update(each.strip() for each in labels.split(","))
    return found


def series(text: str) -> dict[str, set[str]]:
    """Label names by series, as a server's ``/metrics`` has them."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


class Registered:
    """Stands for vllm's Prometheus logger where metrics are made of which a server under test has none."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.per_engine_labelvalues = {0: ["demo", "0"]}
        self.vllm_config: Any = None

    def _made(self, kind: Any) -> Any:
        def make(**options: Any) -> Any:
            options.pop("multiprocess_mode", None)
            return kind(registry=self.registry, **options)

        return make

    @property
    def _counter_cls(self) -> Any:
        return self._made(Counter)

    @property
    def _gauge_cls(self) -> Any:
        return self._made(Gauge)

    @property
    def _histogram_cls(self) -> Any:
        return self._made(Histogram)


def of_goodput() -> dict[str, set[str]]:
    """Series of goodput control, which LAPS-SD's server has none of."""
    from vllm_kangaroo.integration.goodput.metrics import GoodputProm

    logger = Registered()
    GoodputProm(logger)
    found = {}
    for family in logger.registry.collect():
        collector: Any = logger.registry._names_to_collectors[family.name]
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = set(collector._labelnames)
    return found


@contextmanager
def prometheus(url: str, folder: Path) -> Iterator[Callable[[str], list[Any]]]:
    """A Prometheus server that reads a vLLM server; what it yields answers a query."""
    config = (COMPOSE / "prometheus.yml").read_text()
    assert "server:8000" in config
    config = config.replace("server:8000", url.removeprefix("http://")).replace("5s", "1s")
    (folder / "prometheus.yml").write_text(config)
    address = f"127.0.0.1:{free_port()}"
    command = shutil.which("prometheus")
    assert command is not None
    flags = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([command, *flags], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://{address}/-/ready").raise_for_status()
                break
            except httpx.HTTPError:
                assert time.monotonic() < until, (folder / "log").read_text()
                time.sleep(0.2)

        def ask(query: str) -> list[Any]:
            answer = httpx.get(f"http://{address}/api/v1/query", params={"query": query}).json()
            assert answer["status"] == "success", f"{query}: {answer}"
            found: list[Any] = answer["data"]["result"]
            return found

        yield ask
    finally:
        process.terminate()
        process.wait()
