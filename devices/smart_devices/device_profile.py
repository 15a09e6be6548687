"""What a device profile says: each number with its unit and its source, `null` where nobody has verified it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

from smart_common.documents import Reader
from smart_devices.jetpack import JetPack

T = TypeVar("T")

PRECISIONS = ("fp32", "fp16", "int8")
"""The precisions that a graph can be exported in; every profile says something about each one's alignment."""

SPARSE_GAIN_CHANNELS = 256
"""With fewer channels in or out, NVIDIA's 2:4 kernels seldom beat its dense ones, says a maintainer of TensorRT:
https://github.com/NVIDIA/TensorRT/issues/3849 and 4065."""

Kind = Literal["jetson", "gpu", "cpu"]


@dataclass(frozen=True)
class Fact(Generic[T]):
    """One value with its unit and source.

    Attributes:
        value: The value, ``None`` while it is unverified.
        unit: Its unit, ``None`` for counts and labels.
        source: Where it was read or how it was computed; for an unverified value, what is known.
    """

    value: T | None
    unit: str | None
    source: str

    def __str__(self) -> str:
        """Return the value for people: ``204.8 GB/s``, ``yes``, ``unknown``."""
        if self.value is None:
            return "unknown"
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        return f"{self.value:g} {self.unit}" if self.unit and isinstance(self.value, (int, float)) else str(self.value)


def is_positive(value: object) -> bool:
    """Say whether ``value`` is a number above 0 that JSON can hold; ``True`` is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def read_fact(entry: Reader, valid: Callable[[object], bool], expected: str, unit: str | None) -> Fact[Any]:
    """Return the value in ``entry``, ``valid`` or null, with its unit and source.

    Args:
        entry: ``{"value": ..., "unit": ..., "source": ...}``.
        valid: Says whether a value can be that.
        expected: What that is, in words.
        unit: The unit that the entry must have.
    """
    entry.exactly("value", "unit", "source")
    value = entry.value("value")
    if value is not None and not valid(value):
        raise entry.wrong("value", f"{expected} or null")
    return Fact(value=value, unit=entry.choice("unit", [unit]), source=entry.string("source"))


def read_number(entry: Reader, unit: str) -> Fact[float]:
    """Return the number above 0, or null, in ``entry``, with its unit and source."""
    return read_fact(entry, is_positive, "a positive number", unit)


@dataclass(frozen=True)
class Identity:
    """What the device calls itself, which no other profile's device does.

    Attributes:
        names: A Jetson's module part numbers (``p3701-0005``), a card's names as NVML gives them, a CPU's
            ``platform.machine()`` in small letters.
        source: Where they were read.
    """

    names: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class DenseSparse:
    """A figure for dense and for 2:4 sparse arithmetic; ``sparse`` is ``None`` where the device has no such thing."""

    dense: Fact[float]
    sparse: Fact[float] | None


@dataclass(frozen=True)
class Memory:
    """The memory that the network runs from.

    Attributes:
        size: Capacity in GB as sold.
        bandwidth: Peak bandwidth in GB/s.
        shared_with_host: Whether host programs use the same memory (every Jetson) or the device has its own.
    """

    size: Fact[float]
    bandwidth: Fact[float]
    shared_with_host: bool


@dataclass(frozen=True)
class Dla:
    """The deep learning accelerators beside the GPU; peaks in int8 TOPS are for all of them together."""

    engines: Fact[int]
    int8: DenseSparse


@dataclass(frozen=True)
class PowerMode:
    """A power mode of a Jetson. Select it by name: the same number means different modes on different images.

    Attributes:
        name: What ``nvpmodel -q`` prints.
        default: Whether a new board starts in it.
        power: The budget in W.
        throughput: The GPU's peaks in this mode, by precision; only what is known to differ per mode.
        dla_int8: The accelerators' int8 peak in this mode, ``None`` without accelerators.
        bandwidth: Memory bandwidth in this mode where it differs from the profile's, else ``None``.
        requires_l4t: The first L4T release that has the mode, ``None`` when all have it.
    """

    name: str
    default: bool
    power: Fact[float]
    throughput: Mapping[str, DenseSparse]
    dla_int8: DenseSparse | None
    bandwidth: Fact[float] | None
    requires_l4t: str | None


@dataclass(frozen=True)
class Profile:
    """What one device can do.

    Attributes:
        name: The profile's name; ``profiles/<name>.json`` holds it.
        aliases: Other names for it, each naming this profile only.
        title: The device's name for people.
        kind: ``jetson``, ``gpu`` (a card with memory of its own) or ``cpu``.
        identity: What the device calls itself.
        export_only: Why smart-edge cannot run there itself though it exports for it; ``None`` where it can.
        compute_capability: NVIDIA's, such as ``8.7``; ``None`` on a CPU.
        sparse_tensor_cores: Whether 2:4 sparse weights can run faster than dense ones.
        memory: Size, bandwidth, sharing.
        throughput: Peak TFLOPS or TOPS of the GPU or CPU alone, by precision; a precision not listed is unknown.
        dla: Deep learning accelerators, ``None`` where the device has none.
        channel_alignment: The multiple that channel counts should be of, by precision and arithmetic.
        onnx_opset: The opset that graphs for this device are exported with.
        engines: What can run a graph there, best first.
        power_modes: Power modes, empty where there are none.
        jetpack: What each JetPack release installs, oldest first; empty on anything but a Jetson.
    """

    name: str
    aliases: tuple[str, ...]
    title: str
    kind: Kind
    identity: Identity
    export_only: str | None
    compute_capability: Fact[str] | None
    sparse_tensor_cores: Fact[bool]
    memory: Memory
    throughput: Mapping[str, DenseSparse]
    dla: Dla | None
    channel_alignment: Mapping[str, DenseSparse]
    onnx_opset: Fact[int]
    engines: tuple[str, ...]
    power_modes: tuple[PowerMode, ...]
    jetpack: tuple[JetPack, ...]

    def alignment(self, precision: str, *, sparse: bool = False) -> int:
        """Return the multiple that channel counts should be of: at least 1, which is also the answer while unverified.

        Args:
            precision: One of ``PRECISIONS``.
            sparse: For 2:4 sparse instead of dense arithmetic.

        Raises:
            ValueError: ``precision`` is none of them.
        """
        if precision not in self.channel_alignment:
            raise ValueError(f"expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        pair = self.channel_alignment[precision]
        fact = pair.sparse if sparse else pair.dense
        return 1 if fact is None or fact.value is None else int(fact.value)

    @property
    def opset(self) -> int:
        """The ONNX opset that graphs for this device are exported with."""
        return cast("int", self.onnx_opset.value)  # never None: the parser refuses that


@dataclass(frozen=True)
class Target:
    """A device as the user named it (``name``, maybe an alias) and the profile that this means.

    ``jetpack`` is the JetPack release that runs on it, ``None`` for the one that the profile's opset is for.
    """

    name: str
    profile: Profile
    jetpack: str | None = None

    @property
    def opset(self) -> int:
        """The ONNX opset of graphs for it: the profile's, or less where an older TensorRT reads no more."""
        rows = (row for row in self.profile.jetpack if self.jetpack in row.versions)
        return min([self.profile.opset, *(row.onnx_opset for row in rows if row.onnx_opset is not None)])
