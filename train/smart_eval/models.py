"""What smart-eval measures: a checkpoint or a bundle, opened, with all that a report says of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import nn

from smart_eval.attacks.base import NamedAttack
from smart_eval.bundles import OpenBundle
from smart_train.accuracy import to_tensor
from smart_train.architectures import CUSTOM
from smart_train.checkpoint.format import Checkpoint
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.network import SmartNetwork

WHITE_BOX = (
    "White-box: the attacker knows the network, its weights and which path runs, and changes each pixel by at most eps "
    "(L-infinity, pixels in [0, 1]). The user chose the path; the attacker cannot change it."
)
_FEW = 8


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint, the SHA-256 of its file and what results depend on; other members are those of `OpenBundle`."""

    checkpoint: Checkpoint
    digest: str
    about: Mapping[str, Any]

    kind: ClassVar[Literal["checkpoint"]] = "checkpoint"
    precision: ClassVar[str] = "fp32"
    engine: ClassVar[str] = "torch"
    threat_model: ClassVar[str] = WHITE_BOX
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

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, digest: str) -> OpenCheckpoint:
        """Return it; of a user's own network what results depend on is also the code, which shows in its scores."""
        own = {"arguments": dict(checkpoint.arguments), "scores": _scores_digest(checkpoint)}
        return cls(checkpoint, digest, {"model": digest, **(own if checkpoint.architecture == CUSTOM else {})})

    def attacks(self, attacks: Sequence[NamedAttack]) -> list[NamedAttack]:
        """Return ``attacks``: each can be made on the paths themselves."""
        return list(attacks)


@torch.no_grad()
def _scores_digest(checkpoint: Checkpoint) -> str:
    """Return a digest of what each path makes of a few images."""
    digest, images = hashlib.blake2b(digest_size=8), to_tensor(checkpoint.samples.images[:_FEW])
    for name in checkpoint.net.path_names:
        path = checkpoint.net.path(name)
        with attack_mode(path):
            digest.update(path(images).numpy().tobytes())
    return digest.hexdigest()


OpenModel: TypeAlias = OpenCheckpoint | OpenBundle
