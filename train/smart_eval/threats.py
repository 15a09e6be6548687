"""What attackers who do not aim at the path that runs achieve, and the worst that all attackers together do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from smart_eval.attacks.base import NamedAttack
from smart_eval.attacks.pgd import Pgd, as_pgd
from smart_eval.attacks.table import CLEAN
from smart_eval.measure import Run, chunk_seed, exactly, settings
from smart_eval.records import Right
from smart_train.accuracy import Accuracy, classified_rightly, tensors, wilson
from smart_train.attacks import Attack
from smart_train.data.images import Split
from smart_train.masking.attack_mode import attack_mode

TRANSFER = (
    "Transfer: the attacker knows the weights of one path and makes the images on it, the user runs another path; "
    "nothing is adapted to the path that runs."
)
UNKNOWN_PATH = (
    "Unknown path: the attacker knows the weights of every path but not which one runs, and commits to one image, made "
    "against the mean loss over all paths, before the user, or chance at each query, takes a path; a path at random is "
    "worst where for each image that one of all made here counts which leaves the fewest paths right."
)
WORST = (
    "Worst of all: the attacker knows which path runs but cannot change it; an image counts as right only if that path "
    "withstands the attacks on itself, the images made on each path and the one made against the mean loss."
)
CHOSEN_PATH = (
    "Chosen path: the attacker also decides which path runs, for each image anew; an image counts as right only if "
    "every path withstands everything that was tried on it."
)

EXPLAINED = (TRANSFER, UNKNOWN_PATH, WORST, CHOSEN_PATH)
"""What each figure assumes of the attacker."""

_RANDOM, _CHOSEN = "one at random", "the attacker's choice"  # rows for people; no path has a space in its name

Source = tuple[str, ...]
"""The paths whose mean loss images were made against: one path, or all of them."""


@dataclass(frozen=True)
class Threats:
    """What the paths of one network withstand of images that were made on one of them, or against their mean loss.

    Attributes:
        attack: that made the images.
        aimed: by path, which images withstand every attack that was aimed at the path, clean ones included, bool (N,).
        right: by source, each path alone and all together, then by the path that runs, which images are right without
            an attack and as the source's images, bool (N,).
        stood_in: whether other networks stood for the paths where the images were made.
    """

    attack: Pgd
    aimed: Mapping[str, Right]
    right: Mapping[Source, Mapping[str, Right]]
    stood_in: bool = False

    @property
    def paths(self) -> Source:
        """The paths, which together are the source of the mean loss."""
        return tuple(self.aimed)

    def worst(self, path: str) -> Right:
        """Return which images withstand all that was tried on ``path``, bool (N,)."""
        return _all([self.aimed[path], *(by_path[path] for by_path in self.right.values())])

    @property
    def chosen(self) -> Right:
        """Which images every path withstands in every form, bool (N,)."""
        return _all([self.worst(path) for path in self.paths])

    def shares(self, source: Source) -> npt.NDArray[np.float64]:
        """Return the share of paths that are right on each image of ``source``, float64 (N,)."""
        shares: npt.NDArray[np.float64] = np.mean([*self.right[source].values()], axis=0)
        return shares

    @property
    def worst_shares(self) -> npt.NDArray[np.float64]:
        """The same on that image of all sources which leaves the fewest paths right, float64 (N,)."""
        return reduce(np.minimum, [self.shares(source) for source in self.right])

    def document(self) -> dict[str, Any]:
        """Return it for machines."""
        mean = self.right[self.paths]
        return {
            "attack": {**self.attack.record(), **({"made_on": "source"} if self.stood_in else {})},
            "transfer": {
                "threat_model": TRANSFER,
                "paths": {
                    victim: {source: _figure(self.right[source,][victim]) for source in self.paths}
                    for victim in self.paths
                },
            },
            "unknown_path": {
                "threat_model": UNKNOWN_PATH,
                "paths": {path: _figure(mean[path]) for path in self.paths},
                "expected": _expected(self.shares(self.paths)),
                "expected_worst": _expected(self.worst_shares),
            },
            "worst": {
                "threat_model": WORST,
                "paths": {path: _figure(self.worst(path)) for path in self.paths},
            },
            "chosen_path": {"threat_model": CHOSEN_PATH, **_figure(self.chosen)},
        }


def strongest_pgd(attacks: Sequence[NamedAttack], *, eps: float) -> Pgd:
    """Return the PGD of most gradient steps out of ``attacks``, pgd20x1 of radius ``eps`` where there is none."""
    listed = [pgd for pgd in map(as_pgd, attacks) if pgd is not None]
    usual = Pgd(Attack(name="pgd", eps=eps, steps=20, restarts=1))
    return max(listed, key=lambda pgd: pgd.attack.steps * pgd.attack.restarts, default=usual)


def sources(paths: Sequence[str]) -> list[Source]:
    """Return what images are made against: the loss of each path, then the mean over all; nothing for a lone path."""
    return [*((path,) for path in paths), tuple(paths)] if len(paths) > 1 else []


def measure_threats(
    paths: Mapping[str, nn.Module],
    split: Split,
    *,
    attack: Pgd,
    right: Mapping[str, Mapping[str, Right]],
    made_on: Mapping[str, nn.Module] | None = None,
    run: Run,
) -> Threats:
    """Make images on each path and against the mean loss of all, and try them on every path.

    Every image that some path classifies rightly is perturbed to the last step, also once its source errs: images that
    are only just adversarial transfer badly, which would flatter the path that runs. The mean over the paths is exact:
    every path sees every image at every step. All sources have the same random starts. In float32 and eval mode.

    Args:
        paths: two or more by name, each images (N, C, H, W) in [0, 1] to scores (N, classes), on the run's device;
            their train/eval flags are as before afterwards.
        split: what to measure on.
        attack: makes the images.
        right: what `measure` found of the attacks on each path.
        made_on: the network that stands for each path where images are made, for paths without gradients; by default
            the paths themselves.
        run: as for `measure`. A chunk is attacked on all paths at once: the mean loss holds the gradients of each; when
            it is done, the source in words stands for the path.
    """
    made_on = paths if made_on is None else made_on
    about = {**run.settings(split), **settings(attack)}
    found: dict[Source, dict[str, Right]] = {}
    with exactly(), ExitStack() as stack:
        for model in [*paths.values(), *made_on.values()]:
            stack.enter_context(attack_mode(model))
        for source in sources(tuple(paths)):
            parts: dict[str, list[Right]] = {path: [] for path in paths}
            for number, where in run.chunks(len(split)):
                part = Split(split.images[where], split.labels[where])
                tried = cache(  # once for all paths, and not at all if every result is known
                    partial(
                        _tried,
                        paths,
                        part,
                        attack=attack,
                        models=[made_on[path] for path in source],
                        before={path: right[path][CLEAN][where] for path in paths},
                        seed=chunk_seed(run.seed, attack.name, number),
                        device=run.device,
                    )
                )
                for path in paths:
                    key = {**about, "made_on": list(source), "path": path, "chunk": number}
                    parts[path].append(run.records.of(key, count=len(part), judge=partial(_of, tried, path)))
                run.done(" and ".join(source), f"{attack.name} tried on all", len(part))
            found[source] = {path: np.concatenate(ones) for path, ones in parts.items()}
    return Threats(
        attack=attack,
        aimed={path: _all([*right[path].values()]) for path in paths},
        right=found,
        stood_in=made_on is not paths,
    )


def _tried(
    paths: Mapping[str, nn.Module],
    part: Split,
    *,
    attack: NamedAttack,
    models: Sequence[nn.Module],
    before: Mapping[str, Right],
    seed: int,
    device: torch.device | str,
) -> dict[str, Right]:
    """Return by path which images of ``part`` are right before and after an attack on the mean loss of ``models``."""
    right = {path: one.copy() for path, one in before.items()}
    wanted = np.logical_or.reduce([*before.values()])  # what no path gets right counts for none
    if not wanted.any():
        return right
    images, labels = tensors(part, np.flatnonzero(wanted), device)

    def scores(images: Tensor) -> Tensor:
        return torch.stack([model(images) for model in models], dim=2)

    adversarial = attack.for_transfer(scores, images, labels, seed=seed)
    for path, model in paths.items():
        right[path][wanted] &= classified_rightly(model, adversarial, labels).cpu().numpy()
    return right


def _of(tried: Callable[[], Mapping[str, Right]], path: str) -> Right:
    return tried()[path]


def table(threats: Sequence[tuple[str, Threats]]) -> tuple[str, list[str], list[list[str]]]:
    """Return title, columns and rows for people: of each model, by name, the accuracies on the images of each source.

    Of a path drawn at random it is the expectation; of the path that the attacker chooses, what all get right.
    """
    several = len(threats) > 1
    names = list(dict.fromkeys(path for _, one in threats for path in one.paths))
    title = f"Images made on one path, tried on each ({', '.join(sorted({one.attack.name for _, one in threats}))})"
    columns = [
        *(["model"] if several else []),
        "path that runs",
        *(f"made on {name}" for name in names),
        "on their mean loss",
        "worst of all",
    ]
    rows = []
    for model, one in threats:
        made = [one.right.get(source) for source in [*((name,) for name in names), one.paths]]
        worst = {**{path: one.worst(path) for path in one.paths}, _RANDOM: one.worst_shares, _CHOSEN: one.chosen}
        for runs, left in worst.items():
            figures = [*(_cell(right, runs) for right in made), f"{left.mean():.3f}"]
            rows.append([*([model] if several else []), runs, *figures])
    return title, columns, rows


def _cell(right: Mapping[str, Right] | None, runs: str) -> str:
    if right is None:  # another model has that path
        return "-"
    every = [*right.values()]
    found = np.mean(every, axis=0) if runs == _RANDOM else _all(every) if runs == _CHOSEN else right[runs]
    return f"{found.mean():.3f}"


def _all(rights: Sequence[Right]) -> Right:
    return reduce(np.logical_and, rights)


def _figure(right: Right) -> dict[str, Any]:
    return Accuracy.of(right).record


def _expected(shares: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return the mean; its interval is no narrower than it should be, since shares vary by p (1 - p) at the most."""
    value = float(shares.mean())
    return {"accuracy": value, "interval": list(wilson(value, len(shares)))}
