"""The roof that a device's profile gives: the vendor's peaks.

Williams, Waterman and Patterson, Roofline: an insightful visual performance model for multicore architectures,
Communications of the ACM 52(4), 2009: a layer takes the longer of its arithmetic at peak throughput and its traffic at
peak bandwidth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smart_devices.facts import Fact
from smart_devices.profiles import PRECISIONS, Profile
from smart_devices.roofline.estimate import Basis, LayerEstimate, NoEstimate
from smart_devices.roofline.work import LayerWork

_BYTES: Mapping[str, int] = {"fp32": 4, "fp16": 2, "int8": 1}

# 2:4 keeps half of the numbers, and 2 bits for each kept one say which (PTX ISA, sparse matrix instructions).
_KEPT = 0.5
_INDEX_BYTES = 0.25
_ROUNDED = 1.05  # two sources of one figure differ by less


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
    basis: Basis = "peak"
    call_s: float = 0.0

    def layer(self, work: LayerWork, *, batch: int) -> LayerEstimate | NoEstimate:
        """Return the least time that one layer takes; see `Roof.layer`."""
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
