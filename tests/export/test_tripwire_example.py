"""The example of a stream under attack, run as its reader would run it, with fewer frames."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/06_tripwire.py"


def test_where_no_alarm_came_none_is_said(bundle: Path, checkpoint_file: Path) -> None:
    blind = ["--frames", "60", "--attacked-from", "40", "--rate", "2000", "--every", "1000000"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--bundle", str(bundle), "--checkpoint", str(checkpoint_file), *blind],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("no alarm in 20 frames under attack; 0 shadow frames, ")


def test_a_stream_goes_from_clean_frames_to_attacked_ones(bundle: Path, checkpoint_file: Path, tmp_path: Path) -> None:
    plot = tmp_path / "stream.png"
    less = ["--frames", "120", "--attacked-from", "40", "--rate", "2000", "--every", "1", "--plot", str(plot)]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--bundle", str(bundle), "--checkpoint", str(checkpoint_file), *less],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, *_, alarms, where = done.stdout.splitlines()
    assert before.startswith("before the attack: ")
    assert "alarm" in alarms
    assert " shadow frames, " in alarms
    assert where == f"plot: {plot}"
    assert plot.stat().st_size > 5_000
