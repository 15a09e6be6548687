"""Several processes and one cache of plans: who builds, who waits, and what a death or a full disk leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from disks import run_on_small_disk
from forks import Forker
from smart_runtime.engines.plan_keys import key_digest
from smart_runtime.engines.plans import PlanCache, StoredPlan
from trt.plans import key, plan_of

KILLS, SEED = 20, 18
PYTHONPATH = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *filter(None, sys.path)])

INSTALLER = """
import sys
from pathlib import Path
from smart_runtime.engines.plans import PlanCache
from trt.plans import key

def say(*words):
    print(*words, flush=True)

def build():
    say("building")
    sys.stdin.readline()
    say("built")
    return sys.argv[3].encode(), {}

stored = PlanCache(Path(sys.argv[1])).build_once(key(version=sys.argv[2]), build, on_wait=lambda pid: say("waits", pid))
say("has", stored.plan.decode())
"""


class Installer:
    """A process that installs one plan, and builds only until it is told to go on."""

    def __init__(self, folder: Path, *, version: str, plan: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", INSTALLER, str(folder), version, plan],
            env=os.environ | {"PYTHONPATH": PYTHONPATH},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def installers(tmp_path: Path) -> Iterator[tuple[Installer, Installer]]:
    """One that builds, and one that wants the same and waits for it."""
    with ExitStack() as ends:
        found: list[Installer] = []
        for plan, expected in (("one", "building"), ("other", "waits {}")):
            installer = Installer(tmp_path / "engines", version="10", plan=plan)
            ends.enter_context(installer.process)
            ends.callback(installer.process.kill)
            assert installer.says() == expected.format(*(first.process.pid for first in found))
            found.append(installer)
        yield found[0], found[1]


def test_two_installers_make_one_build(installers: tuple[Installer, Installer]) -> None:
    first, second = installers
    first.go_on()
    assert [first.says(), first.says(), second.says()] == ["built", "has one", "has one"]
    assert [installer.process.wait() for installer in installers] == [0, 0]


def test_who_waited_for_a_killed_builder_builds(installers: tuple[Installer, Installer], tmp_path: Path) -> None:
    first, second = installers
    first.process.kill()
    assert second.says() == "building"
    second.go_on()
    assert [second.says(), second.says()] == ["built", "has other"]
    assert sorted(file.name for file in (tmp_path / "engines").iterdir() if file.suffix != ".lock") == [
        key_digest(key(version="10"))
    ]


def test_one_build_at_a_time_whatever_it_builds(installers: tuple[Installer, Installer], tmp_path: Path) -> None:
    first, second = installers
    third = Installer(tmp_path / "engines", version="11", plan="third")
    with third.process:
        assert third.says() == f"waits {first.process.pid}"
        first.go_on()
        assert second.says() == "has one", "who waited for that very plan waits for no other build"
        assert third.says() == "building"
        third.go_on()
        assert [third.says(), third.says()] == ["built", "has third"]


def test_threads_make_one_build_too(tmp_path: Path) -> None:
    builds, all_but_one_wait = [], threading.Event()
    waiting = []
    cache = PlanCache(tmp_path / "engines")
    found: list[StoredPlan] = []

    def build() -> tuple[bytes, dict[str, str]]:
        builds.append(1)
        assert all_but_one_wait.wait(60)
        return b"plan", {}

    def wait(pid: int | None) -> None:
        waiting.append(pid)
        if len(waiting) == 3:
            all_but_one_wait.set()

    threads = [
        threading.Thread(target=lambda: found.append(cache.build_once(key(), build, on_wait=wait))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == [1]
    assert [stored.plan for stored in found] == [b"plan"] * 4
    assert set(waiting) <= {os.getpid(), None}


@pytest.fixture(scope="module")
def builder() -> Forker:
    """The process of plans.py."""
    return Forker("trt.plans")


@pytest.mark.parametrize("before", ["nothing", "another plan", "a damaged one"])
def test_a_builder_that_is_killed_leaves_a_whole_plan_or_none(builder: Forker, before: str, tmp_path: Path) -> None:
    def prepare(name: str) -> PlanCache:
        cache = PlanCache(tmp_path / name)
        if before == "another plan":
            cache.build_once(key(version="8.6.2"), lambda: (b"old", {}))
        if before == "a damaged one":
            cache.build_once(key(version="10.3.0"), lambda: (b"old", {}))
            (cache.folder / key_digest(key(version="10.3.0")) / "plan").write_bytes(b"odd")
        return cache

    def order(cache: PlanCache, die_at: int) -> int:
        return builder(folder=str(cache.folder), version="10.3.0", plan_bytes=len(whole), die_at=die_at)

    whole = plan_of(200_000)
    counted = prepare("counted")
    assert order(counted, 0) == 0
    lines = int((counted.folder / "lines").read_text())
    assert lines > 5 * KILLS
    found = []
    some = np.random.default_rng(SEED).choice(np.arange(1, lines), KILLS, replace=False)
    for die_at in [*some.tolist(), lines]:
        cache = prepare(f"killed at {die_at}")
        assert order(cache, die_at) == -9
        stored = cache.find(key(version="10.3.0"))
        assert stored is None or stored.plan == whole, f"half a plan after the line {die_at} of {lines}"
        found.append(stored is not None)
        if before == "another plan":
            assert cache.find(key(version="8.6.2")) is not None
        assert cache.build_once(key(version="10.3.0"), lambda: (whole, {})).plan == whole
        left = {file.name for file in cache.folder.iterdir() if file.suffix != ".lock" and file.name[:4] != "bad-"}
        assert left == {key_digest(key(version="10.3.0"))} | (
            {key_digest(key(version="8.6.2"))} if before == "another plan" else set()
        ), f"leavings after the line {die_at} of {lines}"
    assert found[-1], "the last line is behind the renaming"
    assert not all(found)


FULL_DISK = """
build() { "$python" -m trt.plans "$folder" "$1" "$2"; echo "status $?"; }
folder="$1/engines" python="$2"
build 1 300000
ls -A "$folder" | grep -v lock
build 2 100000
build 3 100000
ls -A "$folder" | grep -v lock | wc -l
"""


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    disk = tmp_path / "disk"
    disk.mkdir()
    done = run_on_small_disk(FULL_DISK, str(disk), sys.executable, disk=disk, kilobytes=200)
    assert done.stdout.split("\n") == ["status 3", "status 0", "status 3", "1", ""]
    said = (
        f"error: the folder of built engines {disk}/engines cannot be used (No space left on device); make room there, "
        "or name another one with cache_dir or XDG_CACHE_HOME"
    )
    assert done.stderr.splitlines() == [said, said]
