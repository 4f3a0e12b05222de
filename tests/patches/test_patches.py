"""The patches for vLLM: each applies to the release it is for, and says why it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.patches.trees import PATCHES, apply, copied, files_of, installed_release, touched

FILES = sorted(PATCHES.glob("vllm-*/*.patch"))
INSTALLED = sorted((PATCHES / f"vllm-{installed_release()}").glob("*.patch"))


def test_there_are_patches_for_both_releases() -> None:
    by_release = {
        folder.name: {f.name for f in folder.glob("*.patch")} for folder in PATCHES.glob("vllm-*")
    }
    assert set(by_release) == {"vllm-0.32", "vllm-0.33"}
    assert by_release["vllm-0.32"] == by_release["vllm-0.33"]
    assert INSTALLED


@pytest.mark.parametrize("patch", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_patch_says_why(patch: Path) -> None:
    head, _, rest = patch.read_text().partition("---\n")
    for word in ("Subject: [", "Why: ", "What: ", "What a plugin can drop with it: "):
        assert word in head, word
    assert rest.startswith("diff --git a/vllm/")
    assert len(rest.splitlines()) < 100


def test_all_apply_one_after_another(tmp_path: Path) -> None:
    for patch in INSTALLED:
        for name in files_of(patch):
            if not (tmp_path / name).exists():
                copied(name, tmp_path)
    for patch in INSTALLED:
        done = apply(patch, tmp_path)
        assert done.returncode == 0, (patch.name, done.stderr)


@pytest.mark.parametrize("patch", INSTALLED, ids=lambda file: file.stem)
def test_a_patch_applies_to_the_installed_release(patch: Path, tmp_path: Path) -> None:
    touched(patch, tmp_path)
    before = {name: (tmp_path / name).read_text() for name in files_of(patch)}
    checked = apply(patch, tmp_path, "--check")
    assert checked.returncode == 0, checked.stderr
    assert apply(patch, tmp_path).returncode == 0
    for name, text in before.items():
        after = (tmp_path / name).read_text()
        assert after != text
        compile(after, name, "exec")
    assert apply(patch, tmp_path, "--check").returncode != 0, "it applies twice"
