"""A plan that nobody has installed is proved where it is loaded, before it serves and before it is kept."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundles import REFERENCE_IMAGES, as_float, expected_scores, random_images, write_bundle
from smart_runtime import EngineOptions, SmartModel
from smart_runtime.engines import Engine
from smart_runtime.engines.trt.library import Library
from smart_runtime.errors import DisprovedError, EngineError
from smart_runtime.proofs import facts_of, proof
from smart_runtime.reference import StoredScores
from trt.machine import computing_something_else, plans_in_cache

IMAGES = as_float(random_images(3))


@pytest.fixture
def with_scores(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "with-scores", reference=True)


def facts() -> list[dict[str, Any]]:
    """What is known of each plan that is kept."""
    return [json.loads((plan.parent / "meta.json").read_bytes())["facts"] for plan in plans_in_cache()]


def load(bundle: Path, **options: Any) -> SmartModel:
    return SmartModel.load(bundle, engine="tensorrt", **options)


def assert_scores(model: SmartModel) -> None:
    np.testing.assert_allclose(model(IMAGES), expected_scores(model.path, IMAGES), rtol=0, atol=1e-6)


def test_a_plan_is_proved_by_the_first_load_and_by_no_later_one(machine: Any, with_scores: Path) -> None:
    with load(with_scores) as model:
        assert model.notes == ()
        assert_scores(model)
    first = facts()
    assert [one["proofs"] for one in first] == [["bundle"], ["bundle"]]
    assert all(one["proved_ns"] for one in first)
    load(with_scores).close()
    assert facts() == first
    assert len(machine) == 2


def test_what_computes_something_else_is_refused_in_a_sentence_and_not_kept(
    machine: Any, with_scores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with computing_something_else(monkeypatch), pytest.raises(DisprovedError) as caught:
        load(with_scores)
    said = str(caught.value)
    assert "the plan of 'clean' computes something else on this device: its scores differ by 0.1 of the largest" in said
    assert "`smart-run install BUNDLE --level 2`" in said
    assert "\n" not in said
    assert plans_in_cache() == []
    with load(with_scores) as model:
        assert_scores(model)
    assert len(machine) == 3


def test_a_reload_with_a_plan_that_is_disproved_leaves_the_old_bundle(
    machine: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_bundle(tmp_path / "other", reference=True)
    with load(bundle) as model:  # whose plans nothing has proved, so that the other bundle's scores decide
        with computing_something_else(monkeypatch), pytest.raises(DisprovedError):
            model.reload(other)
        assert_scores(model)
        model.reload(other)
        assert_scores(model)
    assert len(machine) == 3, "what was disproved was built anew"


def test_without_scores_in_the_bundle_a_note_says_that_nothing_is_proved(
    machine: Any, bundle: Path, with_scores: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with load(bundle) as model:
        (note,) = model.notes
        assert note.startswith("nothing proves that tensorrt computes clean and robust on this device as it was")
        assert note in caplog.text
    assert not any("proved_ns" in one for one in facts())
    with load(with_scores) as model:  # of the same graphs
        assert model.notes == ()
    assert all(one["proved_ns"] for one in facts())
    with load(bundle) as model:
        assert model.notes == ()
    assert len(machine) == 2


def test_an_installed_plan_without_a_proof_that_fails_is_set_aside(
    machine: Any, bundle: Path, with_scores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(bundle).close()
    with computing_something_else(monkeypatch), pytest.raises(DisprovedError):
        load(with_scores)
    assert len(plans_in_cache()) == 1, "robust is untouched"
    load(with_scores).close()
    assert len(machine) == 3


def test_an_installed_plan_that_the_library_does_not_take_is_built_and_proved_anew(
    machine: Any, with_scores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(with_scores).close()
    before = {plan.read_bytes() for plan in plans_in_cache()}
    deserialize = Library.deserialize
    taken = iter([False])
    monkeypatch.setattr(Library, "deserialize", lambda *given: deserialize(*given) if next(taken, True) else None)
    with load(with_scores) as model:
        assert_scores(model)
    assert len(before & {plan.read_bytes() for plan in plans_in_cache()}) == 1
    assert [one["proofs"] for one in facts()] == [["bundle"], ["bundle"]]
    assert len(machine) == 3


def test_on_demand_a_path_is_proved_though_the_bundle_is_gone(
    machine: Any, with_scores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(with_scores, memory="on-demand") as model:
        shutil.rmtree(with_scores)
        with computing_something_else(monkeypatch), pytest.raises(DisprovedError, match="the plan of 'robust'"):
            model.switch("robust")
        assert model.path == "clean"
        assert_scores(model)
        model.switch("robust")
        assert_scores(model)
    assert [one["proofs"] for one in facts()] == [["bundle"], ["bundle"]]
    assert len(machine) == 3


def test_a_proof_that_cannot_be_written_down_does_not_stop_a_load(
    machine: Any, bundle: Path, with_scores: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise EngineError("no room")

    load(bundle).close()
    monkeypatch.setattr("smart_runtime.engines.plans.PlanCache.set_facts", full)
    with load(with_scores) as model:
        assert_scores(model)
    assert "that the plan is proved cannot be kept: no room" in caplog.text
    assert len(machine) == 2


class Off(Engine):
    """Gives scores that are off by so much."""

    def __init__(self, scores: np.ndarray, by: float) -> None:
        self.scores = scores + np.float32(by)

    @classmethod
    def create(cls, *_: Any, **__: Any) -> Engine:
        raise NotImplementedError

    def run(self, batch: np.ndarray) -> np.ndarray:
        return self.scores[: len(batch)]

    def close(self) -> None: ...

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(("by", "tf32", "holds"), [(5e-4, False, True), (5e-3, False, False), (5e-3, True, True)])
def test_tf32_is_judged_like_fp16_which_has_as_many_bits(by: float, tf32: bool, holds: bool) -> None:
    scores = np.eye(REFERENCE_IMAGES, dtype=np.float32)
    images = np.zeros((REFERENCE_IMAGES, 1, 1, 1), np.float32)
    stored = StoredScores(name="clean", images=images, scores=scores, tolerance=1e-3)
    found = proof(Off(scores, by), stored, options=EngineOptions(tf32=tf32))
    assert found.result.holds == holds
    if holds:
        assert facts_of("clean", [found])["proofs"] == ["bundle"]
    else:
        with pytest.raises(DisprovedError, match=r"those of the export, 0\.001 are allowed"):
            facts_of("clean", [found])
    assert facts_of("clean", []) == {}
