"""Make what the tests of vLLM's V2 model runner need beside ``.venv``, or do nothing if it is there.

``.v2`` gets Triton as ``requirements/v2.lock`` pins it. The V2 runner is written in Triton, whose interpreter runs it
without a GPU. It stays out of ``.venv``: vLLM's V1 runner would use it too, and be slow.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "v2.lock"
PLACE = ROOT / ".v2"
DONE = PLACE / ".setup-done"


def wanted() -> str:
    """What a finished set-up was made from."""
    version = ".".join(map(str, sys.version_info[:2]))
    return hashlib.sha256(LOCK.read_bytes()).hexdigest() + " " + version


def main() -> int:
    """Set up, with the pip of the Python that runs this; returns the exit status."""
    with LOCK.open() as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if DONE.is_file() and DONE.read_text() == wanted():
            return 0
        print("installing Triton's interpreter for the tests of the V2 model runner", flush=True)
        shutil.rmtree(PLACE, ignore_errors=True)
        command = [sys.executable, "-I", "-m", "pip", "--quiet", "--no-input", "install"]
        command += ["--disable-pip-version-check", "--no-deps", "--require-hashes", "--no-compile"]
        command += ["--only-binary", ":all:", "--target", str(PLACE), "-r", str(LOCK)]
        if subprocess.run(command, check=False).returncode:
            print(
                "setup_v2: pip could not install Triton, under which the tests of vLLM's V2 model runner run, for the reason "
                "above: make the package index reachable and try again, or leave these tests out with make test "
                "ARGS='--ignore tests/e2e/test_v2_core.py'.",
                file=sys.stderr,
            )
            return 1
        DONE.write_text(wanted())
    return 0


if __name__ == "__main__":
    sys.exit(main())
