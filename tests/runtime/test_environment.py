from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from smart_runtime.bench.environment import read_environment


def machine(root: Path, *, governor: str | None, cpuinfo: str | None) -> Path:
    """The part of /proc and /sys that is read, for every core that this process may use."""
    for core in os.sched_getaffinity(0):
        folder = root / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        if governor is not None:
            (folder / "scaling_governor").write_text(governor)
    if cpuinfo is not None:
        (root / "proc").mkdir()
        (root / "proc/cpuinfo").write_text(cpuinfo)
    return root


@pytest.mark.parametrize(
    ("written", "read"),
    [("performance\n", "performance"), ("schedutil\n", "schedutil"), ("\n", None), (None, None)],
)
def test_the_governor_of_a_core_of_ours(tmp_path: Path, written: str | None, read: str | None) -> None:
    environment = read_environment(root=machine(tmp_path, governor=written, cpuinfo=None))
    assert environment.governor == read


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    environment = read_environment(root=tmp_path)
    assert environment.governor is None
    assert environment.cpu  # the machine type must do


def test_the_name_of_the_cpu(tmp_path: Path) -> None:
    cpuinfo = "processor\t: 0\nmodel name\t: Abacus 7\nmodel name\t: other\n"
    assert read_environment(root=machine(tmp_path, governor=None, cpuinfo=cpuinfo)).cpu == "Abacus 7"


def test_versions_of_more_packages() -> None:
    versions = read_environment(packages=("hypothesis", "no-such-package")).versions
    assert versions["numpy"] == np.__version__
    assert "hypothesis" in versions
    assert "no-such-package" not in versions


def test_it_is_json_as_it_stands() -> None:
    environment = asdict(read_environment())
    assert json.loads(json.dumps(environment, allow_nan=False))["cores"] == environment["cores"]
