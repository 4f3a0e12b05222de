"""The environment variables that vLLM's CPU build wants, decided in one place.

:func:`apply` is called by this package's own commands before an engine starts; a program that makes
its own ``LLM`` may call it too. A variable that is already set, even to nothing, is left as it is.
With a CUDA build of vLLM nothing is set.

Thread binding is left to vLLM: ``VLLM_CPU_OMP_THREADS_BIND=auto`` gives each worker the cores of
one memory node, one thread a core, less one core that stays free for the engine's own process.
``0-3`` (with several workers ``0-1|2-3``) names the cores instead, ``nobind`` leaves them to the
system.
"""

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DEFAULT_KV_GIB = 2
SYSTEM_LIBRARIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/lib", "/usr/lib")
TCMALLOC = ("libtcmalloc_minimal.so*", "libtcmalloc.so*")
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
QUIET = ("ignore::FutureWarning", "ignore::UserWarning:multiprocessing.resource_tracker")

logger = logging.getLogger(__name__)


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed is the CPU build, told without importing it."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        pass
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return False


def wanted(
    environ: Mapping[str, str],
    prefix: str | Path = sys.prefix,
    *,
    system: tuple[str, ...] = SYSTEM_LIBRARIES,
    available_gib: float | None = None,
) -> dict[str, str]:
    """Variables to add to ``environ`` for vLLM's CPU build; those it has are not among them.

    Args:
        environ: the environment as it is.
        prefix: the Python environment, whose ``lib`` may hold Intel's OpenMP.
        system: directories in which to look for tcmalloc after ``prefix/lib``.
        available_gib: memory that can be had, in GiB; default: what the system reports.
    """
    free = available_memory_gib() if available_gib is None else available_gib
    values = {
        # Left alone, vLLM takes nearly all memory and refuses to start if it is not free. This
        # much also serves two engines side by side, and leaves a small machine half for weights.
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, min(DEFAULT_KV_GIB, int(free / 2)))),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # A sound engine start on a CPU prints a score of warnings that nobody can act on.
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TORCH_LOGS": "-torch._library.triton",
        "PYTHONWARNINGS": ",".join(QUIET),
        # vLLM's n-gram method runs numba, which sets OpenMP's threads for the whole process; attention's buffers, made
        # for fewer, then overlap and decoding goes wrong without a word (vLLM 0.32).
        "NUMBA_NUM_THREADS": "1",
    }
    libraries = preloads(Path(prefix), system)
    if libraries:
        values["LD_PRELOAD"] = ":".join(libraries)
    return {key: value for key, value in values.items() if key not in environ}


def preloads(prefix: Path, system: tuple[str, ...] = SYSTEM_LIBRARIES) -> list[str]:
    """Paths of the libraries worth preloading that are there: tcmalloc, Intel's OpenMP.

    vLLM's workers are processes of their own and load these first. vLLM warns of a worker that
    speculates without Intel's OpenMP, and preloads PyTorch's GNU OpenMP when neither is named.
    """
    places = [prefix / "lib", *(Path(place) for place in system)]
    allocators = [
        found for place in places for name in TCMALLOC for found in sorted(place.glob(name))
    ]
    openmp = prefix / "lib" / "libiomp5.so"
    found = [*allocators[:1], *([openmp] if openmp.exists() else [])]
    usable = [str(path) for path in found if not set(" :") & set(str(path))]
    if len(usable) < len(found):
        logger.warning(
            "LD_PRELOAD cannot name a path with a space or a colon, as in %s: move the "
            "environment, or vLLM will run slower.",
            prefix,
        )
    return usable


def available_memory_gib() -> float:
    """Memory that a new process can have, in GiB: free or easily freed, within its cgroup."""
    meminfo = [line for line in _lines("/proc/meminfo") if line.startswith("MemAvailable:")]
    free = [int(line.split()[1]) * 1024 for line in meminfo]
    for limit, used in CGROUPS:
        bounds = [*_lines(limit), *_lines(used)]
        if len(bounds) == 2 and all(bound.isdigit() for bound in bounds):
            free.append(max(0, int(bounds[0]) - int(bounds[1])))
    return min(free, default=0) / 2**30


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def apply(*names: str) -> dict[str, str]:
    """Set what :func:`wanted` names in this process, for the engine processes it will start.

    Call it before vLLM is imported. ``LD_PRELOAD`` does not reach the process itself, which matters
    only to an engine inside it (``VLLM_ENABLE_V1_MULTIPROCESSING=0``).

    Args:
        names: set only these variables; default: all.

    Returns:
        The variables set; empty with a CUDA build of vLLM.
    """
    if not is_cpu_build():
        return {}
    values = wanted(os.environ)
    added = {key: value for key, value in values.items() if not names or key in names}
    os.environ.update(added)
    if "PYTHONWARNINGS" in added:  # read by Python at its start, so by the children alone
        warnings.filterwarnings("ignore", category=FutureWarning)
    return added
