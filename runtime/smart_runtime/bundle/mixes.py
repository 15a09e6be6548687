"""The mixes of a bundle: operating points between two of its paths, as the manifest lays them down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from smart_common.documents import JsonObject, Reader

MAX_MIXES = 16
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.02, 50.0
"""Of a path's scores: far beyond what any fit has given, and near enough that no product leaves float64."""


@dataclass(frozen=True, kw_only=True)
class MixInfo:
    """A mix of two paths: ``(1 - share) softmax(a / T_a) + share softmax(b / T_b)`` of their scores a and b.

    ``paths`` are the two, the one for clean images first; ``share`` is that of the second, in (0, 1); ``temperatures``
    are theirs, in order. ``gate`` is the manifest's own JSON object of how the mix was verified and judged at export,
    None where it has none.
    """

    name: str
    paths: tuple[str, str]
    share: float
    temperatures: tuple[float, float]
    gate: JsonObject | None


@dataclass(frozen=True, kw_only=True)
class FittedTemperature:
    """How a path's scores become probabilities, ``softmax(scores / temperature)`` (Guo et al. 2017, arXiv 1706.04599).

    The temperature was fitted on ``fitted_images`` clean images; ``error_before`` and ``error_after`` are the expected
    calibration error on ``images`` others, without and with it, as fractions.
    """

    temperature: float
    fitted_images: int
    images: int
    error_before: float
    error_after: float

    def record(self) -> dict[str, Any]:
        """Return it as plain values, which `read_temperature` reads."""
        return asdict(self)

    def sentence(self, path: str) -> str:
        """Return it in words; ``path`` is the name of the path."""
        return (
            f"{path}: temperature {self.temperature:.3g}, fitted on {self.fitted_images} clean images; expected "
            f"calibration error on {self.images} others {self.error_before:.3f} without it, "
            f"{self.error_after:.3f} with it"
        )


def read_mixes(mixes: Reader | None, *, paths: Sequence[str], is_name: Callable[[str], bool]) -> Mapping[str, MixInfo]:
    """Return the mixes by name, in the manifest's order; raises what the reader raises.

    Unlike elsewhere an unknown key is refused: whoever does not know it would serve another mix than was meant.
    """
    if mixes is None:
        return MappingProxyType({})
    if len(mixes.keys) > MAX_MIXES:
        raise mixes.unlike(f"at most {MAX_MIXES} mixes")
    found = {}
    for name in mixes.keys:
        if not is_name(name) or name in paths:
            raise mixes.wrong(name, "a name like a path's that no path has")
        mix = mixes.object(name)
        mix.only("paths", "share", "temperatures", "gate")
        parts, share, temperatures = mix.strings("paths"), mix.positive("share"), mix.positives("temperatures")
        if len(parts) != 2 or len(set(parts)) != 2 or not set(parts) <= set(paths):
            raise mix.wrong("paths", f"two of the paths {', '.join(paths)}")
        if share >= 1:
            raise mix.wrong("share", "a number between 0 and 1")
        if len(temperatures) != 2 or not all(map(_is_temperature, temperatures)):
            raise mix.wrong("temperatures", f"two numbers from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}")
        found[name] = MixInfo(
            name=name,
            paths=(parts[0], parts[1]),
            share=share,
            temperatures=(temperatures[0], temperatures[1]),
            gate=mix.optional_object("gate"),
        )
    return MappingProxyType(found)


def read_temperature(calibration: Reader | None) -> FittedTemperature | None:
    """Return how a path is calibrated, None where nothing is said; raises what the reader raises."""
    if calibration is None:
        return None
    temperature = calibration.positive("temperature")
    if not _is_temperature(temperature):
        raise calibration.wrong("temperature", f"a number from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}")
    errors = []
    for key in ("error_before", "error_after"):
        error = calibration.fraction(key)
        if error is None:
            raise calibration.wrong(key, "a number in [0, 1]")
        errors.append(error)
    return FittedTemperature(
        temperature=temperature,
        fitted_images=calibration.integer("fitted_images", low=1),
        images=calibration.integer("images", low=1),
        error_before=errors[0],
        error_after=errors[1],
    )


def _is_temperature(value: float) -> bool:
    return LEAST_TEMPERATURE <= value <= MOST_TEMPERATURE
