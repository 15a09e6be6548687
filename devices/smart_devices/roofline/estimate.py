"""How long a network should take, by what bounds each of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from smart_devices.roofline.work import LayerWork, layer_work

Bound: TypeAlias = Literal["compute", "memory", "overhead"]
"""What a layer's time is mostly: multiply-accumulates, moving numbers, or what every operator costs."""

Basis: TypeAlias = Literal["peak", "calibrated"]
"""``peak``: the vendor's peaks, which no engine reaches, so the estimate is the least that it can be."""


@dataclass(frozen=True, kw_only=True)
class LayerEstimate:
    """The expected time of one layer for one call, and what most of it is."""

    name: str
    seconds: float
    bound: Bound


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An expected latency that was not measured.

    Attributes:
        layers: One layer each, in the graph's order.
        call_s: What a call costs beside its layers.
        batch: Images a call.
        basis: Where it comes from.
        assumes: What it rests on, in words for people.
    """

    layers: tuple[LayerEstimate, ...]
    call_s: float
    batch: int
    basis: Basis
    assumes: str

    @property
    def latency_ms(self) -> float:
        """The expected time of one call in ms."""
        return (self.call_s + sum(layer.seconds for layer in self.layers)) * 1e3

    def share(self, bound: Bound) -> float:
        """Return which part of the layers' time is in layers bound by ``bound``, from 0 to 1."""
        total = sum(layer.seconds for layer in self.layers)
        return sum(layer.seconds for layer in self.layers if layer.bound == bound) / total if total else 0.0

    def __str__(self) -> str:
        """Return it for people: ``at least 1.23 ms (roofline estimate, not measured)``."""
        if self.basis == "peak":
            return f"at least {self.latency_ms:.3g} ms (roofline estimate, not measured)"
        return f"about {self.latency_ms:.3g} ms (calibrated roofline estimate, not measured)"

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, without the layers."""
        return {
            "latency_ms": self.latency_ms,
            "measured": False,
            "basis": self.basis,
            "lower_bound": self.basis == "peak",
            "batch": self.batch,
            "assumes": self.assumes,
            "compute_bound": self.share("compute"),
            "memory_bound": self.share("memory"),
        }


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


class Roof(Protocol):
    """What a device can do at best, or was measured to do."""

    @property
    def basis(self) -> Basis:
        """Where it comes from."""
        ...

    @property
    def assumes(self) -> str:
        """What it rests on, in words for people."""
        ...

    @property
    def call_s(self) -> float:
        """What a call costs beside its layers."""
        ...

    def layer(self, work: LayerWork, *, batch: int) -> LayerEstimate | NoEstimate:
        """Return what one layer costs for a call of ``batch`` images."""
        ...


def estimate(
    layers: Iterable[Mapping[str, object]], *, roof: Roof | NoEstimate, batch: int = 1
) -> Estimate | NoEstimate:
    """Return how long the graph of ``layers``, records as in a bundle's manifest, should take under ``roof``.

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
    return Estimate(layers=tuple(found), call_s=roof.call_s, batch=batch, basis=roof.basis, assumes=roof.assumes)
