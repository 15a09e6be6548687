"""The roof that was measured on a processor, once, and is kept in the cache directory.

A processor reaches no peak that its maker prints, so `smart-bench --calibrate` measures what ONNX Runtime's kernels
attain on it. Unlike on a GPU, arithmetic and the reading of weights hardly overlap: a layer takes the sum of both, and
a constant. Convolutions compute whole blocks of channels (onnxruntime, mlas, snchwc.cpp), so channels are counted as
the kernels do. docs/benchmarks.md shows how near that comes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from smart_devices.cpu import cpu_identity
from smart_devices.engines import engine_status
from smart_devices.roofline.estimate import Basis, Bound, LayerEstimate, NoEstimate
from smart_devices.roofline.work import LayerWork
from smart_devices.sysfs import read_bytes

CALIBRATED_ENGINE = "onnxruntime-cpu"
"""The engine whose kernels are measured: for a GPU, a profile's peaks must do."""

_CALIBRATED_PRECISION = "fp32"
_VERSION = 1  # one more whenever figures mean something else
_MOST_BYTES = 65_536  # of a file: it holds a dozen numbers
_MOST = 1e6  # of any figure: seconds, channels, a relative error
_LEAST_MAC_S = 1e-18  # no processor multiplies 10**18 times a second
_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class CalibrationKey:
    """What a calibration holds for: a processor as `smart_devices.cpu.cpu_identity` names it, threads, engine."""

    cpu: str
    threads: int
    engine: str
    engine_version: str

    @property
    def file_name(self) -> str:
        """The file's name in the cache directory."""
        text = json.dumps([_VERSION, *asdict(self).values()])
        return f"roofline/{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """What a call asks for in one layer, in the units that costs are fitted for; bytes are of float32 weights.

    A convolution reads its weights anew for every image: ``again_bytes`` are those of all images but the first, which
    a cache may hold by then. A linear layer reads its weights once, in their order.
    """

    convolution_macs: float
    depthwise_macs: float
    convolution_bytes: float
    again_bytes: float
    linear_bytes: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Seconds for one of each of `Amounts`, for an operator and for a call.

    Attributes:
        key: What it holds for.
        convolution_mac_s: A multiply-accumulate of a convolution or linear layer.
        depthwise_mac_s: One of a depthwise convolution.
        convolution_byte_s: A byte of a convolution's weights, read from memory.
        again_byte_s: One that is read again, for another image of the same call.
        linear_byte_s: A byte of a linear layer's weights.
        operator_s: What an operator costs beside.
        call_s: What a call costs beside its operators.
        channel_block: Channels that a convolution computes at once.
        worst_error: The largest relative error on what was measured to find all these.
    """

    key: CalibrationKey
    convolution_mac_s: float
    depthwise_mac_s: float
    convolution_byte_s: float
    again_byte_s: float
    linear_byte_s: float
    operator_s: float
    call_s: float
    channel_block: int
    worst_error: float

    @property
    def basis(self) -> Basis:
        """See `Roof.basis`."""
        return "calibrated"

    @property
    def assumes(self) -> str:
        """See `Roof.assumes`."""
        key, name = self.key, self.key.cpu.partition(", ")[0]
        return (
            f"{key.engine} {key.engine_version} on {name}, threads {key.threads}, fp32: "
            f"{1e-9 / self.convolution_mac_s:.3g} GMAC/s as calibrated"
        )

    def layer(self, work: LayerWork, *, batch: int) -> LayerEstimate | NoEstimate:
        """Return what one layer costs; see `Roof.layer`."""
        found = amounts(work, batch=batch, channel_block=self.channel_block)
        parts: dict[Bound, float] = {
            "compute": found.convolution_macs * self.convolution_mac_s + found.depthwise_macs * self.depthwise_mac_s,
            "memory": found.convolution_bytes * self.convolution_byte_s
            + found.again_bytes * self.again_byte_s
            + found.linear_bytes * self.linear_byte_s,
            "overhead": self.operator_s,
        }
        return LayerEstimate(
            name=work.name, seconds=sum(parts.values()), bound=max(parts, key=lambda part: parts[part])
        )


