"""``smart-run install`` on a machine of stand-ins, which builds in the process itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from runtime.bundles import CLASSES, REFERENCE_IMAGES, as_float, random_images, write_bundle
from smart_devices import gpu_engines
from smart_devices.engine_rows import EngineStatus
from smart_runtime import EngineOptions, SmartModel
from smart_runtime.bundle.bundle import write_checksums
from smart_runtime.cli import main
from smart_runtime.engines.plan_keys import key_digest
from smart_runtime.engines.plans import PlanCache
from smart_runtime.engines.trt import installed as plans_here
from smart_runtime.engines.trt.library import Library
from smart_runtime.errors import EngineError
from smart_runtime.reference import SCORES, npy_bytes
from trt.machine import computing_something_else, plans_in_cache


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "tiny")


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


def test_a_bundle_is_installed_once_and_served_from_there(machine: Any, bundle: Path) -> None:
    first = json.loads(run("install", bundle, "--json").stdout)
    assert [plan["path"] for plan in first["plans"]] == ["clean", "robust"]
    assert not any(plan["was_there"] for plan in first["plans"])
    assert all(plan["proofs"] for plan in first["plans"])
    assert len(machine) == 2
    second = json.loads(run("install", bundle, "--json").stdout)
    assert all(plan["was_there"] for plan in second["plans"])
    with SmartModel.load(bundle) as model:
        assert model.engine_name == "tensorrt"
        assert model.notes == ()
        model(as_float(random_images(2)))
    assert len(machine) == 2
    assert "0 of 0" in run("install", bundle).output


def test_before_that_auto_takes_another_engine_and_says_so(machine: Any, bundle: Path) -> None:
    with SmartModel.load(bundle) as model:
        assert model.engine_name == "onnxruntime-cpu"
        assert model.notes == (
            "TensorRT 10.3.0 is here and may be faster, but this bundle is not installed for it: "
            f"smart-run install {bundle}",
        )
    assert machine == []


def test_a_plan_that_computes_something_else_is_not_installed(
    machine: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with computing_something_else(monkeypatch):
        done = run("install", bundle, "--path", "robust")
    assert done.exit_code == 1
    assert "error: the plan of 'robust' computes something else on this device" in done.stderr
    assert plans_in_cache() == []
    assert run("install", bundle, "--path", "robust").exit_code == 0
    assert len(plans_in_cache()) == 1
    assert len(machine) == 2


def test_a_forced_build_that_computes_something_else_leaves_the_earlier_plan(
    machine: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("install", bundle).exit_code == 0
    before = {plan: plan.read_bytes() for plan in plans_in_cache()}
    with SmartModel.load(bundle, engine="tensorrt") as model:
        scores = model(as_float(random_images(2)))
        with computing_something_else(monkeypatch):
            done = run("install", bundle, "--force")
        assert done.exit_code == 1
        assert "computes something else on this device" in done.stderr
        assert {plan: plan.read_bytes() for plan in plans_in_cache()} == before
        assert np.array_equal(model(as_float(random_images(2))), scores)
    with SmartModel.load(bundle, engine="tensorrt") as model:
        assert np.array_equal(model(as_float(random_images(2))), scores)
    assert len(machine) == 3
    assert run("install", bundle, "--force").exit_code == 0
    assert len(machine) == 5
    assert not set(before.values()) & {plan.read_bytes() for plan in plans_in_cache()}


def test_a_plan_in_a_bundle_is_never_loaded(machine: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle / "engines").mkdir()
    for path in ("clean", "robust"):
        (bundle / f"engines/{path}.plan").write_bytes(b"the code of a stranger")
    write_checksums(bundle)
    loaded: list[bytes] = []
    deserialize = Library.deserialize

    def watched(self: Library, runtime: Any, plan: bytes) -> Any:
        loaded.append(plan)
        return deserialize(self, runtime, plan)

    monkeypatch.setattr(Library, "deserialize", watched)
    assert run("install", bundle).exit_code == 0
    with SmartModel.load(bundle, engine="tensorrt") as model:
        model(as_float(random_images(2)))
    assert len(loaded) >= 4
    assert all(plan.startswith(b"trtstand") for plan in loaded)


@pytest.fixture
def lying(tmp_path: Path) -> Path:
    """A bundle with the graphs of the other one and scores that nothing computes."""
    found = write_bundle(tmp_path / "lying", reference=True)
    (found / "clean" / SCORES).write_bytes(npy_bytes(np.full((REFERENCE_IMAGES, CLASSES), 7, np.float32)))
    write_checksums(found)
    return found


def test_a_bundle_that_lies_does_not_take_the_plans_of_an_honest_one(machine: Any, bundle: Path, lying: Path) -> None:
    assert run("install", bundle).exit_code == 0
    refused = run("install", lying, "--json")
    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert "it was proved before and stays: look where this bundle comes from" in refused.stderr
    with SmartModel.load(bundle) as model:
        assert model.engine_name == "tensorrt"
    assert len(machine) == 2


def test_what_was_never_proved_is_not_kept_where_it_fails(machine: Any, lying: Path) -> None:
    refused = run("install", lying)
    assert refused.exit_code == 1
    assert "it is not used: try `smart-run install BUNDLE --level 2`" in refused.stderr
    assert plans_in_cache() == []
    assert not json.loads(run("install", lying, "--path", "robust", "--json").stdout)["plans"][0]["was_there"]
    with SmartModel.load(lying) as model:
        assert model.engine_name == "onnxruntime-cpu"
    assert len(machine) == 2


def test_a_plan_with_tf32_is_for_who_asks_for_it(machine: Any, bundle: Path) -> None:
    assert run("install", bundle, "--tf32").exit_code == 0
    assert [recipe.tf32 for recipe in machine] == [True, True]
    SmartModel.load(bundle, engine="tensorrt", options=EngineOptions(tf32=True)).close()
    assert len(machine) == 2
    SmartModel.load(bundle, engine="tensorrt").close()
    assert [recipe.tf32 for recipe in machine[2:]] == [False, False]


def test_prune_removes_timings_that_no_plan_needs(machine: Any, bundle: Path) -> None:
    assert run("install", bundle).exit_code == 0
    folder = plans_in_cache()[0].parents[1]
    (needed,) = folder.glob("timing-*.cache")
    old = folder / "timing-0123456789abcdef.cache"
    old.write_bytes(b"what another version measured")
    pruned = json.loads(run("install", "--prune", "--json").stdout)["pruned"]
    assert pruned == [{"name": old.name, "bytes": 29, "why": "no plan needs these timings"}]
    for plan in plans_in_cache():
        shutil.rmtree(plan.parent)
    assert needed.name[:12] in run("install", "--prune").stdout
    assert not needed.exists()
    assert len(machine) == 2


def test_prune_works_without_a_driver_and_keeps_what_that_may_use(
    machine: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("install", bundle).exit_code == 0
    kept = plans_in_cache()
    bad = kept[0].parents[1] / f"bad-{64 * '0'}"
    bad.mkdir()
    old = PlanCache().build_once({"format": 1, "library": "tensorrt"}, lambda: (b"as it was before", {}))
    monkeypatch.setattr(gpu_engines, "tensorrt", lambda _: EngineStatus("tensorrt", available=False, reason="no GPU"))
    done = run("install", "--prune", "--json")
    assert done.exit_code == 0
    assert {one["name"] for one in json.loads(done.stdout)["pruned"]} == {bad.name, key_digest(old.key)}
    assert "the plans of tensorrt were not judged and stay: this device cannot run tensorrt: no GPU" in done.stderr
    assert plans_in_cache() == kept
    assert len(machine) == 2


def test_prune_names_what_has_no_plans(machine: Any) -> None:
    for name, said in (("onnxruntime-cpu", "needs no installing"), ("tensort", "did you mean tensorrt")):
        refused = run("install", "--prune", "--engine", name)
        assert refused.exit_code == 1
        assert said in refused.stderr
    assert machine == []


def test_an_interrupt_says_what_is_kept(machine: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = vars(plans_here)["build_plan"]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if len(machine) == 1:
            raise KeyboardInterrupt
        return build(*args, **kwargs)

    monkeypatch.setattr(plans_here, "build_plan", interrupted)
    stopped = run("install", bundle, "--json")
    assert stopped.exit_code == 130
    assert stopped.stdout == ""
    assert "interrupted: clean is installed; run it again to go on" in stopped.stderr
    monkeypatch.setattr(plans_here, "build_plan", build)
    assert [plan["was_there"] for plan in json.loads(run("install", bundle, "--json").stdout)["plans"]] == [True, False]


@pytest.mark.usefixtures("machine")
def test_a_library_that_is_upgraded_meanwhile_leaves_no_plan(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = vars(plans_here)["build_plan"]
    monkeypatch.setattr(plans_here, "build_plan", lambda *args, **named: replace(build(*args, **named), version="12.0"))
    with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0 was replaced by 12\.0 .*start the process again"):
        SmartModel.load(bundle, engine="tensorrt")
    monkeypatch.setattr(plans_here, "build_plan", build)
    assert not any(plan["was_there"] for plan in json.loads(run("install", bundle, "--json").stdout)["plans"])


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--timeout", "nan"], 2, "expected seconds, got nan"),
        (["--batch", f"1,1,{5000 * '1'}"], 2, "expected three batch sizes MIN,OPT,MAX such as 1,8,64"),
        (["--workspace", str(2**43)], 1, "expected workspace_bytes of 1 to 1125899906842624, got 9223372036854775808"),
    ],
)
def test_numbers_that_no_library_takes_are_refused(bundle: Path, options: list[str], status: int, said: str) -> None:
    refused = run("install", bundle, *options)
    assert refused.exit_code == status
    assert said in refused.stderr


def test_a_path_that_is_named_twice_is_built_once(machine: Any, bundle: Path) -> None:
    done = run("install", bundle, "--path", "clean", "--path", "clean", "--force", "--json")
    assert [plan["path"] for plan in json.loads(done.stdout)["plans"]] == ["clean"]
    assert len(machine) == 1
