"""How long a network takes on a device at least, layer by layer, by the vendor's peaks: an estimate, not a measurement.

Williams, Waterman and Patterson, Roofline: an insightful visual performance model for multicore architectures,
Communications of the ACM 52(4), 2009: a layer takes the longer of its arithmetic at peak throughput and its traffic at
peak bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from smart_devices.device_profile import PRECISIONS, Fact, Profile
from smart_devices.sysfs import printable

Bound: TypeAlias = Literal["compute", "memory"]
"""What limits a layer: multiply-accumulates, or moving numbers."""

_BYTES: Mapping[str, int] = {"fp32": 4, "fp16": 2, "int8": 1}

# 2:4 keeps half of the numbers, and 2 bits for each kept one say which (PTX ISA, sparse matrix instructions).
_KEPT = 0.5
_INDEX_BYTES = 0.25
_ROUNDED = 1.05  # two sources of one figure differ by less

_LAYER_TYPES = ("Conv2d", "Linear")
_MOST = 2**62  # of anything that is counted: a bundle may come from anyone


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """What one convolution or linear layer asks of a device, for one image.

    Attributes:
        name: Its name in the network.
        in_channels, out_channels: As the graph has them.
        weights: Numbers in the weight, without the bias.
        macs: Multiply-accumulates.
        two_four: Whether the target is expected to run it faster for its 2:4 zeros.
    """

    name: str
    in_channels: int
    out_channels: int
    weights: int
    macs: int
    two_four: bool = False

    @property
    def activations(self) -> float:
        """Numbers read and written beside the weights: all outputs, and as many positions of the input.

        A convolution with a stride reads more, which a bundle does not tell: this is the least.
        """
        return self.macs / self.weights * (self.in_channels + self.out_channels)


@dataclass(frozen=True, kw_only=True)
class LayerEstimate:
    """The least time of one layer for one call, and what limits it."""

    name: str
    seconds: float
    bound: Bound


@dataclass(frozen=True, kw_only=True)
class NoEstimate:
    """There is nothing to estimate with; ``reason`` says what is missing, as part of a sentence."""

    reason: str

    def __str__(self) -> str:
        """Return it for people."""
        return f"unknown: {self.reason}"

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"latency_ms": None, "measured": False, "unknown": self.reason}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The least latency of a graph by a device's peaks, which no engine reaches; it was not measured.

    Attributes:
        layers: One for each layer, in the graph's order.
        batch: Images a call.
        assumes: The peaks it rests on, in words for people.
    """

    layers: tuple[LayerEstimate, ...]
    batch: int
    assumes: str

    @property
    def latency_ms(self) -> float:
        """The least time of one call in ms."""
        return sum(layer.seconds for layer in self.layers) * 1e3

    def share(self, bound: Bound) -> float:
        """Return which part of the time is in layers limited by ``bound``, from 0 to 1."""
        total = sum(layer.seconds for layer in self.layers)
        return sum(layer.seconds for layer in self.layers if layer.bound == bound) / total if total else 0.0

    def __str__(self) -> str:
        """Return it for people: ``at least 1.23 ms (roofline estimate, not measured)``."""
        return f"at least {self.latency_ms:.3g} ms (roofline estimate, not measured)"

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, without the layers."""
        return {
            "latency_ms": self.latency_ms,
            "measured": False,
            "basis": "peak",
            "lower_bound": True,
            "batch": self.batch,
            "assumes": self.assumes,
            "compute_bound": self.share("compute"),
            "memory_bound": self.share("memory"),
        }


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """A device's peaks in one precision: operations (two a multiply-accumulate) and bytes a second.

    ``sparse_ops_per_s`` is None where the peak with 2:4 zeros is unverified, or there is none.
    """

    device: str
    precision: str
    dense_ops_per_s: float
    sparse_ops_per_s: float | None
    bytes_per_s: float
    element_bytes: int
    assumes: str

    def layer(self, work: LayerWork, *, batch: int) -> LayerEstimate | NoEstimate:
        """Return the least time that one layer takes for a call of ``batch`` images."""
        peak = self.sparse_ops_per_s if work.two_four else self.dense_ops_per_s
        if peak is None:
            return NoEstimate(
                reason=f"the peak of {self.device} in {self.precision} with 2:4 zeros, as in {work.name}, is unverified"
            )
        each = _KEPT * (self.element_bytes + _INDEX_BYTES) if work.two_four else self.element_bytes
        stored = work.weights * each
        compute_s = 2 * work.macs * batch / peak
        memory_s = (stored + work.activations * batch * self.element_bytes) / self.bytes_per_s
        return LayerEstimate(
            name=work.name, seconds=max(compute_s, memory_s), bound="compute" if compute_s >= memory_s else "memory"
        )


def peaks_of(profile: Profile, *, precision: str, power_mode: str | None = None) -> Peaks | NoEstimate:
    """Return the peaks of a profile, of its GPU alone; a figure that nobody has verified is never guessed.

    Args:
        profile: The device.
        precision: One of ``PRECISIONS``. Half precision is taken with float32 sums where the profile tells them apart,
            float32 without TF32.
        power_mode: A mode's name; by default what the device is sold with, which Super modes exceed.

    Raises:
        ValueError: No such precision, or no such mode in the profile.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    throughput, bandwidth, state = profile.throughput, profile.memory.bandwidth, _usual_state(profile)
    if power_mode is not None:
        modes = {mode.name: mode for mode in profile.power_modes}
        if power_mode not in modes:
            raise ValueError(f"expected one of {', '.join(modes) or 'no modes'}, got {power_mode!r}")
        mode = modes[power_mode]
        throughput, bandwidth, state = mode.throughput, mode.bandwidth or bandwidth, f"power mode {power_mode}"
    arithmetic = "fp16_acc32" if precision == "fp16" and "fp16_acc32" in throughput else precision
    pair = throughput.get(arithmetic)
    where = f"{profile.title}, {state}"
    if pair is None or pair.dense.value is None:
        known = None if pair is None else pair.dense
        return NoEstimate(reason=f"the peak throughput of {where}, in {precision} is unverified{_why(known)}")
    if bandwidth.value is None:
        return NoEstimate(reason=f"the memory bandwidth of {where} is unverified{_why(bandwidth)}")
    without = ", without TF32" if precision == "fp32" and profile.kind != "cpu" else ""
    return Peaks(
        device=profile.title,
        precision=precision,
        dense_ops_per_s=pair.dense.value * 1e12,
        sparse_ops_per_s=None if pair.sparse is None or pair.sparse.value is None else pair.sparse.value * 1e12,
        bytes_per_s=bandwidth.value * 1e9,
        element_bytes=_BYTES[precision],
        assumes=f"peaks of {where}: {arithmetic} at {pair.dense}{without}, memory at {bandwidth}",
    )


