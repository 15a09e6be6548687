"""What one layer of a network asks of a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from smart_devices.sysfs import printable

Kind: TypeAlias = Literal["convolution", "depthwise", "linear"]

_TYPES: Mapping[str, Kind] = {"Conv2d": "convolution", "Linear": "linear"}
_MOST = 2**62  # of anything that is counted: a bundle may come from anyone


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """One convolution or linear layer, for one image.

    Attributes:
        name: Its name in the network.
        kind: What it is; a convolution is ``depthwise`` if each of its groups reads one channel.
        groups: Of a convolution, else 1.
        in_channels, out_channels: As the graph has them.
        weights: Numbers in the weight, without the bias.
        macs: Multiply-accumulates.
        two_four: Whether the target is expected to run it faster for its 2:4 zeros.
    """

    name: str
    kind: Kind
    groups: int
    in_channels: int
    out_channels: int
    weights: int
    macs: int
    two_four: bool = False

    @property
    def places(self) -> float:
        """How often the whole weight is applied: the positions of a convolution's output."""
        return self.macs / self.weights

    @property
    def activations(self) -> float:
        """Numbers read and written beside the weights: all outputs, and as many positions of the input.

        A convolution with a stride reads more, which a bundle does not tell: this is the least.
        """
        return self.places * (self.in_channels + self.out_channels)


def layer_work(record: Mapping[str, object]) -> LayerWork:
    """Return what a layer's record in a bundle's manifest says (docs/formats.md).

    Raises:
        ValueError: The record does not say enough, or what cannot be; the message is a part of a sentence.
    """
    named = record.get("type")
    kind = _TYPES.get(named) if isinstance(named, str) else None
    if kind is None:
        raise ValueError(f"type is {printable(repr(named))}")
    groups, channels = _count(record, "groups"), (_count(record, "in_channels"), _count(record, "out_channels"))
    if kind == "convolution" and groups == channels[0] and groups > 1:
        kind = "depthwise"
    return LayerWork(
        name=printable(str(record.get("name", ""))),
        kind=kind,
        groups=groups,
        in_channels=channels[0],
        out_channels=channels[1],
        weights=_count(record, "weights"),
        macs=_count(record, "macs"),
        two_four=record.get("two_four") is True and record.get("why_no_gain") is None,
    )


def _count(record: Mapping[str, object], key: str) -> int:
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MOST:
        raise ValueError(f"{key} is {printable(repr(value))}")
    return value
