from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.roofline import peak_seconds
from smart_devices import PRECISIONS, load_profile, profile_names
from smart_devices.device_profile import DenseSparse, Fact, Profile
from smart_devices.roofline import (
    Estimate,
    NoEstimate,
    Peaks,
    estimate,
    layer_work,
    peaks_of,
)


def convolution(*, read: int, out: int, kernel: int = 3, side: int = 8, groups: int = 1, **more: Any) -> dict[str, Any]:
    """A layer's record as a bundle has it; no stride."""
    weights = out * (read // groups) * kernel**2
    record = {"type": "Conv2d", "groups": groups, "in_channels": read, "out_channels": out, "weights": weights}
    return {"name": "conv", **record, "macs": weights * side**2, **more}


def linear(*, read: int, out: int, **more: Any) -> dict[str, Any]:
    record = {"type": "Linear", "groups": 1, "in_channels": read, "out_channels": out, "weights": read * out}
    return {"name": "fc", **record, "macs": read * out, **more}


CONVOLUTIONS = st.builds(
    convolution,
    read=st.integers(1, 300),
    out=st.integers(1, 300),
    kernel=st.sampled_from([1, 3, 5, 7]),
    side=st.integers(1, 56),
)


def known(value: float | None, unit: str) -> Fact[float]:
    return Fact(value=value, unit=unit, source="a test")


def with_throughput(profile: Profile, **dense: float | None) -> Profile:
    """``profile`` whose peaks are these in TFLOPS, sparse ones twice as high."""
    return replace(
        profile,
        throughput={
            name: DenseSparse(
                dense=known(value, "TFLOPS"), sparse=known(None if value is None else 2 * value, "TFLOPS")
            )
            for name, value in dense.items()
        },
    )


def estimated(layers: list[dict[str, Any]], *, batch: int = 1, **options: Any) -> Estimate:
    found = estimate(layers, batch=batch, **options)
    assert isinstance(found, Estimate), found
    return found


@given(st.lists(CONVOLUTIONS, min_size=1, max_size=8), st.sampled_from([1, 8]))
def test_a_layer_takes_the_longer_of_arithmetic_and_traffic(layers: list[dict[str, Any]], batch: int) -> None:
    profile = load_profile("jetson-agx-orin-64gb")
    roof = peaks_of(with_throughput(profile, fp16=40.0), precision="fp16")
    found = estimated(layers, roof=roof, batch=batch)
    macs = np.array([layer["macs"] for layer in layers], dtype=float)
    weights = np.array([layer["weights"] for layer in layers], dtype=float)
    moved = np.array(
        [(layer["in_channels"] + layer["out_channels"]) * layer["macs"] / layer["weights"] for layer in layers]
    )
    seconds = peak_seconds(
        macs * batch,
        weights,
        moved * batch,
        ops_per_s=40e12,
        bytes_per_s=204.8e9,
        element=2,
    )
    assert [layer.seconds for layer in found.layers] == pytest.approx(list(seconds))
    assert found.latency_ms == pytest.approx(1e3 * seconds.sum())
    for layer, arithmetic in zip(found.layers, 2 * macs * batch / 40e12, strict=True):
        assert (layer.bound == "compute") == (arithmetic >= layer.seconds)
    assert found.share("compute") + found.share("memory") == pytest.approx(1)


def test_what_an_estimate_says_of_itself() -> None:
    roof = peaks_of(load_profile("jetson-orin"), precision="fp32")
    found = estimated([convolution(read=64, out=64, side=32)], roof=roof)
    assert str(found) == f"at least {found.latency_ms:.3g} ms (roofline estimate, not measured)"
    assert found.assumes == (
        "peaks of NVIDIA Jetson AGX Orin 64GB, highest clocks: fp32 at 5.3 TFLOPS, without TF32, memory at 204.8 GB/s"
    )
    document = found.as_json()
    assert (document["measured"], document["lower_bound"], document["basis"]) == (False, True, "peak")


def test_half_precision_sums_in_float32_where_the_profile_tells() -> None:
    profile = with_throughput(load_profile("rtx-4070"), fp16=116.6, fp16_acc32=58.3)
    roof = peaks_of(profile, precision="fp16")
    assert isinstance(roof, Peaks)
    assert roof.dense_ops_per_s == 58.3e12
    assert "fp16_acc32 at 58.3 TFLOPS" in roof.assumes


def test_two_four_counts_where_the_target_gains_from_it() -> None:
    profile = with_throughput(load_profile("jetson-orin"), fp16=40.0)
    roof = peaks_of(profile, precision="fp16")
    wide = convolution(read=512, out=512, side=32)
    dense, sparse, idle = (
        estimated([wide | {"two_four": zeros, "why_no_gain": why}], roof=roof).latency_ms
        for zeros, why in ((False, None), (True, None), (True, "too narrow"))
    )
    assert sparse == pytest.approx(dense / 2)
    assert idle == dense
    # Bound by memory, a kept half-precision number costs 2 bytes and 2 bits.
    flat = linear(read=4096, out=4096)
    dense, sparse = (estimated([flat | {"two_four": zeros}], roof=roof).latency_ms for zeros in (False, True))
    outside = 2 * 2 * 4096 / 204.8e6
    assert (sparse - outside) / (dense - outside) == pytest.approx((2 + 0.25) / 2 / 2)


@pytest.mark.parametrize(
    ("dense", "sparse", "two_four", "reason"),
    [
        (None, 80.0, False, r"the peak throughput of .*, highest clocks, in fp16 is unverified \(a test\)"),
        (40.0, None, True, r"the peak of .* in fp16 with 2:4 zeros, as in conv, is unverified"),
    ],
)
def test_an_unverified_figure_makes_no_estimate(
    dense: float | None, sparse: float | None, two_four: bool, reason: str
) -> None:
    pair = DenseSparse(dense=known(dense, "TFLOPS"), sparse=known(sparse, "TFLOPS"))
    profile = replace(load_profile("jetson-orin"), throughput={"fp16": pair})
    found = estimate([convolution(read=64, out=64, two_four=two_four)], roof=peaks_of(profile, precision="fp16"))
    assert isinstance(found, NoEstimate)
    assert re.fullmatch(reason, found.reason), found.reason
    assert found.as_json() == {"latency_ms": None, "measured": False, "unknown": found.reason}


def test_an_unverified_bandwidth_makes_no_estimate() -> None:
    profile = load_profile("jetson-orin")
    profile = replace(profile, memory=replace(profile.memory, bandwidth=known(None, "GB/s")))
    found = peaks_of(profile, precision="fp32")
    assert isinstance(found, NoEstimate)
    assert "memory bandwidth" in found.reason


def test_a_power_mode_has_peaks_of_its_own() -> None:
    profile = load_profile("jetson-agx-orin-64gb")
    (mode,) = [mode for mode in profile.power_modes if mode.name == "MODE_15W"]
    pair = DenseSparse(dense=known(7.0, "TOPS"), sparse=known(14.0, "TOPS"))
    low = replace(mode, throughput={"int8": pair}, bandwidth=known(68.0, "GB/s"))
    roof = peaks_of(replace(profile, power_modes=(low,)), precision="int8", power_mode="MODE_15W")
    assert isinstance(roof, Peaks)
    assert (roof.dense_ops_per_s, roof.sparse_ops_per_s, roof.bytes_per_s) == (7e12, 14e12, 68e9)
    assert "power mode MODE_15W" in roof.assumes
    # What a mode does not say is not taken from another one.
    assert isinstance(peaks_of(profile, precision="fp32", power_mode="MODE_15W"), NoEstimate)
    with pytest.raises(ValueError, match=r"MODE_15W, .*, got '15W'"):
        peaks_of(profile, precision="fp32", power_mode="15W")


def test_modes_that_are_faster_than_what_a_device_is_sold_with_are_named() -> None:
    found = peaks_of(load_profile("jetson-orin-nano-8gb"), precision="int8")
    assert isinstance(found, Peaks)
    assert "highest clocks but those of MAXN_SUPER" in found.assumes
    fast = peaks_of(load_profile("jetson-orin-nano-8gb"), precision="int8", power_mode="MAXN_SUPER")
    assert isinstance(fast, Peaks)
    assert fast.dense_ops_per_s > found.dense_ops_per_s
    assert fast.bytes_per_s > found.bytes_per_s
    assert "power mode MAXN_SUPER" in fast.assumes


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_gives_an_estimate_or_a_reason(name: str) -> None:
    profile = load_profile(name)
    for precision in PRECISIONS:
        for mode in (None, *(mode.name for mode in profile.power_modes)):
            roof = peaks_of(profile, precision=precision, power_mode=mode)
            found = estimate([convolution(read=64, out=64, side=32, two_four=True)], roof=roof)
            if isinstance(found, Estimate):
                assert 0 < found.latency_ms < 100
                assert "None" not in found.assumes
            else:
                assert "unverified" in found.reason


def test_a_precision_that_none_has() -> None:
    with pytest.raises(ValueError, match="expected one of fp32, fp16, int8, got 'fp64'"):
        peaks_of(load_profile("jetson-orin"), precision="fp64")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"type": "Conv3d"}, "type is 'Conv3d'"),
        ({"macs": 0}, "macs is 0"),
        ({"weights": -1}, "weights is -1"),
        ({"weights": True}, "weights is True"),
        ({"in_channels": None}, "in_channels is None"),
        ({"out_channels": 2**80}, "out_channels is "),
        ({"macs": 1.5}, "macs is 1.5"),
        ({"type": []}, r"type is \[\]"),
        ({"type": {"Conv2d": 1}}, "type is {'Conv2d': 1}"),
        ({"type": "X" * 10**6}, "type is 'XXX"),
        ({"macs": "\x1b[2J"}, "macs is '"),
    ],
)
def test_a_bundle_that_does_not_tell(change: dict[str, Any], said: str) -> None:
    record = convolution(read=8, out=8) | change
    with pytest.raises(ValueError, match=said):
        layer_work(record)
    found = estimate([convolution(read=8, out=8), record], roof=peaks_of(load_profile("jetson-orin"), precision="fp32"))
    assert isinstance(found, NoEstimate)
    assert found.reason.startswith("the bundle does not say what layer 2 costs (")
    assert found.reason.isprintable()
    assert len(found.reason) < 300


def test_a_missing_figure_is_called_unverified_once() -> None:
    found = peaks_of(load_profile("jetson-orin"), precision="fp16")
    assert isinstance(found, NoEstimate)
    assert found.reason.count("unverified") == 1


def test_a_bundle_without_layers() -> None:
    assert estimate([], roof=peaks_of(load_profile("jetson-orin"), precision="fp32")) == NoEstimate(
        reason="the bundle names no layers"
    )
