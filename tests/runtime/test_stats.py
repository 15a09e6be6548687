from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smart_runtime import LatencyHistogram
from smart_runtime.stats import Recorder


def recorded(latencies_ns: list[int]) -> Recorder:
    recorder = Recorder(["clean"])
    for latency_ns in latencies_ns:
        recorder.call("clean", images=1, latency_ns=latency_ns)
    return recorder


@given(st.lists(st.integers(0, 2**41), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_is_within_a_sixteenth_of_the_true_one(latencies_ns: list[int], fraction: float) -> None:
    found = recorded(latencies_ns).snapshot().paths["clean"].latency.quantile(fraction)
    true_ns = np.quantile(latencies_ns, fraction, method="inverted_cdf")
    assert found is not None
    assert abs(found * 1e6 - true_ns) <= max(true_ns / 16, 0.5)  # below 8 ns a bucket is one ns


@given(st.integers(0, 2**42 - 1))
def test_every_latency_is_inside_of_its_bucket(latency_ns: int) -> None:
    histogram = recorded([latency_ns]).snapshot().paths["clean"].latency
    (bucket,) = np.flatnonzero(histogram.counts)
    bounds_ns = [0, *(round(bound * 1e6) for bound in histogram.bounds_ms)]
    assert bounds_ns[bucket] <= latency_ns < bounds_ns[bucket + 1]


def test_buckets_have_no_gap_and_are_at_most_an_eighth_wide() -> None:
    bounds = [0, *(round(bound * 1e6) for bound in LatencyHistogram().bounds_ms)]
    assert bounds[:9] == list(range(9))
    for low, high in itertools.pairwise(bounds[8:]):
        assert 0 < high - low <= low / 8


@pytest.mark.parametrize("latency_ns", [-5, 2**42, 2**80])
def test_an_impossible_latency_is_counted_at_the_end_of_the_scale(latency_ns: int) -> None:
    """A clock that jumps back must not break a call."""
    counts = recorded([latency_ns]).snapshot().paths["clean"].latency.counts
    assert counts[0 if latency_ns < 0 else -1] == 1


def test_memory_is_fixed() -> None:
    few, many = recorded([1]), recorded(list(range(0, 2_000_000, 1000)))
    assert len(few.snapshot().paths["clean"].latency.counts) == len(many.snapshot().paths["clean"].latency.counts)
    assert sum(many.snapshot().paths["clean"].latency.counts) == 2000


def test_no_calls_have_no_quantile() -> None:
    assert LatencyHistogram().quantile(0.5) is None


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"expected a fraction in \[0, 1\]"):
        LatencyHistogram().quantile(fraction)


def test_paths_may_be_added() -> None:
    recorder = recorded([5])
    recorder.add_paths(["clean", "robust"])
    recorder.call("robust", images=2, latency_ns=7)
    paths = recorder.snapshot().paths
    assert (paths["clean"].calls, paths["robust"].images) == (1, 2)
