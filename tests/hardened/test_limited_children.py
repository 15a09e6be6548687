"""What runs in a child within bounds ends with an answer or without one, and imports nothing from where it runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

import smart_common
from smart_common.errors import SmartError
from smart_common.limited import run_limited

_PLANTED = "raise SystemExit(9)\n"


def doubled(data: bytes) -> list[int]:
    return [2 * one for one in data]


def endless(data: bytes) -> None:
    while data:
        pass


def greedy(data: bytes) -> int:
    return len(data * 2**40)


def without_a_library(_: bytes) -> int:
    import no_such_library  # type: ignore[import-not-found]  # noqa: PLC0415

    return int(no_such_library.answer)


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


def test_a_child_that_cannot_import_is_told_from_one_that_takes_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strange.py").write_text(Path(__file__).read_text())
    with pytest.raises(SmartError, match="strange:doubled cannot be imported in a child process"):
        run_limited("strange:doubled", b"x", seconds=5, max_bytes=2**30)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SmartError, match="No module named 'no_such_library'"):
        run_limited("strange:without_a_library", b"x", seconds=5, max_bytes=2**30)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "smart_common").exists()])
    monkeypatch.setattr(sys, "executable", sys._base_executable)  # type: ignore[attr-defined]  # nothing is installed
    with pytest.raises(SmartError, match="a child process cannot import smart-edge"):
        run_limited("strange:doubled", b"x", seconds=5, max_bytes=2**30)


def test_a_child_of_one_that_runs_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(smart_common.__file__).parents[1])
    assert run_limited("builtins:len", b"abc", seconds=5, max_bytes=2**30) == 3
