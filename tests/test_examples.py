"""The examples, each run as its reader would run it, with less work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from smart_runtime import SmartModel

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_the_demo_goes_from_training_to_the_table(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "01_demo.py"), "--out", str(out), "--epochs", "2", "--blocks", "4"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.index("path       clean") :].splitlines()
    assert [line.split()[0] for line in table[1:4]] == ["dense", "clean", "robust"]
    bench = json.loads((out / "smart-bench.json").read_text())
    assert [row["name"] for row in bench["rows"]] == ["dense", "clean", "robust"]
    assert (out / "bench.png").stat().st_size > 10_000
    with SmartModel.load(out / "bundle") as model:
        assert model.paths == ("clean", "robust")
