"""A pair of paths under attack: what attackers who know both, and the tripwire, make of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn

from smart_eval.tripwire.apgd import apgd
from smart_runtime.tripwire.operating_point import OperatingPoint, Pair
from smart_train.attacks import Attack

Both = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of the logits of the clean and of the robust path, (N, classes) each, and labels (N,): an objective, (N,)."""

AIMED: Mapping[str, Both] = {
    "aimed-at-clean": lambda clean, _, labels: F.cross_entropy(clean, labels, reduction="none"),
    "aimed-at-robust": lambda _, robust, labels: F.cross_entropy(robust, labels, reduction="none"),
    "aimed-at-both": lambda clean, robust, labels: (
        F.cross_entropy(clean, labels, reduction="none") + F.cross_entropy(robust, labels, reduction="none")
    ),
}
"""What is increased by attackers who do not care about the tripwire."""

SILENT, ADAPTIVE, ALARMIST = "silent", "adaptive", "alarmist"
KINDS = (*AIMED, SILENT, ADAPTIVE, ALARMIST)

_TARGETS = 3  # of the targeted attacks: the other classes that the robust path finds likeliest
_WEIGHTS = (0.3, 1.0, 3.0)  # of the tripwire beside the loss of the path that serves
_LEAK = 0.05
_SLOPE = 0.01
_SURE = 1.0  # nats by which the clean path should err: an attacker wants no more, for surer frames are rarer


