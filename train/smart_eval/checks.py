"""Signs that an attack failed where the network did not withstand: gradients that are hidden, missing or random.

What a robust accuracy is worth hangs on the attack. Each check looks for one way in which attacks by gradients are
fooled (Athalye et al. 2018, arXiv 1802.00420, section 3.1; Carlini et al. 2019, arXiv 1902.06705; the flags of
AutoAttack), on any model that gives scores. A check that counts images passes unless they are more than chance makes
them: see `above`. None of them proves that a robust accuracy is right.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import bdtrc
from torch import Tensor

from smart_eval.measure import NOTHING, Paths, exactly, in_chunks, run_settings, settings
from smart_eval.named import (
    AUTOATTACK,
    CLEAN,
    FEWEST_CLASSES,
    SQUARE,
    AutoAttackParts,
    NamedAttack,
    Pgd,
    has_pyautoattack,
)
from smart_eval.records import Records, Right
from smart_train.accuracy import Accuracy, classified_rightly, some_indices, tensors
from smart_train.attacks import Attack, Model, cross_entropy, margin
from smart_train.chunks import CHUNK
from smart_train.data.images import Split
from smart_train.masking.attack_mode import attack_mode

MOST_IMAGES = 1000
"""That are looked at, chosen by the seed: a share of one percent shows on so many, and more would only cost more."""

QUERIES = 300
"""Of Square where nobody asks for it: on digits at eps 0.3 they break 0.7 and more of what hidden gradients keep."""

CURVE = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The radii of the accuracy over eps, as multiples of eps; 0 is the clean accuracy, and 1 covers every image."""

CHANCE = 0.01  # at most so often does a network whose share is just the threshold fail a check that counts images
MOST_ZERO_GRADIENTS = 0.01  # AutoAttack flags any; a few are usual where a network of float32 is very sure
MOST_LOST_TO_NOISE = 0.05  # random signs hardly move a sum over many pixels, a gradient's do (Goodfellow et al. 2015)
MOST_LEFT_TO_NOISE = 0.05  # of accuracy under attack: no more than that can be too high
MOST_LEFT_WITHOUT_BOUND = 0.01  # at eps 1 any image may become any other, so nothing can be left but what got stuck
MOST_FOR_SQUARE = 0.002  # AutoAttack's own flag
LEAST_FOR_ONE_STEP = 1 / 3  # of what many steps break: 0.5 and more on networks on digits, 0.08 where it overfitted
MOST_BY_OTHER_LOSS = 0.05  # up to 0.042 on honest networks, 0.06 to 0.27 where scores were scaled or bounded
MOST_BY_SQUARE = 0.05  # that the attacks asked for leave; up to 0.02 on networks on digits, after PGD-20
MOST_DISTORTED = 0.05  # up to 0.04 on honest networks on digits, 0.15 to 0.45 after catastrophic overfitting

_SUM_TO_ONE = 1e-4  # many times what summing a thousand probabilities in float32 loses
_SCORES_DIFFER = 1e-4  # AutoAttack's, between scores of norm 1: other orders of summing in float32 stay far below
_SHORTER = (0.25, 0.5, 0.75)

_Probe = Callable[[Model, Tensor, Tensor, int], Tensor]
"""Of model, images, labels and a seed: of which images something holds, bool (N,)."""

FEW, MANY, STRONGEST = (7, 1), (20, 1), (50, 5)  # steps and restarts


@dataclass(frozen=True)
class Check:
    """One sign that was looked for.

    Attributes:
        name: such as ``zero-gradients``.
        path: of the network.
        passed: None if it could not be judged.
        figures: what it was judged by; shares and accuracies in [0, 1].
        sentence: what was found, for people; why not, if it was not judged.
    """

    name: str
    path: str
    passed: bool | None
    figures: Mapping[str, Any]
    sentence: str

    def document(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            "name": self.name,
            "path": self.path,
            "passed": self.passed,
            "figures": dict(self.figures),
            "sentence": self.sentence,
        }


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


