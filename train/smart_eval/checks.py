"""Signs that an attack failed where the network did not withstand: gradients that are hidden, missing or random.

What a robust accuracy is worth hangs on the attack. Each check looks for one way in which attacks by gradients are
fooled (Athalye et al. 2018, arXiv 1802.00420, section 3.1; Carlini et al. 2019, arXiv 1902.06705; the flags of
AutoAttack), on any model that gives scores. A check that counts images passes unless they are more than chance makes
them: see `above`. None of them proves that a robust accuracy is right.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.special import bdtrc

from smart_eval.attacks.pgd import Pgd
from smart_eval.attacks.table import CLEAN
from smart_eval.examination import FEW, MANY, Examined, UnderAttack, pgd_of
from smart_eval.records import Right

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


def above(count: int, total: int, share: float) -> bool:
    """Return whether ``count`` of ``total`` is more than ``share`` of them, and more than chance makes of it.

    It is where at least so many would come up in less than 1 of 100 draws (the binomial distribution's tail): one image
    of a few hundred condemns nobody, and with many images the share itself is what counts.
    """
    return count > total * share and float(bdtrc(count - 1, total, share)) < CHANCE


def judge(path: str, found: Examined) -> list[Check]:
    """Return every check of one path."""
    judged = {name: check(found) for name, check in _OF_NETWORKS.items()}
    for name, of_attack in _OF_ATTACKS.items():
        under = found.under_attack
        judged[name] = (None, {}, "eps is 0, so there was no attack") if under is None else of_attack(found, under)
    return [Check(name, path, *each) for name, each in judged.items()]


_Judged = tuple[bool | None, dict[str, Any], str]
"""Whether a check passed, its figures and its sentence."""


def _share(count: int, of: Right) -> str:
    return f"{count} of {len(of)} images ({100 * count / len(of):.1f} %)"


def _robust_below_clean(found: Examined) -> _Judged:
    clean = float(found.right[CLEAN].mean())
    robust = {attack.name: float(found.right[attack.name].mean()) for attack in found.attacks}
    more = [name for name, accuracy in robust.items() if accuracy > clean]
    return (
        not more,
        {"clean": clean, "robust": robust},
        f"Accuracy is above the clean one under {', '.join(more)}."
        if more
        else "Under no attack is accuracy above the clean one.",
    )


def _same(found: Examined) -> _Judged:
    differ = int((~found.same_scores).sum())
    return (
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
    runs = {pgd_of(FEW, found.eps).attack: under.few, pgd_of(MANY, found.eps).attack: under.many[found.eps]}
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
        not failed,
        {"accuracy": float(left.mean()), "most": MOST_LEFT_WITHOUT_BOUND},
        f"At eps 1, where every image may become any other, {_share(int(left.sum()), left)} are left"
        + (": the attack does not find what is there." if failed else "."),
    )


def _square(found: Examined, under: UnderAttack) -> _Judged:
    if under.square_queries is None:
        return (
            None,
            {},
            "Square was not run: pyautoattack is not installed; pip install 'smart-edge[eval]' installs it.",
        )
    alone, total = int(under.square_alone.sum()), len(under.square_alone)
    more = int(np.logical_and.reduce([*found.right.values(), under.by_square]).sum())
    mislead, weak = above(alone, total, MOST_FOR_SQUARE), above(more, total, MOST_BY_SQUARE)
    why = [": the gradients mislead"] * mislead
    why += [
        f", and {_share(more, under.by_square)} that the attacks asked for leave: they are too weak to quote"
    ] * weak
    return (
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


_OF_NETWORKS: Mapping[str, Callable[[Examined], _Judged]] = MappingProxyType(
    {
        "robust-below-clean": _robust_below_clean,
        "finite-scores": _finite_scores,
        "same-scores": _same,
        "logits": _logits,
        "zero-gradients": _gradients,
    }
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
