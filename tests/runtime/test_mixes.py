"""Mixes of two paths, and one call on both: what they give, and that nothing ever mixes but what should."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from reference.mixing import mix, softmax
from runtime.bundles import (
    MIX,
    SHARE,
    TEMPERATURES,
    Array,
    add_mix,
    as_float,
    expected_scores,
    manifest_document,
    ours,
    random_images,
    write_bundle,
)
from runtime.each_engine import CPU, EngineUnderTest, cpu_only
from runtime.fakes import TIMEOUT, Gate, Thread, replace_engines
from smart_runtime import BundleError, ClosedError, EngineError, InputError, PathError, SmartModel
from smart_runtime.bundle.manifest import parse_manifest
from smart_runtime.together import mixed

pytestmark = pytest.mark.usefixtures("engine")

FLOATS = as_float(random_images(4))
CHOICES = ("clean", "robust", MIX)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "mixed", change=add_mix)


@pytest.fixture
def model(bundle: Path) -> Iterator[SmartModel]:
    with SmartModel.load(bundle, threads=1) as loaded:
        yield loaded


def expected_mix(images: Array) -> Any:
    scores = [expected_scores(path, images) for path in ("clean", "robust")]
    return mix(scores[0], scores[1], share=SHARE, temperatures=TEMPERATURES)


def test_a_mix_answers_as_a_path_does(model: SmartModel) -> None:
    assert model.paths == CHOICES
    model.path = MIX
    result = model.run(FLOATS)
    assert (result.path, model.path) == (MIX, MIX)
    assert result.scores.dtype == np.float32
    np.testing.assert_allclose(np.exp(result.scores), expected_mix(FLOATS), atol=1e-6)
    np.testing.assert_allclose(result.probabilities, expected_mix(FLOATS), atol=1e-6)
    with model.using("robust"):
        assert model.run(FLOATS).path == "robust"
    model.switch("clean")
    with model.using(MIX):
        assert model.run(FLOATS).path == MIX
    assert {name: one.calls for name, one in model.stats.paths.items()} == {"clean": 0, "robust": 1, MIX: 2}
    assert (model.stats.switches, set(model.memory().paths)) == (2, {"clean", "robust"})


@cpu_only("arithmetic")
@given(
    of_numpy.arrays(np.float32, (2, 3, 5), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    st.floats(0.001, 0.999),
    st.tuples(st.floats(0.02, 50), st.floats(0.02, 50)),
)
def test_the_mix_of_any_scores(scores: Any, share: float, temperatures: tuple[float, float]) -> None:
    found = mixed(scores[0], scores[1], share=share, temperatures=temperatures)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    wanted = mix(scores[0], scores[1], share=share, temperatures=temperatures)
    np.testing.assert_allclose(np.exp(found.astype(np.float64)), wanted, atol=1e-5)


def test_both_gives_what_each_path_gives(model: SmartModel) -> None:
    model.path = MIX
    found = model.both(FLOATS)
    assert list(found.scores) == ["clean", "robust"]
    for path, scores in found.scores.items():
        with model.using(path):
            assert np.array_equal(scores, model(FLOATS))
        assert model.stats.paths[path].calls == 2
    assert found.latency_ms > 0
    assert "clean, robust" in repr(found)
    with pytest.raises(InputError):
        model.both(FLOATS[0])
    assert {name: one.errors for name, one in model.stats.paths.items()} == {"clean": 1, "robust": 1, MIX: 0}


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.both(FLOATS),
        lambda model: model.switch(MIX),
        lambda model: model.using(MIX).__enter__(),
    ],
    ids=["both", "switch", "using"],
)
def test_on_demand_there_is_no_mix(bundle: Path, ask: Callable[[SmartModel], object]) -> None:
    with SmartModel.load(bundle, threads=1, memory="on-demand") as model:
        with pytest.raises(EngineError, match="needs every path loaded, and on demand one is; load the bundle with"):
            ask(model)
        assert model.run(FLOATS).path == "clean"
    with pytest.raises(EngineError, match=f"the mix '{MIX}' needs every path"):
        SmartModel.load(bundle, path=MIX, memory="on-demand")


def test_a_closed_model_and_unknown_names(bundle: Path) -> None:
    model = SmartModel.load(bundle, path=MIX, threads=1)
    with pytest.raises(PathError, match=f"unknown path '\\*'; the bundle has 'clean', 'robust', '{MIX}'"):
        model.path = "*"
    model.close()
    for ask in (lambda: model.both(FLOATS), lambda: model.run(FLOATS)):
        with pytest.raises(ClosedError):
            ask()


def test_every_result_is_made_by_what_it_names(engine: EngineUnderTest, model: SmartModel, bundle: Path) -> None:
    """Bitwise, under a storm of switches, scopes, calls on both and reloads."""
    batches = [as_float(random_images(count, seed=count)) for count in (1, 2, 3)]
    known = {}
    for path in model.paths:
        with model.using(path):
            known[path] = [model(batch) for batch in batches]
    calls, callers = (200 if engine.name == CPU else 20), 6
    running = [True] * callers

    def call(number: int) -> None:
        try:
            for i in range(calls):
                which = (number + i) % len(batches)
                if number == 0:
                    for path, scores in model.both(batches[which]).scores.items():
                        assert np.array_equal(scores, known[path][which])
                    continue
                if number < 3:
                    with model.using(CHOICES[i % 3]):
                        result = model.run(batches[which])
                    assert result.path == CHOICES[i % 3]
                else:
                    result = model.run(batches[which])
                assert np.array_equal(result.scores, known[result.path][which]), f"call {i} of thread {number}"
        finally:
            running[number] = False

    threads = [Thread(functools.partial(call, number)) for number in range(callers)]
    turns = 0
    while any(running):
        model.switch(CHOICES[turns % 3])
        turns += 1
        if turns % 50 == 0 and engine.name == CPU:
            model.reload(bundle)
    for thread in threads:
        thread.outcome()
    assert sum(path.errors for path in model.stats.paths.values()) == 0
    assert sum(path.calls for path in model.stats.paths.values()) == 9 + (callers + 1) * calls


@cpu_only("engines of its own")
@pytest.mark.parametrize("event", ["switch", "close", "reload"])
@pytest.mark.parametrize("ask", ["mix", "both"])
def test_a_call_in_flight_keeps_the_engines_of_its_parts(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, event: str, ask: str
) -> None:
    """Not the path that it waits in, nor the one that it has yet to run, is closed under it."""
    gates = {"clean": Gate(1), "robust": Gate(2)}
    replace_engines(monkeypatch, gates.__getitem__)
    model = SmartModel.load(bundle, path=MIX)
    gates["clean"].armed = True
    caller = Thread(lambda: model.run(FLOATS).scores if ask == "mix" else model.both(FLOATS).scores["robust"])
    assert gates["clean"].entered.wait(timeout=TIMEOUT)
    old = dict(gates)
    if event == "reload":
        gates.update({"clean": Gate(1), "robust": Gate(2)})
        model.reload(bundle)
    elif event == "close":
        model.close()
    else:
        model.path = "robust"
        assert model.run(FLOATS).scores[0, 0] == 2
    assert not old["clean"].closed
    assert not old["robust"].closed
    old["clean"].let_go.set()
    assert caller.outcome().shape == (4, 5)
    model.close()
    assert old["clean"].closed
    assert old["robust"].closed


def test_reload_keeps_the_mix_or_refuses(bundle: Path, tmp_path: Path, model: SmartModel) -> None:
    model.path = MIX
    model.reload(bundle)
    assert model.run(FLOATS).path == MIX
    with pytest.raises(BundleError, match=f"the new bundle has no path '{MIX}'"):
        model.reload(write_bundle(tmp_path / "without"))
    assert model.run(FLOATS).path == MIX


def test_reload_brings_a_mix(bundle: Path, tmp_path: Path) -> None:
    with SmartModel.load(write_bundle(tmp_path / "without"), threads=1) as model:
        assert MIX not in model.paths
        model.reload(bundle)
        model.path = MIX
        assert model.run(FLOATS).path == MIX
        assert model.stats.paths[MIX].calls == 1


def test_a_temperature_calibrates_probabilities_and_leaves_scores(tmp_path: Path) -> None:
    found = {"temperature": 2.5, "fitted_images": 3, "images": 4, "error_before": 0.2, "error_after": 0.1}

    def calibrate(document: dict[str, Any]) -> None:
        ours(document)["paths"]["clean"]["calibration"] = found

    with SmartModel.load(write_bundle(tmp_path / "calibrated", change=calibrate), threads=1) as model:
        result = model.run(FLOATS)
        np.testing.assert_allclose(result.scores, expected_scores("clean", FLOATS), atol=1e-6)
        wanted = softmax(expected_scores("clean", FLOATS), 2.5)
        np.testing.assert_allclose(result.probabilities, wanted, atol=1e-6)
        best = model.classify(random_images(4)[0])[0]
        assert best.probability == pytest.approx(wanted[0].max(), abs=1e-6)
        assert best.score == pytest.approx(result.scores[0].max())


BENT: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "share of 0": (lambda mix: mix.update(share=0), "a number above 0 at .*share"),
    "share of 1": (lambda mix: mix.update(share=1), "a number between 0 and 1"),
    "share of true": (lambda mix: mix.update(share=True), "a number above 0"),
    "one path": (lambda mix: mix.update(paths=["clean"]), "two of the paths clean, robust"),
    "the same path": (lambda mix: mix.update(paths=["clean", "clean"]), "two of the paths"),
    "unknown path": (lambda mix: mix.update(paths=["clean", "fast"]), "two of the paths"),
    "cold": (lambda mix: mix.update(temperatures=[1, 0.001]), "two numbers from 0.02 to 50"),
    "hot": (lambda mix: mix.update(temperatures=[1, 51]), "two numbers from 0.02 to 50"),
    "one temperature": (lambda mix: mix.update(temperatures=[1]), "two numbers from"),
    "unknown key": (lambda mix: mix.update(power=6), "expected only paths, share, temperatures, gate"),
}


@cpu_only("a manifest")
@pytest.mark.parametrize("how", BENT)
def test_a_bent_mix_is_refused(how: str) -> None:
    document = manifest_document()
    add_mix(document)
    bend, expected = BENT[how]
    bend(ours(document)["mixes"][MIX])
    with pytest.raises(BundleError, match=expected):
        parse_manifest(json.dumps(document).encode())


@cpu_only("a manifest")
@pytest.mark.parametrize("name", ["clean", "dense", "Mix", "*", "a" * 65])
def test_a_name_that_no_mix_may_have(name: str) -> None:
    document = manifest_document()
    add_mix(document)
    ours(document)["mixes"][name] = ours(document)["mixes"].pop(MIX)
    with pytest.raises(BundleError, match="a name like a path's that no path has"):
        parse_manifest(json.dumps(document).encode())


@cpu_only("a manifest")
@pytest.mark.parametrize("bent", [{"temperature": 0}, {"temperature": 99}, {"error_after": 2}, {"images": 0}])
def test_a_bent_calibration_is_refused(bent: dict[str, Any]) -> None:
    document = manifest_document()
    found = {"temperature": 2.5, "fitted_images": 3, "images": 4, "error_before": 0.2, "error_after": 0.1}
    ours(document)["paths"]["clean"]["calibration"] = found | bent
    with pytest.raises(BundleError, match="calibration"):
        parse_manifest(json.dumps(document).encode())