def above(count: int, total: int, share: float) -> bool:
    """Return whether ``count`` of ``total`` is more than ``share`` of them, and more than chance makes of it.

    It is where at least so many would come up in less than 1 of 100 draws (the binomial distribution's tail): one image
    of a few hundred condemns nobody, and with many images the share itself is what counts.
    """
    return count > total * share and float(bdtrc(count - 1, total, share)) < CHANCE


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
    seed: int = 0,
    records: Records | None = None,
    about: Mapping[str, Any] = NOTHING,
    chunk: int = CHUNK,
    device: torch.device | str = "cpu",
    done: Callable[[str, str, int], None] = lambda _, __, ___: None,
) -> dict[str, Examined]:
    """Return by path what the checks look at; ``right`` is what `measure` found, the rest as for `measure`."""
    records = records or Records()
    chosen = which_images(len(split), seed=seed)
    part = Split(split.images[chosen], split.labels[chosen])
    about = run_settings(about, seed=seed, chunk=chunk, split=part)
    if len(part) < len(split):
        about["examples_of"] = len(split)
    found = {}
    with exactly():
        for path in net.path_names:
            model = net.path(path)
            with attack_mode(model):
                found[path] = examine(
                    model,
                    part,
                    right={name: which[chosen] for name, which in right[path].items()},
                    attacks=attacks,
                    eps=eps,
                    seed=seed,
                    records=records,
                    about={**about, "path": path},
                    chunk=chunk,
                    device=device,
                    done=partial(done, path),
                )
    return found


def examine(
    model: Model,
    split: Split,
    *,
    right: Mapping[str, Right],
    attacks: Sequence[NamedAttack],
    eps: float,
    seed: int = 0,
    records: Records,
    about: Mapping[str, Any],
    chunk: int = CHUNK,
    device: torch.device | str = "cpu",
    done: Callable[[str, int], None] = lambda _, __: None,
) -> Examined:
    """Return what the checks look at, of any model.

    Args:
        model: images, float32 (N, C, H, W) in [0, 1], to scores (N, classes), in eval mode.
        split: the images.
        right: by ``clean`` and the attacks' names, which of them are right, bool (len(split),).
        attacks: that were made.
        eps: their radius.
        seed: of all that is random.
        records: what is known already, and where results are kept.
        about: what the results depend on beside the probe and chunk; values that JSON has.
        chunk: images at a time.
        device: where the model is.
        done: called with the probe's name and the number of images, chunk by chunk; `work` says how many in all.
    """

    def probe(name: str, how: _Probe, among: Right | None = None, *, depends: bool = False, **key: Any) -> Right:
        """Return of which images, out of those ``among``, the probe holds."""

        def of(where: slice, its_seed: int) -> Right:
            found = np.ones(where.stop - where.start, dtype=bool) if among is None else among[where].copy()
            at = np.flatnonzero(found)
            if len(at):
                images, labels = tensors(split, where.start + at, device)
                found[at] = how(model, images, labels, its_seed).cpu().numpy()
            return found

        return in_chunks(
            len(split),
            result=of,
            records=records,
            key={**about, "attack": name, **key},
            of_chunk=_among(among) if depends and among is not None else None,
            seed=seed,
            chunk=chunk,
            done=partial(done, name),
        )

    def withstands(attack: NamedAttack, among: Right, *, depends: bool = False) -> Right:
        key = settings(attack)
        return probe(key.pop("attack"), partial(_withstands, attack), among, depends=depends, **key)

    same_scores = probe("same scores", _same_scores)
    finite = probe("finite scores", _finite)
    like_probabilities = probe("probabilities", _like_probabilities)
    has_gradient = probe("gradient", _has_gradient)
    under_attack = None
    if eps > 0:
        clean = right[CLEAN]
        noise = probe("uniform noise", partial(_right_under_noise, eps), eps=eps)
        one_step = probe("fgsm", partial(_withstands_steps, [eps]), clean, eps=eps)
        shorter = probe("fgsm, shorter", partial(_withstands_steps, [part * eps for part in _SHORTER]), clean, eps=eps)
        few = withstands(_pgd(FEW, eps), clean)
        many = {radius: withstands(_pgd(MANY, radius), clean) for radius in _radii(eps)}
        other_loss = probe("pgd, margin", partial(_withstands_margin, eps), clean, eps=eps, steps=MANY[0])
        by_gradients = [right[attack.name] for attack in attacks if attack.name not in {AUTOATTACK, SQUARE}]
        left = np.logical_and.reduce([clean, one_step, shorter, few, many[eps], other_loss, *by_gradients])
        queries = next((attack.record["queries"] for attack in attacks if attack.name == SQUARE), None)
        if queries is None and has_pyautoattack():
            own = AutoAttackParts(SQUARE, eps, queries=QUERIES)
            queries = own.queries
            by_square = left & ~withstands(own, left, depends=True)
        else:
            by_square = left & ~right.get(SQUARE, left)
            done(SQUARE, len(split))
        alone = withstands(_pgd(STRONGEST, eps), by_square, depends=True)
        alone = probe("apgd-t", partial(_withstands_targets, eps), alone, depends=True, eps=eps)
        under_attack = UnderAttack(
            noise=noise,
            one_step=one_step,
            shorter_steps=shorter,
            few=few,
            many=many,
            other_loss=other_loss,
            square_queries=queries,
            square_tried=int(left.sum()),
            by_square=by_square,
            square_alone=alone,
        )
    return Examined(
        eps=eps,
        attacks=attacks,
        right=right,
        same_scores=same_scores,
        finite=finite,
        like_probabilities=like_probabilities,
        has_gradient=has_gradient,
        under_attack=under_attack,
    )


