"""What figures must share to stand in one table: data, test images, eps and attacks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smart_common.documents import Reader
from smart_eval.subjects import Subject
from smart_train.errors import ConfigError

_HOW = {"made_on", "draws", "parts", "queries", "description"}  # of an attack: how it is made on one subject


@dataclass(frozen=True)
class Terms:
    """What figures must share to stand in one table.

    Attributes:
        data: the digest of the data set.
        images: a digest of which test images.
        eps: the radius of the attacks, in pixel units.
        attacks: each with its strength; not where it was made, nor whether it followed the noise of a randomised path.
    """

    data: str
    images: str
    eps: float
    attacks: frozenset[str]

    @classmethod
    def of(cls, subject: Subject) -> Terms:
        """Return those of what is to be measured."""
        indices = None if subject.indices is None else subject.indices.tolist()
        attacks = [attack.record() for attack in subject.attacks]
        return cls(subject.images.digest, _which(indices, len(subject.split)), subject.eps, _settings(attacks))

    def difference(self, other: Terms) -> str | None:
        """Return in which they differ, in words; None if in nothing."""
        if self.data != other.data:
            return "data"
        if self.images != other.images:
            return "test images"
        if self.attacks and other.attacks and self.eps != other.eps:
            return f"eps, {self.eps:.4g} and {other.eps:.4g}"
        if self.attacks != other.attacks:
            return "attacks"
        return None


def _which(indices: Sequence[int] | None, examples: int) -> str:
    return hashlib.blake2b(json.dumps([indices, examples]).encode(), digest_size=8).hexdigest()


def _settings(attacks: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(
        json.dumps({key: value for key, value in one.items() if key not in _HOW}, sort_keys=True) for one in attacks
    )


def check_terms(terms: Sequence[tuple[str, Terms]]) -> None:
    """Raise ConfigError unless all subjects, by name, share data and attacks."""
    for name, one in terms[1:]:
        first, known = terms[0]
        difference = known.difference(one)
        if difference is not None:
            raise ConfigError(
                f"{first} and {name} differ in their {difference}, so one table would mislead; give --data, "
                "--examples, --seed, --eps and --attack that hold for all (square needs no gradients), or measure them "
                "apart"
            )


def terms_of(model: Reader) -> Terms:
    """Return those of a model as ``smart-eval --json`` printed it."""
    indices = model.value("example_indices")
    if indices is not None and not (isinstance(indices, list) and all(type(one) is int for one in indices)):
        raise model.wrong("example_indices", "a list of whole numbers or null")
    examples = model.integer("examples", low=1)
    attacks = [attack.raw for attack in model.objects("attacks")]
    eps = model.fraction("eps")
    if eps is None:
        raise model.wrong("eps", "a number in [0, 1]")
    return Terms(model.object("data").string("digest"), _which(indices, examples), eps, _settings(attacks))
