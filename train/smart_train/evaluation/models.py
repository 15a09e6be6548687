"""What smart-eval measures: a checkpoint or a bundle, opened, with all that a report says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from torch import nn

from smart_train.checkpoint import Checkpoint
from smart_train.evaluation.bundles import OpenBundle
from smart_train.evaluation.named import NamedAttack
from smart_train.evaluation.report import THREAT_MODEL
from smart_train.network import SmartNetwork


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint and the SHA-256 of its file; its other members are those of `OpenBundle`."""

    checkpoint: Checkpoint
    digest: str

    kind: ClassVar[Literal["checkpoint"]] = "checkpoint"
    precision: ClassVar[str] = "fp32"
    engine: ClassVar[str] = "torch"
    threat_model: ClassVar[str] = THREAT_MODEL
    usual_attack: ClassVar[str] = "pgd"
    replay: ClassVar[None] = None
    notes: ClassVar[tuple[str, ...]] = ()

    @property
    def net(self) -> SmartNetwork:
        """Its paths."""
        return self.checkpoint.net

    @property
    def made_on(self) -> dict[str, nn.Module]:
        """The networks whose gradients attacks follow, by path: its own."""
        return {path: self.net.path(path) for path in self.net.path_names}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.checkpoint.input_shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """One a class."""
        return self.checkpoint.class_names

    @property
    def training(self) -> Mapping[str, Any]:
        """The plain record of how it was trained."""
        return self.checkpoint.training

    @property
    def eps(self) -> float:
        """The radius that it was trained for, in pixel units."""
        return self.checkpoint.samples.eps

    @property
    def about(self) -> dict[str, Any]:
        """What results depend on."""
        return {"model": self.digest}

    def attacks(self, attacks: Sequence[NamedAttack]) -> list[NamedAttack]:
        """Return ``attacks``: each can be made on the paths themselves."""
        return list(attacks)


OpenModel: TypeAlias = OpenCheckpoint | OpenBundle