def _radii(eps: float) -> list[float]:
    return sorted({min(1.0, multiple * eps) for multiple in CURVE} | {1.0})


def _among(among: Right) -> Callable[[slice], dict[str, Any]]:
    """Return what a result depends on that was found only of what other attacks left."""
    return lambda where: {"among": hashlib.blake2b(np.packbits(among[where]).tobytes(), digest_size=8).hexdigest()}


def _pgd(strength: tuple[int, int], eps: float) -> Pgd:
    return Pgd(Attack(eps=eps, steps=strength[0], restarts=strength[1]))


def _withstands(attack: NamedAttack, model: Model, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    right: Tensor = classified_rightly(model, attack(model, images, labels, seed=seed), labels)
    return right


def _withstands_margin(eps: float, model: Model, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(device=images.device).manual_seed(seed)
    found = _pgd(MANY, eps).attack.run(model, images, labels, generator=generator, early_stop=True, loss=margin)
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


def judge(path: str, found: Examined) -> list[Check]:
    """Return every check of one path."""
    own = [_robust_below_clean(found), _finite_scores(found), _same(found), _logits(found), _gradients(found)]
    if found.under_attack is None:
        own += [(name, None, {}, "eps is 0, so there was no attack") for name in _OF_ATTACKS]
    else:
        own += [check(found, found.under_attack) for check in _OF_ATTACKS.values()]
    return [Check(name, path, passed, figures, sentence) for name, passed, figures, sentence in own]


_Judged = tuple[str, bool | None, dict[str, Any], str]


def _share(count: int, of: Right) -> str:
    return f"{count} of {len(of)} images ({100 * count / len(of):.1f} %)"


def _robust_below_clean(found: Examined) -> _Judged:
    clean = float(found.right[CLEAN].mean())
    robust = {attack.name: float(found.right[attack.name].mean()) for attack in found.attacks}
    more = [name for name, accuracy in robust.items() if accuracy > clean]
    return (
        "robust-below-clean",
        not more,
        {"clean": clean, "robust": robust},
        f"Accuracy is above the clean one under {', '.join(more)}."
        if more
        else "Under no attack is accuracy above the clean one.",
    )


def _same(found: Examined) -> _Judged:
    differ = int((~found.same_scores).sum())
    return (
        "same-scores",
        differ == 0,
        {"images": len(found.same_scores), "differ": differ},
        f"The scores of {_share(differ, found.same_scores)} change from call to call or with the images beside them: "
        "attacks follow gradients of something else than what is judged."
        if differ
        else "Images have the same scores from call to call.",
    )


def _finite_scores(found: Examined) -> _Judged:
    infinite = int((~found.finite).sum())
    return (
        "finite-scores",
        infinite == 0,
        {"images": len(found.finite), "not_finite": infinite},
        f"The scores of {_share(infinite, found.finite)} are infinite or no numbers: the network overflows there, and "
        "nothing can be said of it."
        if infinite
        else "All scores are finite.",
    )


def _logits(found: Examined) -> _Judged:
    shares = bool(found.like_probabilities.all())
    return (
        "logits",
        not shares,
        {"images": len(found.like_probabilities), "like_probabilities": int(found.like_probabilities.sum())},
        "The scores of every image are probabilities: attacks take the softmax of them a second time, which leaves "
        "little of the gradient; take the network's last softmax away."
        if shares
        else "The scores are logits, not probabilities.",
    )


def _gradients(found: Examined) -> _Judged:
    zero = int((~found.has_gradient).sum())
    few = zero <= MOST_ZERO_GRADIENTS * len(found.has_gradient)  # no matter of chance, so without its allowance
    return (
        "zero-gradients",
        few,
        {"images": len(found.has_gradient), "zero": zero, "most": MOST_ZERO_GRADIENTS},
        f"The gradient is exactly zero at {_share(zero, found.has_gradient)}"
        + ("." if few else ", where attacks by gradients have nothing to follow."),
    )


def _noise(found: Examined, under: UnderAttack) -> _Judged:
    clean, noisy = int(found.right[CLEAN].sum()), int(under.noise.sum())
    lost, total = max(0, clean - noisy), len(under.noise)
    failed = above(lost, total, MOST_LOST_TO_NOISE)
    left = int(under.many[found.eps].sum())
    hopeless = failed and not above(left, total, MOST_LEFT_TO_NOISE)
    sentence = f"Uniform noise of eps takes accuracy from {clean / total:.3f} to {noisy / total:.3f}"
    if hopeless:
        sentence += f", but attacks leave only {_share(left, under.noise)}: nothing hides, eps is merely large"
    elif failed:
        sentence += ": chance finds what attacks are for, so eps is too large here or gradients hide it"
    return (
        "noise",
        None if hopeless else not failed,
        {
            "clean": clean / total,
            "accuracy": noisy / total,
            "most_lost": MOST_LOST_TO_NOISE,
            "left_by_attacks": left / total,
        },
        f"{sentence}.",
    )


def _one_step(found: Examined, under: UnderAttack) -> _Judged:
    """Catastrophic overfitting: one step of eps fails where many steps, or a shorter one, succeed.

    Training on single steps can end in a network that withstands these very steps and nothing else (Wong et al. 2020,
    arXiv 2001.03994): close to all images that it gets right after the step are wrong somewhere on the way there (Kim
    et al. 2021, arXiv 2010.01799, figure 1). The gap of accuracies alone condemns plain networks too, for which one
    step is merely a weak attack; what is judged is how few of the images that break under many steps break under one.
    """
    clean, one, many = found.right[CLEAN], under.one_step, under.many[found.eps]
    broken = int((clean & ~many).sum())
    by_one = int((clean & ~many & ~one).sum())
    distorted, kept = int((one & ~under.shorter_steps).sum()), int(one.sum())
    # Of all images: the few that one step leaves of an honest network may all be such that it steps over.
    right = int(clean.sum())
    weak = above(broken - by_one, broken, 1 - LEAST_FOR_ONE_STEP)
    bent = above(distorted, right, MOST_DISTORTED)
    accuracies = f"One step leaves an accuracy of {one.mean():.3f}, {MANY[0]} steps {many.mean():.3f}"
    why = [f"one step breaks only {by_one} of the {broken} images that many steps break"] * weak
    why += [f"{distorted} of the {right} images are right after one step and wrong after a shorter one"] * bent
    judged = bool(why) or above(broken, broken, 1 - LEAST_FOR_ONE_STEP)
    return (
        "one-step",
        not why if judged else None,
        {
            "one_step": float(one.mean()),
            "many_steps": float(many.mean()),
            "broken_by_many": broken,
            "of_these_by_one": by_one,
            "least_share": LEAST_FOR_ONE_STEP,
            "right_without": right,
            "right_after_one": kept,
            "of_these_wrong_on_the_way": distorted,
            "most_share": MOST_DISTORTED,
        },
        f"{accuracies}; {' and '.join(why)}: the sign of catastrophic overfitting, or of hidden gradients."
        if why
        else f"{accuracies}: "
        + ("one step is as strong as it should be." if judged else f"too few images, {broken}, break to compare them."),
    )


def _turned(weaker: Right, stronger: Right) -> bool:
    """Return whether what should be the stronger attack is the weaker one: a sign test on the images that differ."""
    against = int((~weaker & stronger).sum())
    return above(against, against + int((weaker & ~stronger).sum()), 0.5)


def _more_steps(found: Examined, under: UnderAttack) -> _Judged:
    runs = {_pgd(FEW, found.eps).attack: under.few, _pgd(MANY, found.eps).attack: under.many[found.eps]}
    # Steps of a length of the user's own may be too short to come anywhere.
    usual = [one for one in found.attacks if isinstance(one, Pgd) and one.attack.step_size is None]
    runs |= {one.attack: found.right[one.name] for one in usual}
    turned = [
        (weaker.label, stronger.label)
        for weaker, left in runs.items()
        for stronger, right in runs.items()
        if weaker.steps < stronger.steps and weaker.restarts <= stronger.restarts and _turned(left, right)
    ]
    return (
        "more-steps",
        not turned,
        {"accuracy": {attack.label: float(right.mean()) for attack, right in runs.items()}},
        "; ".join(f"{weaker} breaks images that {stronger} does not break" for weaker, stronger in turned)
        + ": more steps should not help the defender."
        if turned
        else "More steps of PGD do not help the defender.",
    )


def _other_loss(found: Examined, under: UnderAttack) -> _Judged:
    usual, other = under.many[found.eps], under.other_loss
    more = int(usual.sum()) - int(other.sum())
    failed = above(max(0, more), len(usual), MOST_BY_OTHER_LOSS) and _turned(other, usual)
    return (
        "other-loss",
        not failed,
        {"cross_entropy": float(usual.mean()), "margin": float(other.mean()), "most_share": MOST_BY_OTHER_LOSS},
        f"{MANY[0]} steps of PGD leave an accuracy of {usual.mean():.3f} on the cross-entropy and {other.mean():.3f} "
        "on the margin between scores"
        + (
            ": the scale of the scores hides the first one's gradient; quote an attack that does not depend on it, "
            "such as autoattack."
            if failed
            else "."
        ),
    )


def _larger_eps(found: Examined, under: UnderAttack) -> _Judged:
    points = [(0.0, found.right[CLEAN]), *under.many.items()]
    turned = [(small, large) for (small, left), (large, right) in itertools.pairwise(points) if _turned(left, right)]
    return (
        "larger-eps",
        not turned,
        {"eps": [eps for eps, _ in points], "accuracy": [float(right.mean()) for _, right in points]},
        "; ".join(f"eps {small:.4g} breaks images that {large:.4g} does not break" for small, large in turned)
        + ": what is possible within a smaller eps is possible within a larger one."
        if turned
        else "A larger eps does not help the defender.",
    )


def _no_bound(_: Examined, under: UnderAttack) -> _Judged:
    left = under.many[1.0]
    failed = above(int(left.sum()), len(left), MOST_LEFT_WITHOUT_BOUND)
    return (
        "no-bound",
        not failed,
        {"accuracy": float(left.mean()), "most": MOST_LEFT_WITHOUT_BOUND},
        f"At eps 1, where every image may become any other, {_share(int(left.sum()), left)} are left"
        + (": the attack does not find what is there." if failed else "."),
    )


def _left_of(found: Examined) -> Right:
    left: Right = np.logical_and.reduce([*found.right.values()])
    return left


def _square(found: Examined, under: UnderAttack) -> _Judged:
    if under.square_queries is None:
        return (
            "square",
            None,
            {},
            "Square was not run: pyautoattack is not installed; pip install 'smart-edge[eval]' installs it.",
        )
    alone, total = int(under.square_alone.sum()), len(under.square_alone)
    more = int((_left_of(found) & under.by_square).sum())
    mislead, weak = above(alone, total, MOST_FOR_SQUARE), above(more, total, MOST_BY_SQUARE)
    why = [": the gradients mislead"] * mislead
    why += [
        f", and {_share(more, under.by_square)} that the attacks asked for leave: they are too weak to quote"
    ] * weak
    return (
        "square",
        not why,
        {
            "queries": under.square_queries,
            "images": len(under.square_alone),
            "left_for_square": under.square_tried,
            "broken_by_square_alone": alone,
            "most_share": MOST_FOR_SQUARE,
            "broken_by_square_and_not_by_those_asked_for": more,
            "most_share_of_these": MOST_BY_SQUARE,
        },
        f"Square, with {under.square_queries} queries and no gradient, breaks {_share(alone, under.square_alone)} "
        f"that no attack by gradients breaks{''.join(why)}.",
    )


_OF_ATTACKS: Mapping[str, Callable[[Examined, UnderAttack], _Judged]] = MappingProxyType(
    {
        "noise": _noise,
        "one-step": _one_step,
        "more-steps": _more_steps,
        "other-loss": _other_loss,
        "larger-eps": _larger_eps,
        "no-bound": _no_bound,
        "square": _square,
    }
)


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
        "attack": _pgd(MANY, one.eps).name,
        "examples": len(one.right[CLEAN]),
        "eps": [0.0, *radii],
        "paths": {
            path: {"accuracy": [one.value for one in row], "interval": [list(one.interval) for one in row]}
            for path, row in accuracies.items()
        },
    }


def summary(checks: Sequence[Check], *, model: str) -> list[str]:
    """Return what to tell people of a model's checks, in lines; nothing without checks."""
    if not checks:
        return []
    failed = [check for check in checks if check.passed is False]
    unjudged = [check for check in checks if check.passed is None]
    lines = [f"{model}: SUSPECT, {len(failed)} of {len(checks)} checks failed:"] if failed else []
    lines += [f"  {check.path}, {check.name}: {check.sentence}" for check in failed]
    if failed:
        lines += ["Its accuracies under attack may be too high; docs/evaluation.md says what each check means."]
    else:
        lines += [f"{model}: {len(checks) - len(unjudged)} checks for hidden gradients passed"]
    reasons = {(check.name, check.sentence): None for check in unjudged}
    return lines + [f"  not judged, {name}: {reason}" for name, reason in reasons]