def amounts(work: LayerWork, *, batch: int, channel_block: int) -> Amounts:
    """Return what a layer asks for in a call of ``batch`` images, its channels filled up to whole blocks.

    The input of a convolution is not filled up where it is a picture of fewer channels than a block, nor are those of
    a linear layer (onnxruntime, mlas, snchwc.cpp).
    """
    if work.kind == "linear":
        return Amounts(
            convolution_macs=work.macs * batch,
            depthwise_macs=0.0,
            convolution_bytes=0.0,
            again_bytes=0.0,
            linear_bytes=work.weights * _FLOAT_BYTES,
        )
    factor = _filled(work.out_channels, channel_block) / work.out_channels
    # In a grouped convolution, filling up the inputs changes nothing: each output reads its own group's only.
    if work.groups == 1 and work.in_channels >= channel_block:
        factor *= _filled(work.in_channels, channel_block) / work.in_channels
    macs, stored = work.macs * batch * factor, work.weights * factor * _FLOAT_BYTES
    depthwise = work.kind == "depthwise"
    return Amounts(
        convolution_macs=0.0 if depthwise else macs,
        depthwise_macs=macs if depthwise else 0.0,
        convolution_bytes=stored,
        again_bytes=stored * (batch - 1),
        linear_bytes=0.0,
    )


def _filled(channels: int, block: int) -> int:
    return -(-channels // block) * block


def calibration_key(*, threads: int, engine: str = CALIBRATED_ENGINE) -> CalibrationKey:
    """Return what a calibration on this machine holds for."""
    version = engine_status(engine).version
    return CalibrationKey(cpu=cpu_identity(), threads=threads, engine=engine, engine_version=version or "unknown")


def processor_roof(
    *, precision: str, threads: int, cache_dir: Path | None, engine: str = CALIBRATED_ENGINE
) -> Calibration | NoEstimate:
    """Return what was calibrated on this machine, from ``cache_dir``, or why there is nothing."""
    if engine != CALIBRATED_ENGINE:
        return NoEstimate(reason=f"only {CALIBRATED_ENGINE} can be calibrated, this is {engine}")
    if precision != _CALIBRATED_PRECISION:
        return NoEstimate(reason=f"a processor is calibrated for {_CALIBRATED_PRECISION}, this is {precision}")
    found = None
    if cache_dir is not None:
        found = load_calibration(calibration_key(threads=threads, engine=engine), cache_dir=cache_dir)
    if found is None:
        return NoEstimate(
            reason=f"this processor was not calibrated with {threads} thread{'s' if threads > 1 else ''}: smart-bench "
            f"--calibrate --threads {threads} does it in seconds"
        )
    return found


def store_calibration(calibration: Calibration, *, cache_dir: Path) -> Path:
    """Keep ``calibration`` in ``cache_dir``, in place of an older one for the same key; return the file.

    Raises:
        OSError: The system refuses.
    """
    place = cache_dir / calibration.key.file_name
    place.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"version": _VERSION, **asdict(calibration)}, indent=1, allow_nan=False) + "\n"
    descriptor, beside = tempfile.mkstemp(dir=place.parent, prefix=place.name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(beside).replace(place)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    return place


def load_calibration(key: CalibrationKey, *, cache_dir: Path) -> Calibration | None:
    """Return what was kept for ``key``; None where nothing was, or the file is damaged: it is made again in seconds."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        document = json.loads(read_bytes(cache_dir / key.file_name, limit=_MOST_BYTES))
        if isinstance(document, dict) and document.pop("version") == _VERSION and document.pop("key") == asdict(key):
            return _checked(key, document)
    return None


def _checked(key: CalibrationKey, document: Mapping[str, object]) -> Calibration | None:
    numbers: dict[str, float] = {}
    for name in {entry.name for entry in fields(Calibration)} - {"key"}:
        value = document[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _MOST:
            return None
        numbers[name] = value
    block = numbers["channel_block"]
    if not isinstance(block, int) or block < 1 or numbers["convolution_mac_s"] < _LEAST_MAC_S:
        return None
    return Calibration(key=key, **numbers)  # type: ignore[arg-type]  # checked just above
