"""What runs in a child within bounds ends with an answer or without one, and imports nothing from where it runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from smart_common.limited import run_limited

_PLANTED = "raise SystemExit(9)\n"


def doubled(data: bytes) -> list[int]:
    return [2 * one for one in data]


def endless(data: bytes) -> None:
    while data:
        pass


def greedy(data: bytes) -> int:
    return len(data * 2**40)


def test_a_child_answers_or_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strange.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(Path(__file__).parent)
    assert run_limited("strange:doubled", b"\x01\x02", seconds=5, max_bytes=2**30) == [2, 4]
    started = time.perf_counter()
    assert run_limited("strange:endless", b"x", seconds=1, max_bytes=2**30) is None
    assert run_limited("strange:greedy", b"x", seconds=5, max_bytes=2**30) is None
    assert time.perf_counter() - started < 10


def test_a_child_imports_nothing_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "resource", "numpy", "sitecustomize", "smart_common"):
        (tmp_path / f"{name}.py").write_text(_PLANTED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as python -m does with the current folder
    assert run_limited("builtins:len", b"abc", seconds=5, max_bytes=2**30) == 3