@dataclass(frozen=True)
class AttackedPair:
    """Two networks over the same images, and an attacker with a budget.

    Attributes:
        clean, robust: images float (N, C, H, W) in [0, 1] to scores (N, classes), in eval mode.
        eps: radius in pixel units.
        steps: of each attack.
        seed: of the random starts.
    """

    clean: nn.Module
    robust: nn.Module
    eps: float
    steps: int
    seed: int

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what both paths give, float32 (N, classes) each."""
        return self.clean(images).float(), self.robust(images).float()

    @torch.no_grad()
    def arrays(self, images: Tensor) -> Pair:
        """Return the same as arrays, for the tripwire."""
        clean, robust = self.logits(images)
        return clean.cpu().numpy(), robust.cpu().numpy()

    def attacked(self, kind: str, images: Tensor, labels: Tensor, *, point: OperatingPoint) -> Tensor:
        """Return ``images`` (N, C, H, W) as an attacker of one of `KINDS` changes them.

        ``silent`` pushes both paths to one wrong class; ``adaptive`` knows the tripwire's table, makes the clean path
        err and keeps the log-likelihood ratio low; ``alarmist`` only wants the alarm. Where an adaptive attacker finds
        nothing that the clean path gets wrong, the image stays as it is: silence is all that is left.
        """
        if kind in AIMED:
            return self._aimed(AIMED[kind], images, labels)
        if kind == ALARMIST:
            return self._best(lambda clean, robust: soft_llr(point, clean, robust), images)
        return self.silent(images, labels) if kind == SILENT else self._adaptive(images, labels, point)

    def silent(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return ``images`` pushed, on both paths, to the wrong class that the robust path finds likeliest."""
        target = self._targets(images, labels)[:, 0]
        return self._best(lambda clean, robust: -_towards(clean, target) - _towards(robust, target), images)

    def _generator(self, images: Tensor) -> torch.Generator:
        return torch.Generator(images.device).manual_seed(self.seed)

    def _aimed(self, objective: Both, images: Tensor, labels: Tensor) -> Tensor:
        """PGD to its last step: an attacker does not stop at the border, for frames on it are transferred badly."""

        def scores(adversarial: Tensor) -> Tensor:
            return torch.stack(self.logits(adversarial), dim=2)

        def loss(found: Tensor, _: Tensor) -> Tensor:
            return objective(found[..., 0], found[..., 1], labels).sum()

        attack = Attack(name="pgd", eps=self.eps, steps=self.steps)
        return attack.run(scores, images, labels, generator=self._generator(images), loss=loss)

    def _best(self, objective: Callable[[Tensor, Tensor], Tensor], images: Tensor) -> Tensor:
        return apgd(
            lambda adversarial: objective(*self.logits(adversarial)),
            images,
            eps=self.eps,
            steps=self.steps,
            generator=self._generator(images),
        )

    @torch.no_grad()
    def _targets(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the wrong classes that the robust path finds likeliest, best first, (N, up to 3)."""
        robust = self.robust(images).float().scatter(1, labels[:, None], -torch.inf)
        found: Tensor = robust.topk(min(_TARGETS, robust.shape[1] - 1), dim=1).indices
        return found

    def _adaptive(self, images: Tensor, labels: Tensor, point: OperatingPoint) -> Tensor:
        """Score-aware APGD with several weights and targets; of all that errs, what the tripwire likes best.

        In the manner of Tramer et al. (2020, arXiv 2002.08347): the attack follows the detector's own statistic.
        """
        candidates = [self.silent(images, labels)]
        for weight in _WEIGHTS:

            def untargeted(clean: Tensor, robust: Tensor, weight: float = weight) -> Tensor:
                return _lead(clean, labels).clamp(max=_SURE) - weight * soft_llr(point, clean, robust)

            candidates.append(self._best(untargeted, images))
            for target in self._targets(images, labels).unbind(dim=1):

                def targeted(clean: Tensor, robust: Tensor, weight: float = weight, target: Tensor = target) -> Tensor:
                    pull = -_towards(clean, target) - _towards(robust, target)
                    return pull.clamp(max=0) - weight * soft_llr(point, clean, robust)

                candidates.append(self._best(targeted, images))
        found, quietest = images.clone(), torch.full(labels.shape, torch.inf, dtype=torch.float64, device=images.device)
        for one in candidates:
            clean, robust = self.arrays(one)
            llrs = torch.from_numpy(point.llrs(clean, robust)).to(images.device)
            errs = torch.from_numpy(clean.argmax(axis=1)).to(images.device) != labels
            better = errs & (llrs < quietest)
            found[better], quietest[better] = one[better], llrs[better]
        return found


def soft_llr(point: OperatingPoint, clean: Tensor, robust: Tensor) -> Tensor:
    """Return about the table's log-likelihood ratio of each frame, (N,), linear between the middles of the bins.

    Its gradient leads from bin to bin, which the table's own, zero almost everywhere, does not; where bins are equal,
    as the bounded ones are, it leads to lower scores.
    """
    clean, robust = (one / scale for one, scale in zip((clean, robust), point.temperatures, strict=True))
    score = SCORES[point.score](clean, robust)
    row, low_row = _place(score, _middles(point.score_edges))
    column, low_column = _place(confidence(clean), _middles(point.confidence_edges))
    table = torch.from_numpy(np.asarray(point.table)).to(clean)
    high_row = (low_row + 1).clamp(max=table.shape[0] - 1)
    high_column = (low_column + 1).clamp(max=table.shape[1] - 1)
    upper = (1 - column) * table[low_row, low_column] + column * table[low_row, high_column]
    lower = (1 - column) * table[high_row, low_column] + column * table[high_row, high_column]
    found: Tensor = (1 - row) * upper + row * lower + _SLOPE * score
    return found


def _middles(edges: tuple[float, ...]) -> list[float]:
    """Return a place in the middle of each bin; the outer ones are as wide as their neighbours."""
    if not edges:
        return [0.0]
    widths = [high - low for low, high in pairwise(edges)] or [1.0]
    ends = [edges[0] - widths[0], *edges, edges[-1] + widths[-1]]
    return [(low + high) / 2 for low, high in pairwise(ends)]


def _place(values: Tensor, middles: list[float]) -> tuple[Tensor, Tensor]:
    """Return how far each value is between two middles, 0 to 1, and the number of the lower one.

    Beyond the outer middles a little more or less, so that the gradient leads back.
    """
    at = torch.tensor(middles).to(values)
    low = (torch.searchsorted(at, values.detach().contiguous(), right=True) - 1).clamp(0, max(len(middles) - 2, 0))
    if len(middles) == 1:
        return torch.zeros_like(values), low
    share = (values - at[low]) / (at[low + 1] - at[low])
    inside = share.clamp(0, 1)
    return inside + _LEAK * (share - inside), low


def _towards(logits: Tensor, target: Tensor) -> Tensor:
    """Return how far the target is from leading by `_SURE` nats, 0 or more, (N,)."""
    return (_SURE + _lead(logits, target)).clamp(min=0)


def _lead(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how far the best other class lies above the labels', (N,)."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1) - own


def confidence(clean: Tensor) -> Tensor:
    """Return what `smart_runtime.tripwire.pair_scores.confidence` does, with a gradient."""
    best, label = clean.max(dim=1)
    return best - clean.scatter(1, label[:, None], -torch.inf).logsumexp(dim=1)


def _of_label(logits: Tensor, clean: Tensor) -> Tensor:
    return logits.log_softmax(dim=1).gather(1, clean.argmax(dim=1, keepdim=True))[:, 0]


def _margin(clean: Tensor, robust: Tensor) -> Tensor:
    return _lead(robust, clean.argmax(dim=1))


SCORES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disagreement": lambda clean, robust: 1 - _of_label(robust, clean).exp(),
    "kl": lambda clean, robust: F.kl_div(
        robust.log_softmax(dim=1), clean.log_softmax(dim=1), reduction="none", log_target=True
    ).sum(dim=1),
    "log-ratio": lambda clean, robust: _of_label(clean, clean) - _of_label(robust, clean),
    "margin": _margin,
}
"""The scores of `smart_runtime.tripwire.pair_scores`, with gradients."""
