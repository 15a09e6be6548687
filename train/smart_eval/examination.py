"""What the checks for hidden gradients look at: scores, gradients and further attacks on one path."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smart_eval.attacks.autoattack import FEWEST_CLASSES, SQUARE, AutoAttackParts, has_pyautoattack
from smart_eval.attacks.base import NamedAttack
from smart_eval.attacks.pgd import Pgd
from smart_eval.attacks.table import CLEAN
from smart_eval.measure import Paths, Run, exactly, in_chunks, settings
from smart_eval.records import Right
from smart_train.accuracy import Accuracy, classified_rightly, some_indices, tensors
from smart_train.attacks import Attack, Model, cross_entropy, margin
from smart_train.data.images import Split
from smart_train.masking.attack_mode import attack_mode

MOST_IMAGES = 1000
"""That are looked at, chosen by the seed: a share of one percent shows on so many, and more would only cost more."""

QUERIES = 300
"""Of Square where nobody asks for it: on digits at eps 0.3 they break 0.7 and more of what hidden gradients keep."""

CURVE = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The radii of the accuracy over eps, as multiples of eps; 0 is the clean accuracy, and 1 covers every image."""

FEW, MANY, STRONGEST = (7, 1), (20, 1), (50, 5)
"""Steps and restarts of the PGD that the checks compare."""

_SUM_TO_ONE = 1e-4  # many times what summing a thousand probabilities in float32 loses
_SCORES_DIFFER = 1e-4  # AutoAttack's, between scores of norm 1: other orders of summing in float32 stay far below
_SHORTER = (0.25, 0.5, 0.75)

_Probe = Callable[[Model, Tensor, Tensor, int], Tensor]
"""Of model, images, labels and a seed: of which images something holds, bool (N,)."""


@dataclass(frozen=True)
class UnderAttack:
    """What was found of one path under attacks of eps, above 0: which images are right, bool (N,) each.

    Attributes:
        noise: under uniform noise.
        one_step: after one step of eps along the sign of the gradient (FGSM); here and below of those right without.
        shorter_steps: after each of three shorter steps in the same direction.
        few: after PGD with few steps.
        many: after PGD with many steps, by radius, ascending; the last is 1.
        other_loss: after PGD with many steps on the margin of the scores.
        square_queries: of Square, an image; None without pyautoattack.
        square_tried: how many images attacks by gradients left for Square.
        by_square: not which are right, but which Square breaks that attacks by gradients left.
        square_alone: which of these not even the strongest attacks by gradients break.
    """

    noise: Right
    one_step: Right
    shorter_steps: Right
    few: Right
    many: Mapping[float, Right]
    other_loss: Right
    square_queries: int | None
    square_tried: int
    by_square: Right
    square_alone: Right


@dataclass(frozen=True)
class Examined:
    """What was found of one path, on the images that were looked at.

    Attributes:
        eps: of the attacks that were asked for, in pixel units.
        attacks: that were asked for.
        right: by ``clean`` and the attacks' names, which images are right, bool (N,).
        same_scores: of which images the scores were the same twice, bool (N,).
        finite: of which images all scores are finite, bool (N,).
        like_probabilities: of which images the scores might be probabilities, none below 0 and 1 in all, bool (N,).
        has_gradient: of which images the gradient is not exactly zero, bool (N,).
        under_attack: None at eps 0.
    """

    eps: float
    attacks: Sequence[NamedAttack]
    right: Mapping[str, Right]
    same_scores: Right
    finite: Right
    like_probabilities: Right
    has_gradient: Right
    under_attack: UnderAttack | None


