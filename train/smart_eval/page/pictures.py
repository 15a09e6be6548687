"""A few test images, what a perturbation makes of them, and what each path says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smart_eval.attacks.base import NamedAttack, Transferred
from smart_eval.attacks.pgd import Pgd, as_pgd
from smart_eval.measure import Paths, chunk_seed, exactly
from smart_eval.models import OpenModel
from smart_train.accuracy import to_tensor
from smart_train.attacks import Attack
from smart_train.data.images import Pixels, Split
from smart_train.masking.attack_mode import attack_mode

_MOST, _FEWEST = 6, 2
_NUMBERS = 600_000  # of all originals together: a page with photographs stays below about 5 MB
_LOOKED_AT = 512  # images among which the pictures are chosen

Says = Mapping[str, int]
"""What each path says of an image: the class, by path."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attacked:
    """An image after an attack on one path.

    Attributes:
        pixels: what the attack made, uint8 (H, W, C), rounded to be shown.
        perturbation: the change, uint8 (H, W, C): 0 is -eps, 128 nothing, 255 +eps.
        says: what each path says of it.
    """

    pixels: Pixels
    perturbation: Pixels
    says: Says


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One image, uint8 (H, W, C), with its class, what each path says of it, and it after an attack on each path."""

    pixels: Pixels
    label: int
    says: Says
    attacked: Mapping[str, Attacked]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """What is shown of one model: images, their class names, the name and radius of the attack."""

    class_names: Sequence[str]
    attack: str
    eps: float
    pictures: Sequence[Picture]


def shown_attack(model: OpenModel, attacks: Sequence[NamedAttack], *, eps: float) -> NamedAttack:
    """Return what pictures of ``model`` are attacked by: the first PGD of ``attacks``, which are one at least.

    Without PGD it is one of 20 steps within ``eps``; where there are no gradients for that, the first attack.
    """
    first = next((attack for attack in attacks if as_pgd(attack) is not None), None)
    if first is not None or not model.made_on:
        return first or attacks[0]
    return model.attacks([Pgd(Attack(name="pgd", eps=eps, steps=20))])[0]


def make_pictures(
    model: OpenModel,
    split: Split,
    *,
    attack: NamedAttack,
    eps: float,
    seed: int,
    device: torch.device | str = "cpu",
) -> Pictures:
    """Attack a few images of ``split``; at equal seed, network and threads they are equal to the bit.

    They are the first ones of different classes that every path gets right, so no outcome of an attack chooses them;
    only where there are too few of these, the first other images too.

    Args:
        model: its paths are on ``device``; not changed.
        split: what was measured on.
        attack: made on each path in turn.
        eps: its radius, to scale what is shown.
        seed: of the run.
        device: where the paths are.
    """
    net = model.net
    with exactly():
        candidates = Split(split.images[:_LOOKED_AT], split.labels[:_LOOKED_AT])
        said = {path: _says(net, path, _tensor(candidates.images, device)) for path in net.path_names}
        chosen = _choose(candidates, said)
        originals, labels = candidates.images[chosen], torch.from_numpy(candidates.labels[chosen]).to(device)
        images = _tensor(originals, device)
        attacked: dict[str, tuple[Tensor, dict[str, list[int]]]] = {}
        for path in net.path_names:
            victim = net.path(path)
            with attack_mode(victim):
                found = attack(victim, images, labels, seed=chunk_seed(seed, f"pictures {attack.name}", 0))
            attacked[path] = found, {other: _says(net, other, found) for other in net.path_names}
    return Pictures(
        class_names=model.class_names,
        attack=f"{attack.name} made on its source" if isinstance(attack, Transferred) else attack.name,
        eps=eps,
        pictures=[
            Picture(
                pixels=originals[i],
                label=int(labels[i]),
                says={path: found[where] for path, found in said.items()},
                attacked={
                    path: Attacked(
                        pixels=_pixels(found[i]),
                        perturbation=_pixels((found[i] - images[i]) / (2 * eps) + 0.5 if eps else found[i] * 0 + 0.5),
                        says={other: answers[i] for other, answers in says.items()},
                    )
                    for path, (found, says) in attacked.items()
                },
            )
            for i, where in enumerate(chosen)
        ],
    )


def _choose(split: Split, said: Mapping[str, Sequence[int]]) -> list[int]:
    count = min(max(_FEWEST, min(_MOST, _NUMBERS // split.images[0].size)), len(split))
    right = np.logical_and.reduce([np.array(found) == split.labels for found in said.values()])
    _, firsts = np.unique(np.where(right, split.labels, -1), return_index=True)
    best = sorted(int(i) for i in firsts if right[i])
    others = [i for i in range(len(split)) if i not in set(best)]
    return (best + sorted(others, key=lambda i: (not right[i], i)))[:count]


def _says(net: Paths, path: str, images: Tensor) -> list[int]:
    model = net.path(path)
    with attack_mode(model), torch.no_grad():
        return [int(found) for part in torch.split(images, 64) for found in model(part).argmax(dim=1)]


def _tensor(images: Pixels, device: torch.device | str) -> Tensor:
    return to_tensor(torch.from_numpy(images).to(device))


def _pixels(image: Tensor) -> Pixels:
    """Return float (C, H, W) as uint8 (H, W, C)."""
    found: Pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return found
