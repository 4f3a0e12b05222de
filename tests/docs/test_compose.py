"""The files of ``examples/compose`` and ``examples/ray_serve`` name each other rightly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE = ROOT / "examples" / "compose"


def read(name: str) -> Any:
    return yaml.safe_load((COMPOSE / name).read_text())


def test_every_file_that_is_mounted_or_built_is_there() -> None:
    services = read("compose.yaml")["services"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            assert (COMPOSE / volume.partition(":")[0]).exists(), volume
    build = services["server"]["build"]
    assert (COMPOSE / build["context"] / build["dockerfile"]).samefile(COMPOSE / "Dockerfile")
    for line in (COMPOSE / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), line


def test_the_names_and_ports_agree() -> None:
    services = read("compose.yaml")["services"]
    [target] = read("prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in services and f"--port {port}" in services[host]["command"]
    [source] = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services
    [provider] = read("grafana/provisioning/dashboards/dashboards.yaml")["providers"]
    mounts = [volume.split(":") for volume in services["grafana"]["volumes"]]
    [here] = [mount[0] for mount in mounts if mount[1] == provider["options"]["path"]]
    assert [each.name for each in (COMPOSE / here).iterdir()] == ["vllm-kangaroo.json"]


def test_panels_do_not_lie_over_each_other() -> None:
    board = json.loads((COMPOSE / "grafana/dashboards/vllm-kangaroo.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


def test_the_yaml_for_ray_serve_is_one_that_scales() -> None:
    config = yaml.safe_load((ROOT / "examples" / "ray_serve" / "config.yaml").read_text())
    [model] = config["applications"][0]["args"]["llm_configs"]
    assert model["server_cls"] == "vllm_kangaroo.serve.LLMServer"
    scaling = model["deployment_config"]["autoscaling_config"]
    assert scaling["min_replicas"] < scaling["max_replicas"]
    assert scaling["target_ongoing_requests"] < 1000