def estimate(
    layers: Iterable[Mapping[str, object]], *, roof: Peaks | NoEstimate, batch: int = 1
) -> Estimate | NoEstimate:
    """Return how long the graph of ``layers``, records as in a bundle's manifest, takes at least under ``roof``.

    Only convolutions and linear layers are counted: engines fuse most of what lies between them, the rest is small. All
    of their multiply-accumulates are counted, so an engine that transforms convolutions (Winograd) may be faster.
    """
    if isinstance(roof, NoEstimate):
        return roof
    found = []
    for number, record in enumerate(layers, 1):
        try:
            work = layer_work(record)
        except ValueError as error:
            return NoEstimate(reason=f"the bundle does not say what layer {number} costs ({error})")
        cost = roof.layer(work, batch=batch)
        if isinstance(cost, NoEstimate):
            return cost
        found.append(cost)
    if not found:
        return NoEstimate(reason="the bundle names no layers")
    return Estimate(layers=tuple(found), batch=batch, assumes=roof.assumes)


def layer_work(record: Mapping[str, object]) -> LayerWork:
    """Return what a layer's record in a bundle's manifest says (docs/formats.md).

    Raises:
        ValueError: The record does not say enough, or what cannot be; the message is a part of a sentence.
    """
    named = record.get("type")
    if named not in _LAYER_TYPES:
        raise ValueError(f"type is {printable(repr(named))}")
    return LayerWork(
        name=printable(str(record.get("name", ""))),
        in_channels=_count(record, "in_channels"),
        out_channels=_count(record, "out_channels"),
        weights=_count(record, "weights"),
        macs=_count(record, "macs"),
        two_four=record.get("two_four") is True and record.get("why_no_gain") is None,
    )


def _count(record: Mapping[str, object], key: str) -> int:
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MOST:
        raise ValueError(f"{key} is {printable(repr(value))}")
    return value


def _usual_state(profile: Profile) -> str:
    """Return what the profile's own peaks are of: the highest clocks, unless a mode is known to be faster than them."""
    faster = [
        mode.name
        for mode in profile.power_modes
        if any(
            _exceeds(pair.dense, profile.throughput[precision].dense)
            for precision, pair in mode.throughput.items()
            if precision in profile.throughput
        )
    ]
    return f"highest clocks but those of {', '.join(faster)}" if faster else "highest clocks"


def _exceeds(one: Fact[float], other: Fact[float]) -> bool:
    return one.value is not None and other.value is not None and one.value > _ROUNDED * other.value


def _why(fact: Fact[float] | None) -> str:
    return "" if fact is None else f" ({fact.source.removeprefix('unverified: ')})"
