"""The cache of plans: what it keeps, finds, explains and removes, and whom it trusts."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smart_common.files import default_cache_dir
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.engines.engine import BatchRange
from smart_runtime.engines.plan_keys import Key, differences, key_digest
from smart_runtime.engines.plans import MAX_META_BYTES, PlanCache, StoredPlan
from smart_runtime.errors import EngineError
from trt.plans import GRAPH, TERMS, FakeGpu, key, plan_of

PLAN = plan_of(3000)
FACTS = {"seconds": 1.5, "layers": ["conv1", "fc"], "sparse": None}


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "engines")


def build() -> tuple[bytes, dict[str, Any]]:
    return PLAN, FACTS


def made(plan: bytes) -> tuple[bytes, dict[str, Any]]:
    return plan, {}


def must_not_build() -> tuple[bytes, dict[str, Any]]:
    raise AssertionError("it is there already")


def names(cache: PlanCache) -> list[str]:
    """What lies in the cache but for locks."""
    return sorted(file.name for file in cache.folder.iterdir() if file.suffix != ".lock")


def entry(cache: PlanCache, of: Key | None = None) -> Path:
    return cache.folder / key_digest(of or key())


def test_what_was_built_is_found_again(cache: PlanCache) -> None:
    assert cache.find(key()) is None
    assert not cache.folder.exists(), "looking makes nothing"
    assert cache.explain_missing(key()) is None
    built = cache.build_once(key(), build)
    assert built == StoredPlan(key=key(), plan=PLAN, facts=FACTS)
    assert cache.find(key()) == built
    assert cache.build_once(key(), must_not_build) == built
    assert PlanCache(cache.folder).find(key()) == built, "and by another process"
    assert names(cache) == [key_digest(key())]


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_everything_is_the_users_alone_whatever_the_umask(cache: PlanCache, umask: int) -> None:
    old = os.umask(umask)
    try:
        cache.build_once(key(), build)
        cache.set_facts(key(), {"device_bytes": 7})
    finally:
        os.umask(old)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (cache.folder, *cache.folder.rglob("*"))}
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items()), modes
    assert cache.find(key()) is not None


def test_a_build_that_fails_leaves_nothing(cache: PlanCache) -> None:
    def fail() -> tuple[bytes, dict[str, Any]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.build_once(key(), fail)
    assert names(cache) == []
    assert cache.build_once(key(), build).plan == PLAN


def test_facts_are_added(cache: PlanCache) -> None:
    cache.set_facts(key(), {"device_bytes": 7})
    assert not cache.folder.exists()
    cache.build_once(key(), build)
    cache.set_facts(key(), {"device_bytes": 7, "seconds": 2})
    cache.set_facts(key(version="11"), {"device_bytes": 8})
    found = cache.find(key())
    assert found is not None
    assert found.facts == {**FACTS, "device_bytes": 7, "seconds": 2}
    assert found.plan == PLAN


def test_what_is_set_aside_is_built_once_more(cache: PlanCache) -> None:
    cache.set_aside(key())
    for plan in (b"first", b"second", b"third"):
        assert cache.find(key()) is None
        assert cache.build_once(key(), partial(made, plan)).plan == plan
        cache.set_aside(key())
        bad = cache.folder / f"bad-{key_digest(key())}"
        assert (bad / "plan").read_bytes() == plan, "the last of its kind"
    assert names(cache) == [bad.name]


FLAT: dict[str, tuple[dict[str, Any], str]] = {
    "library": ({"library": "tensorrt-rtx"}, "library tensorrt instead of tensorrt-rtx"),
    "version": ({"version": "8.6.2"}, "library version 10.3.0 instead of 8.6.2"),
    "input name": ({"inputs": replace(TERMS["inputs"], name="x")}, "input name image instead of x"),
    "channels": ({"inputs": replace(TERMS["inputs"], channels=1)}, "input channels 3 instead of 1"),
    "height": ({"inputs": replace(TERMS["inputs"], height=33)}, "input height 32 instead of 33"),
    "width": ({"inputs": replace(TERMS["inputs"], width=31)}, "input width 32 instead of 31"),
    "output name": ({"outputs": replace(TERMS["outputs"], name="y")}, "output name scores instead of y"),
    "classes": ({"outputs": replace(TERMS["outputs"], classes=11)}, "classes 10 instead of 11"),
    "batch min": ({"batch": BatchRange(2, 8, 64)}, "smallest batch 1 instead of 2"),
    "batch opt": ({"batch": BatchRange(1, 9, 64)}, "best batch 8 instead of 9"),
    "batch max": ({"batch": BatchRange(1, 8, 65)}, "largest batch 64 instead of 65"),
    "precision": ({"precision": "fp16"}, "precision fp32 instead of fp16"),
    "recipe": ({"recipe": "tensorrt"}, "recipe none instead of tensorrt"),
    "tf32": ({"tf32": True}, "TF32 off instead of on"),
    "sparse": ({"sparse": True}, "sparse weights off instead of on"),
    "level": ({"level": 5}, "level 3 instead of 5"),
    "workspace": ({"workspace_bytes": 2**20}, "workspace in bytes none instead of 1048576"),
    "gpu": ({"gpu": FakeGpu(name="Thor")}, "GPU Orin instead of Thor"),
    "capability": ({"gpu": FakeGpu(capability="11.0")}, "compute capability 8.7 instead of 11.0"),
    "multiprocessors": ({"gpu": FakeGpu(multiprocessors=16)}, "multiprocessors 8 instead of 16"),
    "memory": ({"gpu": FakeGpu(total_bytes=4 * 2**30)}, "GPU memory in GiB 8 instead of 4"),
    "integrated": ({"gpu": FakeGpu(integrated=False)}, "integrated GPU on instead of off"),
    "system": ({"system": "L4T 36.3"}, "system L4T 36.4.3 instead of L4T 36.3"),
}


@pytest.mark.parametrize("changed", FLAT)
def test_each_change_is_another_key_and_is_explained(cache: PlanCache, changed: str) -> None:
    cache.build_once(key(), build)
    terms, said = FLAT[changed]
    assert cache.find(key(**terms)) is None
    assert cache.explain_missing(key(**terms)) == (
        f"a plan of this graph is installed, but with {said}; `smart-run install BUNDLE` makes one that fits"
    )


@given(chosen=st.sets(st.sampled_from(sorted(FLAT)), min_size=1))
def test_any_changes_are_another_key_and_each_is_named(chosen: set[str]) -> None:
    terms: dict[str, Any] = {}
    for name in chosen:  # of the fields in one object, the last one changes
        terms |= FLAT[name][0]
    said = {FLAT[name][1] for name in chosen if terms | FLAT[name][0] == terms}
    assert key_digest(key(**terms)) != key_digest(key())
    assert set(differences(key(), key(**terms))) == said


def test_a_board_with_a_few_kilobytes_less_after_a_start_finds_its_plans(cache: PlanCache) -> None:
    cache.build_once(key(), build)
    assert cache.find(key(gpu=FakeGpu(total_bytes=8 * 2**30 - 12 * 2**10))) is not None


def test_every_term_of_a_key_is_among_the_changes() -> None:
    flat = [name for name, value in key().items() if name not in {"format", "graph"} and not isinstance(value, dict)]
    inner = [name for value in key().values() if isinstance(value, dict) for name in value]
    assert len(FLAT) == len(flat) + len(inner) - len(("model", "weights"))


@pytest.mark.parametrize(
    "other",
    [replace(GRAPH, weights=b"weightz"), replace(GRAPH, model=b"modem"), replace(GRAPH, weights=None)],
    ids=["weights", "model", "none"],
)
def test_another_graph_is_another_key_though_its_structure_is_the_same(cache: PlanCache, other: GraphBytes) -> None:
    """ONNX Runtime's own cache takes one for the other (its issue 6455)."""
    cache.build_once(key(), build)
    assert cache.find(key(graph=other)) is None
    assert cache.explain_missing(key(graph=other)) is None, "nothing of this graph is installed"


