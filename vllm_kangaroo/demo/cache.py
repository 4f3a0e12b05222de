"""Directories made once and kept in the user's cache: checked by hash, made anew if they are damaged.

Making one is safe beside other processes that want the same: they wait at a lock, and what is there
under the final name is always whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from vllm_kangaroo.provenance import file_sha256

MANIFEST = "manifest.json"


class CacheError(ValueError):
    """The cache cannot be used; the message names place and remedy."""


def cache_dir() -> Path:
    """``KANGAROO_CACHE``, else ``vllm-kangaroo`` in ``XDG_CACHE_HOME``, else in ``~/.cache``."""
    chosen = os.environ.get("KANGAROO_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not base.is_absolute():  # the standard ignores a relative one
        base = Path("~/.cache")
    return base.expanduser() / "vllm-kangaroo"


def kept(
    name: str, made_from: str, make: Callable[[Path], None], told: Callable[[str], None]
) -> Path:
    """The directory ``name`` of the cache, made if it is not there whole.

    Args:
        made_from: names source and way of making; a directory that was made from another is replaced.
        make: writes the directory it is given, which is not there yet.
        told: called with why something takes its time.

    Raises:
        CacheError: if the cache cannot be written.
    """
    folder = cache_dir() / name
    if is_whole(folder, made_from):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _turn(folder, told):
            if not is_whole(folder, made_from):
                if folder.exists():
                    told(f"{folder} is damaged or out of date and is made anew")
                _replace(folder, made_from, make)
    except OSError as error:
        raise CacheError(
            f"'{folder}' cannot be made ({error.strerror or error}): make room there, or name another "
            "place with KANGAROO_CACHE."
        ) from error
    return folder


@contextmanager
def _turn(folder: Path, told: Callable[[str], None]) -> Iterator[None]:
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        told(f"another process makes {folder.name}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _replace(folder: Path, made_from: str, make: Callable[[Path], None]) -> None:
    part, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("part", "old"))
    _clear(folder)
    try:
        make(part)
        files = {path.name: file_sha256(path) for path in sorted(part.iterdir())}
        manifest = {"made_from": made_from, "sha256": files}
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if folder.exists():  # whoever reads it still has its files open
            folder.rename(old)
        part.rename(folder)
    finally:
        _clear(folder)


def _clear(folder: Path) -> None:
    """Remove what this process, or one that was killed, has left beside a directory."""
    for left_over in folder.parent.glob(f".*{folder.name}.*"):
        if left_over.is_dir():
            shutil.rmtree(left_over, ignore_errors=True)


def is_whole(folder: Path, made_from: str) -> bool:
    """Whether a directory holds the files of its manifest, byte for byte, and was made from this."""
    try:
        manifest = folder / MANIFEST
        return _is_whole(folder, made_from, manifest.stat().st_mtime_ns)
    except OSError:
        return False


@cache  # once a process: the weights are large
def _is_whole(folder: Path, made_from: str, written: int) -> bool:
    del written
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return bool(manifest["made_from"] == made_from) and all(
            file_sha256(folder / name) == digest for name, digest in manifest["sha256"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
