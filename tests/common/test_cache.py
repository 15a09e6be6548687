from __future__ import annotations

from pathlib import Path

import pytest

from smart_common.files import default_cache_dir


def test_the_default_cache_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "smart-edge"
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_cache_dir() == tmp_path / ".cache" / "smart-edge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == tmp_path / ".cache" / "smart-edge"
    monkeypatch.setenv("HOME", "~")  # as unknown as where neither the environment nor the passwd file has one
    assert default_cache_dir() is None
