"""What an export says of its own time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from export.command import smart_export
from smart_export.timings import Stopwatch, peak_bytes, seconds_since_start

GRAPH_PHASES = (
    "fold",
    "prove the fold",
    "count MACs",
    "convert to ONNX",
    "write",
    "verify, reference",
    "verify, engine",
)
PHASES = [
    "start",
    "load checkpoint",
    "count parameters",
    *(f"{graph}: {phase}" for graph in ("clean", "robust", "dense") for phase in GRAPH_PHASES),
    "temperatures and mixes",
    "operating points",
    "manifest and checksums",
    "publish",
]


def test_a_stopwatch_adds_up_phases_of_one_name_in_the_order_they_began(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 24.0])  # where each phase begins and ends
    monkeypatch.setattr("smart_export.timings.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    told: list[str] = []
    watch = Stopwatch(on_phase=lambda name, _: told.append(name))
    for name in ("b", "a", "b"):
        with watch.phase(name):
            pass
    assert list(watch.seconds) == ["b", "a"]
    assert told == ["b", "a", "b"]
    assert watch.seconds == {"b": 5.0, "a": 2.0}


def test_a_phase_that_fails_is_not_told() -> None:
    watch = Stopwatch()
    with pytest.raises(ValueError, match="no"), watch.phase("a"):
        raise ValueError("no")
    assert watch.seconds == {}


def test_a_process_knows_its_own_peak_and_age_whatever_its_parent_holds() -> None:
    ballast = bytes(300 * 2**20)  # a child begins with its parent's peak in getrusage
    code = (
        "import time; time.sleep(0.3)\n"
        "from smart_export.timings import peak_bytes, seconds_since_start\n"
        "print(seconds_since_start(), peak_bytes())"
    )
    run = [sys.executable, "-c", f"import sys; sys.modules['torch'] = None\n{_without_package()}{code}"]
    started = time.perf_counter()
    age, peak = map(float, subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())
    assert 0.3 <= age <= time.perf_counter() - started + 0.02  # the system counts in ticks of 10 ms
    assert peak < len(ballast) < peak_bytes()
    assert (seconds_since_start() or 0) > age


def _without_package() -> str:
    """Return code that makes ``smart_export`` an empty package, so that importing a module of it loads no torch."""
    folder = Path(sys.modules["smart_export"].__file__ or "").parent
    return (
        f"import types\nempty = types.ModuleType('smart_export')\nempty.__path__ = [{str(folder)!r}]\n"
        "sys.modules['smart_export'] = empty\n"
    )


def test_verbose_tells_each_phase_and_json_holds_them_always(checkpoint_file: Path, tmp_path: Path) -> None:
    options = [str(checkpoint_file), "--target", "cpu", "--json", "--force", "-o", str(tmp_path / "b")]
    command = [sys.executable, "-m", "smart_export.cli", *options, "--verbose"]
    started = time.perf_counter()
    loud = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    wall = time.perf_counter() - started
    found = json.loads(loud.stdout)
    assert list(found["timings"]) == PHASES
    assert all(seconds >= 0 for seconds in found["timings"].values())
    assert 0.5 * wall <= sum(found["timings"].values()) <= wall + 0.02
    assert 50 * 2**20 < found["peak_bytes"] < 2 * 2**30
    warned = "warning: the path 'robust' is not clearly more robust than 'clean'"  # nor is it, after this training
    lines = [line for line in loud.stderr.strip().splitlines() if not line.startswith(warned)]
    assert [line.rpartition(":")[0] for line in lines] == [*PHASES, "total", "peak memory"]
    quiet = smart_export(*options)
    assert quiet.returncode == 0
    assert [line.startswith(warned) for line in quiet.stderr.splitlines()] == [True]
    assert list(json.loads(quiet.stdout)["timings"]) == PHASES
