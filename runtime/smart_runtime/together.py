"""What runs several paths for one call on the engines that these have anyway: all of them, or a mix of two."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from smart_runtime.bundle.manifest import Manifest
from smart_runtime.bundle.mixes import MixInfo
from smart_runtime.engines import Scores
from smart_runtime.inputs import Images
from smart_runtime.serving import LoadedPath, Served, prepared

ALL = "*"
"""Stands for all paths at once where a path is looked up; no path is called that."""

_LEAST = float(np.finfo(np.float32).min)


class LoadedTogether(Served):
    """Several loaded paths that one call runs, one after the other on the same images.

    It has no engine of its own. A call in it counts as one in each of its parts, so it must be retired before them.
    """

    def __init__(self, name: str, parts: Sequence[LoadedPath]) -> None:
        super().__init__(name)
        self.parts = tuple(parts)
        for part in self.parts:
            part.shared_by = (*part.shared_by, self.calls)

    def all_scores_of(self, images: Images) -> dict[str, tuple[Scores, int]]:
        """Return by path the scores of ``images``, and the nanoseconds they took, of the first with preparation."""
        last = time.perf_counter_ns()
        batch = prepared(images, self.parts[0].spec)
        found = {}
        for part in self.parts:
            scores = part.run(batch)
            now = time.perf_counter_ns()
            found[part.name] = scores, now - last
            last = now
        return found

    def scores_of(self, images: Images) -> Scores:
        """Not for several paths that are not mixed."""
        raise NotImplementedError

    def close_if_idle(self) -> None:
        """Close the parts that are retired and that no other call is in."""
        for part in self.parts:
            part.close_if_idle()


class LoadedMix(LoadedTogether):
    """A mix of two loaded paths, which answers as a path of its own."""

    def __init__(self, mix: MixInfo, parts: Sequence[LoadedPath]) -> None:
        super().__init__(mix.name, parts)
        self._share, self._temperatures = mix.share, mix.temperatures

    def scores_of(self, images: Images) -> Scores:
        """See `Served.scores_of`; the scores are the logarithms of the mix's probabilities."""
        (first, _), (second, _) = self.all_scores_of(images).values()
        return mixed(first, second, share=self._share, temperatures=self._temperatures)


def mixed(first: Scores, second: Scores, *, share: float, temperatures: tuple[float, float]) -> Scores:
    """Return log((1 - share) softmax(first / T_first) + share softmax(second / T_second)), float32 (N, classes).

    Their argmax and their softmax are those of the mixed probabilities. This is the mix of MixedNUTS (Bai et al. 2024,
    arXiv 2402.02263, equation 2) with temperatures for its nonlinear transform.
    """
    one = _log_softmax(first, temperatures[0]) + np.log1p(-share)
    other = _log_softmax(second, temperatures[1]) + np.log(share)
    found: Scores = np.maximum(np.logaddexp(one, other), _LEAST).astype(np.float32)
    return found


def _log_softmax(scores: Scores, temperature: float) -> npt.NDArray[np.float64]:
    shifted = (scores.astype(np.float64) - scores.max(axis=1, keepdims=True)) / temperature
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def with_mixes(loaded: Mapping[str, LoadedPath], manifest: Manifest) -> dict[str, Served]:
    """Return all paths of a bundle, which are loaded, with what runs several of them: all at once, and each mix."""
    mixes = [LoadedMix(mix, [loaded[path] for path in mix.paths]) for mix in manifest.mixes.values()]
    everything = LoadedTogether(ALL, [loaded[path] for path in manifest.paths])
    return {**loaded, ALL: everything, **{mix.name: mix for mix in mixes}}


def retire_all(loaded: Mapping[str, Served]) -> None:
    """Retire everything, what runs on engines of others before those."""
    for one in sorted(loaded.values(), key=lambda one: isinstance(one, LoadedPath)):
        one.retire()