def test_the_nearest_plan_is_what_an_explanation_compares_with(cache: PlanCache) -> None:
    cache.build_once(key(version="8.6.2", level=1), build)
    cache.build_once(key(level=1), build)
    found = cache.explain_missing(key())
    assert found is not None
    assert "but with level 1 instead of 3;" in found


def flips(file: Path) -> Iterator[int]:
    """Flip one bit of each byte in turn, and put it back."""
    whole = file.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        file.write_bytes(changed)
        yield position
    file.write_bytes(whole)


@pytest.mark.parametrize("name", ["plan", "meta.json"])
def test_a_flipped_bit_is_found(cache: PlanCache, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    stored = cache.build_once(key(), lambda: (b"a plan", FACTS))
    for position in flips(entry(cache) / name):
        found = cache.find(key())
        assert found is None or found == stored, f"byte {position}"  # a blank of JSON may change
        if name == "plan":
            assert found is None
    assert cache.find(key()) == stored


@pytest.mark.parametrize("what", ["cut", "longer", "no plan", "no meta", "meta of another", "huge meta", "deep meta"])
def test_what_is_damaged_is_said_and_built_again(cache: PlanCache, what: str, caplog: pytest.LogCaptureFixture) -> None:
    cache.build_once(key(), build)
    cache.build_once(key(level=1), build)
    plan, meta = entry(cache) / "plan", entry(cache) / "meta.json"
    if what in {"cut", "longer"}:
        plan.write_bytes(PLAN[:-1] if what == "cut" else PLAN + b"\0")
    elif what.startswith("no"):
        (plan if what == "no plan" else meta).unlink()
    elif what == "meta of another":
        meta.write_bytes((entry(cache, key(level=1)) / "meta.json").read_bytes())
    elif what == "huge meta":
        os.truncate(meta, MAX_META_BYTES + 1)
    else:
        meta.write_text("[" * 100_000)
    assert cache.find(key()) is None
    assert f"the plan {entry(cache)} is damaged" in caplog.text
    assert cache.explain_missing(key()) == (
        "the plan that is installed for this graph is damaged; `smart-run install BUNDLE` makes a new one"
    )
    assert cache.build_once(key(), build).plan == PLAN
    assert cache.find(key()) == StoredPlan(key=key(), plan=PLAN, facts=FACTS)
    assert f"bad-{key_digest(key())}" in names(cache)


def in_place(cache: PlanCache, where: str) -> Path:
    return {"folder": cache.folder, "entry": entry(cache), "plan": entry(cache) / "plan"}[where]


@pytest.mark.parametrize("where", ["folder", "entry", "plan"])
def test_a_link_is_refused(cache: PlanCache, where: str, tmp_path: Path) -> None:
    cache.build_once(key(), build)
    place = in_place(cache, where)
    place.rename(tmp_path / "aside")
    place.symlink_to(tmp_path / "aside")
    for use in (cache.find, partial(cache.build_once, build=must_not_build)):
        with pytest.raises(EngineError, match=f"there is a link or special file where {place} should be plain; remove"):
            use(key())


@pytest.mark.parametrize("what", ["link", "file", "folder for meta", "link for meta", "others may write"])
def test_one_entry_that_nobody_may_read_is_not_the_end_of_all_others(
    cache: PlanCache, what: str, tmp_path: Path
) -> None:
    cache.build_once(key(), build)
    cache.build_once(key(level=1), build)
    odd = entry(cache, key(level=1))
    if what in {"link", "file"}:
        odd.rename(tmp_path / "aside")
        odd.symlink_to(tmp_path / "aside") if what == "link" else odd.touch()
    elif what == "others may write":
        odd.chmod(0o777)
    else:
        (odd / "meta.json").rename(tmp_path / "aside")
        link = (odd / "meta.json").symlink_to
        link(tmp_path / "aside") if what == "link for meta" else (odd / "meta.json").mkdir()
    found = cache.newest(key(), free={"level"})
    assert found is not None
    assert found.key == key()
    assert [gone.name for gone in cache.prune(usable=lambda _: True)] == [odd.name]
    assert cache.find(key()) is not None
    assert what == "others may write" or (tmp_path / "aside").exists()


@pytest.mark.parametrize("mode", [0o020, 0o002], ids=["group", "all"])
@pytest.mark.parametrize("where", ["folder", "entry", "plan"])
def test_what_others_may_write_is_refused(cache: PlanCache, where: str, mode: int) -> None:
    cache.build_once(key(), build)
    place = in_place(cache, where)
    place.chmod(place.stat().st_mode | mode)
    for use in (cache.find, partial(cache.build_once, build=must_not_build)):
        with pytest.raises(EngineError, match=f"others may write into {place}, and built engines are code; remove it"):
            use(key())
    place.chmod(place.stat().st_mode & ~mode)
    assert cache.find(key()) is not None


def test_what_belongs_to_another_user_is_refused(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.build_once(key(), build)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    for use in (
        lambda: cache.find(key()),
        lambda: cache.build_once(key(), must_not_build),
        lambda: cache.set_facts(key(), {}),
        lambda: cache.set_aside(key()),
        lambda: cache.explain_missing(key()),
        lambda: cache.prune(usable=lambda _: True),
    ):
        with pytest.raises(EngineError, match=f"{cache.folder} belongs to another user, and built engines are code"):
            use()


def test_a_pipe_in_the_plans_place_hangs_nobody(cache: PlanCache) -> None:
    cache.build_once(key(), build)
    (entry(cache) / "plan").unlink()
    os.mkfifo(entry(cache) / "plan", 0o600)
    with pytest.raises(EngineError, match="is no plain file; remove it"):
        cache.find(key())


def test_a_file_in_the_folders_place_is_one_sentence(cache: PlanCache) -> None:
    cache.folder.write_bytes(b"")
    with pytest.raises(EngineError, match="a link or special file where"):
        cache.build_once(key(), must_not_build)


def test_the_default_folder_is_in_that_of_smart_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    shared = default_cache_dir()
    assert shared is not None
    shared.mkdir(parents=True)
    shared.chmod(0o775)  # as the cache of data sets leaves it under many umasks
    cache = PlanCache()
    assert cache.folder == shared / "engines"
    cache.build_once(key(), build)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    shared.chmod(0o777)
    with pytest.raises(EngineError, match=f"others may write into {shared}, "):
        cache.find(key())


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smart_runtime.engines.plans.default_cache_dir", lambda: None)
    with pytest.raises(EngineError, match=r"no folder to keep built engines in: .* set XDG_CACHE_HOME"):
        PlanCache()


def test_what_nothing_here_can_use_goes(cache: PlanCache) -> None:
    for version in ("8.6.2", "10.3.0"):
        cache.build_once(key(version=version), build)
    cache.build_once(key(level=1), build)
    (entry(cache, key(level=1)) / "meta.json").write_bytes(b"{}")
    cache.build_once(key(level=2), build)
    cache.set_aside(key(level=2))
    before = sorted(cache.folder.rglob("*"))

    def usable(of: Key) -> bool:
        return bool(of["version"] == "10.3.0")

    would = cache.prune(usable=usable, dry_run=True)
    assert sorted(cache.folder.rglob("*")) == before
    went = cache.prune(usable=usable)
    assert went == would
    assert {(pruned.name, pruned.why) for pruned in went} == {
        (key_digest(key(version="8.6.2")), "nothing here can use it"),
        (key_digest(key(level=1)), "damaged, or not this user's alone"),
        (f"bad-{key_digest(key(level=2))}", "set aside for a new one"),
    }
    assert all(pruned.bytes > 0 for pruned in went)
    assert names(cache) == [key_digest(key())]
    locks = {file.stem for file in cache.folder.glob("*.lock")}
    assert locks == {"build", key_digest(key())}, "those of what is gone go too"


def test_the_least_recently_used_go_first(cache: PlanCache) -> None:
    for level in (0, 1, 2):
        cache.build_once(key(level=level), build)
        os.utime(entry(cache, key(level=level)) / "plan", (level + 1, level + 1))
        os.utime(entry(cache, key(level=level)) / "meta.json", (1, 1))
    cache.find(key(level=0))
    size = sum(file.stat().st_size for file in entry(cache, key(level=0)).iterdir())
    went = cache.prune(usable=lambda _: True, keep_bytes=2 * size)
    assert [pruned.key for pruned in went] == [key(level=1)]
    assert [pruned.key for pruned in cache.prune(usable=lambda _: True, keep_bytes=0)] == [key(level=2), key(level=0)]
    assert cache.prune(usable=lambda _: True, keep_bytes=0) == ()


def test_what_is_being_built_is_not_pruned(cache: PlanCache) -> None:
    def prune() -> tuple[bytes, dict[str, Any]]:
        assert cache.prune(usable=lambda _: False) == ()
        return build()

    cache.build_once(key(), prune)
    assert cache.find(key()) is not None


def test_nothing_to_prune(cache: PlanCache) -> None:
    assert cache.prune(usable=lambda _: False, keep_bytes=0) == ()


def test_facts_that_are_no_json_are_a_slip_of_ours_and_leave_nothing(cache: PlanCache) -> None:
    with pytest.raises(TypeError):
        cache.build_once(key(), lambda: (PLAN, {"what": object()}))
    assert names(cache) == []


def test_meta_is_readable_json(cache: PlanCache) -> None:
    cache.build_once(key(), build)
    said = json.loads((entry(cache) / "meta.json").read_bytes())
    assert said["key"] == key()
    assert said["plan"]["bytes"] == len(PLAN)
