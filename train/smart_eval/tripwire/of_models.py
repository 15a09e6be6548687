"""The tripwire of an opened checkpoint, or of a bundle whose source is known."""

from __future__ import annotations

from collections.abc import Callable

import torch

from smart_common.roles import clean_and_attacked, default_role
from smart_eval.models import OpenModel
from smart_eval.tripwire.detection import FITTED, OWN, TripwireFound, fitted, measure_tripwire
from smart_eval.tripwire.pair import AttackedPair
from smart_train.data.images import Split
from smart_train.errors import ConfigError
from smart_train.masking.attack_mode import attack_mode

STEPS = 40
"""Of each attack."""


def pair_names(model: OpenModel) -> tuple[str, str]:
    """Return a model's paths for clean and for attacked images, the first of each.

    Raises:
        ConfigError: it has none of one kind, or no gradients, or draws random numbers.
    """
    if model.randomised:
        raise ConfigError(f"{model.model} draws random numbers in each call, so --policy cannot attack it; export it")
    if model.samples is None:
        raise ConfigError(
            f"--policy attacks paths with gradients, which the bundle {model.model} has none of; give the checkpoint "
            "it was exported from as --source"
        )
    pair = clean_and_attacked({path: model.roles.get(path) or default_role(path) for path in model.made_on})
    if pair is None:
        raise ConfigError(
            f"a tripwire needs a path for clean and one for attacked images, and {model.model} has "
            f"{', '.join(model.made_on)}; leave --policy out"
        )
    return pair


def tripwire_of(
    model: OpenModel,
    split: Split,
    *,
    eps: float,
    seed: int,
    chunk: int,
    device: torch.device | str,
    done: Callable[[str, int], None],
) -> TripwireFound:
    """Return what the tripwire notices of attackers within ``eps`` on ``split``.

    That of a bundle goes by the bundle's operating points, as it does on a device; where there are none it is fitted on
    the checkpoint's samples. Arguments are those of `measure_tripwire`; raises as `pair_names` does.
    """
    names = pair_names(model)
    assert model.samples is not None
    clean, robust = (model.made_on[name].to(device) for name in names)
    pair = AttackedPair(clean, robust, eps=eps, steps=STEPS, seed=seed)
    with attack_mode(clean), attack_mode(robust):
        if model.tripwire is None:
            points, whose = fitted(pair, model.samples, paths=names, device=device), FITTED
        else:
            default = model.tripwire.point(None)
            points, whose = {default.score: default, **model.tripwire.points}, OWN
        return measure_tripwire(pair, split, points=points, whose=whose, chunk=chunk, device=device, done=done)