def which_images(total: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Return which of ``total`` images the checks look at: all, or as many as `MOST_IMAGES`, chosen by ``seed``."""
    return np.arange(total) if total <= MOST_IMAGES else np.sort(some_indices(total, MOST_IMAGES, seed=seed))


def work(total: int, *, eps: float) -> int:
    """Return how many images `examine` reports as done, for one path and ``total`` images of a split."""
    return min(total, MOST_IMAGES) * (4 if eps == 0 else 12 + len(_radii(eps)))


def examine_network(
    net: Paths,
    split: Split,
    *,
    right: Mapping[str, Mapping[str, Right]],
    attacks: Sequence[NamedAttack],
    eps: float,
    run: Run,
) -> dict[str, Examined]:
    """Return by path what the checks look at; ``right`` is what `measure` found, the rest as for `measure`."""
    chosen = which_images(len(split), seed=run.seed)
    part = Split(split.images[chosen], split.labels[chosen])
    if len(part) < len(split):
        run = replace(run, about={**run.about, "examples_of": len(split)})
    found = {}
    with exactly():
        for path in net.path_names:
            model, own = net.path(path), {name: which[chosen] for name, which in right[path].items()}
            with attack_mode(model):
                found[path] = examine(model, part, path=path, right=own, attacks=attacks, eps=eps, run=run)
    return found


def examine(
    model: Model,
    split: Split,
    *,
    path: str,
    right: Mapping[str, Right],
    attacks: Sequence[NamedAttack],
    eps: float,
    run: Run,
) -> Examined:
    """Return what the checks look at, of any model.

    Args:
        model: images, float32 (N, C, H, W) in [0, 1], to scores (N, classes), in eval mode.
        split: the images.
        path: the model's name.
        right: by ``clean`` and the attacks' names, which of them are right, bool (len(split),).
        attacks: that were made.
        eps: their radius.
        run: as for `measure`; the probes' names stand for attacks, and `work` says how many images are done in all.
    """
    about = {**run.settings(split), "path": path}

    def probe(name: str, how: _Probe, among: Right | None = None, *, depends: bool = False, **key: Any) -> Right:
        """Return of which images, out of those ``among``, the probe holds."""

        def of(where: slice, its_seed: int) -> Right:
            found = np.ones(where.stop - where.start, dtype=bool) if among is None else among[where].copy()
            at = np.flatnonzero(found)
            if len(at):
                images, labels = tensors(split, where.start + at, run.device)
                found[at] = how(model, images, labels, its_seed).cpu().numpy()
            return found

        def left_by_others(where: slice) -> dict[str, Any]:
            """What a result depends on that was found only of what other attacks left."""
            if not depends or among is None:
                return {}
            return {"among": hashlib.blake2b(np.packbits(among[where]).tobytes(), digest_size=8).hexdigest()}

        return in_chunks(len(split), run, result=of, key={**about, "attack": name, **key}, of_chunk=left_by_others)

    def withstands(attack: NamedAttack, among: Right, *, depends: bool = False) -> Right:
        key = settings(attack)
        return probe(key.pop("attack"), partial(_withstands, attack), among, depends=depends, **key)

    def under_attack() -> UnderAttack:
        clean = right[CLEAN]
        noise = probe("uniform noise", partial(_right_under_noise, eps), eps=eps)
        one_step = probe("fgsm", partial(_withstands_steps, [eps]), clean, eps=eps)
        shorter = probe("fgsm, shorter", partial(_withstands_steps, [part * eps for part in _SHORTER]), clean, eps=eps)
        few = withstands(pgd_of(FEW, eps), clean)
        many = {radius: withstands(pgd_of(MANY, radius), clean) for radius in _radii(eps)}
        other_loss = probe("pgd, margin", partial(_withstands_margin, eps), clean, eps=eps, steps=MANY[0])
        by_gradients = [right[attack.name] for attack in attacks if not attack.uses_queries]
        left = np.logical_and.reduce([clean, one_step, shorter, few, many[eps], other_loss, *by_gradients])
        square = next((one for one in attacks if isinstance(one, AutoAttackParts) and not one.needs_gradients), None)
        if square is None and has_pyautoattack():
            square = AutoAttackParts(SQUARE, eps, queries=QUERIES)
            by_square = left & ~withstands(square, left, depends=True)
        else:
            by_square = left & ~right.get(SQUARE, left)
            run.done(path, SQUARE, len(split))
        alone = withstands(pgd_of(STRONGEST, eps), by_square, depends=True)
        alone = probe("apgd-t", partial(_withstands_targets, eps), alone, depends=True, eps=eps)
        return UnderAttack(
            noise=noise,
            one_step=one_step,
            shorter_steps=shorter,
            few=few,
            many=many,
            other_loss=other_loss,
            square_queries=None if square is None else square.queries,
            square_tried=int(left.sum()),
            by_square=by_square,
            square_alone=alone,
        )

    return Examined(
        eps=eps,
        attacks=attacks,
        right=right,
        same_scores=probe("same scores", _same_scores),
        finite=probe("finite scores", _finite),
        like_probabilities=probe("probabilities", _like_probabilities),
        has_gradient=probe("gradient", _has_gradient),
        under_attack=under_attack() if eps > 0 else None,
    )


def _radii(eps: float) -> list[float]:
    return sorted({min(1.0, multiple * eps) for multiple in CURVE} | {1.0})


def pgd_of(strength: tuple[int, int], eps: float) -> Pgd:
    """Return the PGD of some steps and restarts, such as `MANY`, within ``eps``."""
    return Pgd(Attack(eps=eps, steps=strength[0], restarts=strength[1]))


def _withstands(attack: NamedAttack, model: Model, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    return classified_rightly(model, attack(model, images, labels, seed=seed), labels)


def _withstands_margin(eps: float, model: Model, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(device=images.device).manual_seed(seed)
    found = pgd_of(MANY, eps).attack.run(model, images, labels, generator=generator, early_stop=True, loss=margin)
    return classified_rightly(model, found, labels)


def _withstands_targets(eps: float, model: Model, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Of networks with too few classes for APGD-T all images do: it is not tried."""
    with torch.no_grad():
        if model(images[:1]).shape[1] < FEWEST_CLASSES:
            return torch.ones_like(labels, dtype=torch.bool)
    return _withstands(AutoAttackParts("apgd-t", eps), model, images, labels, seed)


@torch.no_grad()
def _same_scores(model: Model, images: Tensor, _: Tensor, __: int) -> Tensor:
    """Twice, the second time in two halves: neither chance nor the images beside it may change an image's scores."""
    scores = [model(images), torch.cat([model(part) for part in images.tensor_split(2) if len(part)])]
    first, second = (each.float() / (each.float().norm(dim=1, keepdim=True) + 1e-10) for each in scores)
    differ: Tensor = (first - second).norm(dim=1) > _SCORES_DIFFER  # what is no number does not: that is told elsewhere
    return ~differ


@torch.no_grad()
def _finite(model: Model, images: Tensor, _: Tensor, __: int) -> Tensor:
    return model(images).isfinite().all(dim=1)


@torch.no_grad()
def _like_probabilities(model: Model, images: Tensor, _: Tensor, __: int) -> Tensor:
    scores = model(images).float()
    alike: Tensor = (scores >= 0).all(dim=1) & ((scores.sum(dim=1) - 1).abs() <= _SUM_TO_ONE)
    return alike


def _gradient(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(cross_entropy(model(images).float(), labels), images)
    return gradient


def _has_gradient(model: Model, images: Tensor, labels: Tensor, _: int) -> Tensor:
    return _gradient(model, images, labels).flatten(1).ne(0).any(dim=1)


def _right_under_noise(eps: float, model: Model, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(device=images.device).manual_seed(seed)
    noise = torch.empty_like(images).uniform_(-eps, eps, generator=generator)
    return classified_rightly(model, (images + noise).clamp_(0, 1), labels)


def _withstands_steps(lengths: Sequence[float], model: Model, images: Tensor, labels: Tensor, _: int) -> Tensor:
    """Steps along the sign of the gradient (Goodfellow et al. 2015, arXiv 1412.6572), each from the image itself."""
    direction = _gradient(model, images, labels).sign()
    steps = [classified_rightly(model, (images + length * direction).clamp_(0, 1), labels) for length in lengths]
    return torch.stack(steps).all(dim=0)


def eps_curve(found: Mapping[str, Examined]) -> dict[str, Any] | None:
    """Return the accuracy of each path over eps, for machines, 0 first; None without attacks."""
    one = next(iter(found.values()), None)
    if one is None or one.under_attack is None:
        return None
    radii = [radius for radius in one.under_attack.many if radius <= max(CURVE) * one.eps]
    rows = {
        path: [each.right[CLEAN], *(each.under_attack.many[radius] for radius in radii)]
        for path, each in found.items()
        if each.under_attack is not None
    }
    accuracies = {path: [Accuracy.of(right) for right in row] for path, row in rows.items()}
    return {
        "attack": pgd_of(MANY, one.eps).name,
        "examples": len(one.right[CLEAN]),
        "eps": [0.0, *radii],
        "paths": {
            path: {"accuracy": [one.value for one in row], "interval": [list(one.interval) for one in row]}
            for path, row in accuracies.items()
        },
    }
