"""Scores of a pair of paths, operating points and run lengths, against plain NumPy and brute force."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from reference.run_lengths import simulated_run_lengths
from runtime.operating_points import pair
from smart_common.documents import Reader, parse_document
from smart_runtime import InputError
from smart_runtime.tripwire.cusum import Cusum
from smart_runtime.tripwire.operating_point import (
    AT_CLEAN,
    AT_ROBUST,
    SILENT,
    OperatingPoint,
    read_operating_point,
    shadow_frames_between,
)
from smart_runtime.tripwire.outlook import outlook_of
from smart_runtime.tripwire.pair_scores import SCORES, confidence
from smart_runtime.tripwire.records import TripwireRecord
from smart_runtime.tripwire.run_lengths import run_length, threshold_for


def drawn(seed: int, *, apart: float, count: int = 256, classes: int = 10) -> tuple[Any, Any]:
    """Logits of two paths that differ by noise of the size ``apart``."""
    rng = np.random.default_rng(seed)
    clean = rng.normal(size=(count, classes)) * 3
    return clean, clean + rng.normal(size=(count, classes)) * apart


def point(score: str = "margin", **changes: Any) -> OperatingPoint:
    attacked = {AT_CLEAN: drawn(2, apart=5.0), AT_ROBUST: drawn(3, apart=4.0), SILENT: drawn(4, apart=0.2)}
    return OperatingPoint.fit(score, **{"clean": drawn(1, apart=1.0), "attacked": attacked, **changes})


def read(record: object) -> OperatingPoint:
    return read_operating_point(Reader(record, where="tripwire", damaged=InputError))


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_scores_are_what_they_are_called() -> None:
    clean, robust = drawn(7, apart=2.0, count=50)
    p, q, label = softmax(clean), softmax(robust), clean.argmax(axis=1)
    rows = np.arange(50)
    others = np.where(np.arange(10) == label[:, None], 0, q)
    expected = {
        "disagreement": 1 - q[rows, label],
        "kl": (p * np.log(p / q)).sum(axis=1),
        "log-ratio": np.log(p[rows, label] / q[rows, label]),
        "margin": np.log(others.max(axis=1) / q[rows, label]),
    }
    assert set(expected) == set(SCORES)
    for name, score in SCORES.items():
        np.testing.assert_allclose(score(clean, robust), expected[name], rtol=1e-9, atol=1e-12)
    best = p.max(axis=1)
    np.testing.assert_allclose(confidence(clean), np.log(best / (1 - best)), rtol=1e-8)
    with pytest.raises(ValueError, match="2 or more classes"):
        confidence(clean[:, :1])


_LOGITS = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(2, 5)),
    elements=st.floats(allow_nan=False, allow_infinity=False),
)


@given(_LOGITS, st.data())
@settings(deadline=None)
def test_scores_are_finite_for_all_finite_logits(clean: Any, data: st.DataObject) -> None:
    finite = st.floats(allow_nan=False, allow_infinity=False)
    robust = data.draw(arrays.arrays(np.float64, clean.shape, elements=finite))
    for score in SCORES.values():
        assert np.isfinite(score(clean, robust)).all()
    assert np.isfinite(confidence(clean)).all()
    values = point().values(clean, robust)
    assert all(np.isfinite(one).all() for one in values)
    assert np.isfinite(point().llrs(clean, robust)).all()


def test_ratios_by_hand() -> None:
    """Two bins by score and one by confidence: 256 clean frames, 64 aimed at the clean path, 64 at the robust one."""
    kinds = {AT_CLEAN: ((8,), (56,)), AT_ROBUST: ((32,), (32,)), SILENT: ((60,), (4,))}
    two = OperatingPoint("kl", (1.0, 1.0), (0.5,), (), ((252,), (4,)), kinds)

    def smoothed(low: int, high: int) -> Any:
        blurred = np.array([low * 5 + high, high * 5 + low]) / 6
        return (blurred + 0.5) / (low + high + 1)

    mixture = smoothed(8, 56) / 2 + smoothed(32, 32) / 4 + smoothed(60, 4) / 4
    ratios = np.log(mixture / smoothed(252, 4))
    np.testing.assert_allclose(two.table[:, 0], ratios, atol=1 / 64)
    clean, robust = pair(apart=1, together=1)
    np.testing.assert_array_equal(two.llrs(clean, robust), two.table[[1, 0], 0])


def test_no_frame_claims_more_than_the_samples_carry() -> None:
    few, many = point(clean=drawn(1, apart=0.01, count=32)), point(clean=drawn(1, apart=0.01, count=4096))
    assert few.table.max() <= math.log(32 / 3) + 1 / 64
    assert few.table.max() < many.table.max() <= 5.0
    assert few.table.min() >= -math.log(256 / 3) - 1 / 64


def test_without_silent_frames_the_agreeing_and_sure_corner_stands_for_them() -> None:
    attacked = {AT_CLEAN: drawn(2, apart=5.0)}
    corner = point(attacked=attacked).table[0, -1]
    with_some = point(attacked={**attacked, SILENT: drawn(2, apart=5.0)}).table[0, -1]
    assert corner > with_some


@pytest.mark.parametrize("score", SCORES)
def test_run_lengths_are_those_of_simulated_streams(score: str) -> None:
    found = point(score)
    threshold = found.threshold(300)
    steps, whole = (found.table * 32).astype(np.int64), round(threshold * 32)
    for kind, share in ((None, 1.0), (AT_CLEAN, 1.0), (AT_ROBUST, 0.5), (SILENT, 1.0)):
        expected = found.frames_to_alarm(threshold, kind, share=share)
        if expected > 3000:
            continue
        lengths = simulated_run_lengths(steps, found._probabilities(kind, share), threshold=whole, runs=4000, seed=1)
        error = lengths.std() / math.sqrt(len(lengths))
        assert abs(lengths.mean() - expected) < 4 * error, (kind, share, lengths.mean(), expected)


@pytest.mark.parametrize("frames", [1, 10, 259_200, 1e9])
def test_the_threshold_is_the_least_that_keeps_false_alarms_apart(frames: float) -> None:
    found = point()
    threshold = found.threshold(frames)
    assert found.frames_to_alarm(threshold) >= frames
    assert threshold == 1 / 32 or found.frames_to_alarm(threshold - 1 / 32) < frames
    # Lorden's bound, which our bounded and smoothed ratios may miss by little.
    mean_ratio = (found._probabilities(None) * np.exp(found.table)).sum()
    assert threshold <= math.log(frames) + math.log(mean_ratio) + 1


def test_a_test_that_can_never_rise_never_alarms() -> None:
    steps, probabilities = np.array([-3, 0, 5]), np.array([0.5, 0.5, 0.0])
    assert run_length(steps, probabilities, threshold=1) == math.inf
    assert run_length(np.array([1]), np.array([1.0]), threshold=7) == 7
    assert threshold_for(np.array([1]), np.array([1.0]), frames=1e9) is None
    with pytest.raises(InputError, match="expected 1 to 1e\\+10 shadow frames"):
        point().threshold(0.5)


def test_frames_between_false_alarms() -> None:
    assert shadow_frames_between(rate_hz=30, every=10, false_alarms_per_day=1) == 259_200


def test_the_sum_stays_between_0_and_its_cap() -> None:
    cusum = Cusum(2.0, cap=3.0)
    seen = [(cusum.add(step), cusum.value) for step in (-1.0, 1.5, 1.5, 1.5, -2.0)]
    assert seen == [(False, 0.0), (False, 1.5), (True, 3.0), (True, 3.0), (False, 1.0)]
    cusum.reset()
    assert (cusum.value, cusum.alarm) == (0.0, False)
    for bad in ((0.0, None), (2.0, 1.0), (float("nan"), None)):
        with pytest.raises(ValueError, match="threshold"):
            Cusum(bad[0], cap=bad[1])
    with pytest.raises(ValueError, match="NaN"):
        cusum.add(float("nan"))


@given(seed=st.integers(0, 2**32 - 1), score=st.sampled_from(sorted(SCORES)), bins=st.integers(1, 12))
@settings(deadline=None, max_examples=25)
def test_a_record_comes_back_as_it_was(seed: int, score: str, bins: int) -> None:
    found = OperatingPoint.fit(
        score,
        clean=drawn(seed, apart=1.0, count=40),
        attacked={SILENT: drawn(seed + 1, apart=0.1, count=40)},
        bins=(bins, 3),
        temperatures=(1.5, 0.7),
    )
    text = json.dumps(found.record()).encode()
    assert read(dict(parse_document(text, damaged=InputError).raw)) == found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("score", "hunch"),
        ("temperatures", [1.0]),
        ("temperatures", [1.0, 1e9]),
        ("score_edges", [2.0, 1.0]),
        ("score_edges", [1.0, 1.0]),
        ("score_edges", [True]),
        ("confidence_edges", [1e300]),
        ("confidence_edges", list(range(32))),
        ("clean", []),
        ("clean", [[1] * 8] * 15),
        ("clean", [[0] * 8] * 16),
        ("clean", [[-1] * 8] * 16),
        ("clean", [[1.5] * 8] * 16),
        ("clean", [[10**10] * 8] * 16),
        ("attacked", {}),
        ("attacked", {"surprising": [[9] * 8] * 16}),
        ("more", 1),
    ],
)
def test_a_record_that_was_not_written_so_is_refused(key: str, value: object) -> None:
    with pytest.raises(InputError, match="expected"):
        read({**point().record(), key: value})


def test_what_cannot_be_fitted_is_said() -> None:
    few = drawn(1, apart=1.0, count=31)
    for changes, said in (
        ({"clean": few}, "expected 32 or more clean frames, got 31"),
        ({"attacked": {AT_CLEAN: few}}, "expected 32 or more aimed-at-clean frames"),
        ({"attacked": {}}, "expected attacked frames of the kinds"),
        ({"clean": (few[0], few[1][:5])}, "expected logits of both paths on the same frames"),
    ):
        with pytest.raises(InputError, match=said):
            point(**changes)
    with pytest.raises(InputError, match="unknown score"):
        point("hunch")
    with pytest.raises(InputError, match="expected 32 or more clean frames"):
        point().with_clean(((0,) * 8,) * 16)
    with pytest.raises(InputError, match="16 x 8 bins"):
        point().with_clean(((9,) * 8,) * 8)


def test_what_is_seen_late_or_never_is_said() -> None:
    blind = point(attacked={AT_CLEAN: drawn(2, apart=9.0), AT_ROBUST: drawn(3, apart=1.5), SILENT: drawn(5, apart=1.0)})
    found = outlook_of(TripwireRecord("clean", "robust", {blind.score: blind}))
    frames = found.frames
    assert frames[AT_CLEAN] < 500 < frames[AT_ROBUST] < 100_000 < frames[SILENT]
    late, unseen = found.warnings
    assert late.startswith("the tripwire is late for attacks aimed at the robust path, ")
    assert unseen.startswith("the tripwire is blind to silent attacks")
    assert "independent frames" in found.assumption
    seen = point(attacked={AT_CLEAN: drawn(2, apart=9.0)})
    assert outlook_of(TripwireRecord("clean", "robust", {seen.score: seen})).warnings == ()
