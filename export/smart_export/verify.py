"""Does a graph compute what its masked path computes?"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from smart_export.errors import VerificationError
from smart_export.precision import ROUNDING_MARGIN, TOLERANCE_FP32
from smart_runtime.bundle.manifest import DENSE
from smart_runtime.engines import Engine
from smart_train.accuracy import to_tensor
from smart_train.checkpoint.format import Samples
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.batch_independence import batch_dependence, fixed_images

RANDOM_IMAGES = 256
DENSE_IMAGES = 16  # of each kind, for the baseline: it is there for its latency, and costs the most to run
_CHUNK_IMAGES, _CHUNK_VALUES = 64, 2**19  # a core each: features of a chunk of large images would fill the memory
_RANDOM_SEED = 0
_INT8_LEVELS = 0.1  # in another batch a float may round to the next of 255 levels

Images = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """How well two networks agree.

    Attributes:
        max_rel_diff: max|a-b| / max(1, max|a|) over all images and scores.
        argmax_agreement: fraction of the images with the same best class, among those whose two best scores differ by
            more than the tolerance; 1.0 if there are none.
        images: how many images were compared.
        tolerance: what ``max_rel_diff`` may be, by precision (`smart_export.precision.TOLERANCES`). Of one that has
            none, twice the ``max_rel_diff`` of the export, by which a later check knows the graph again: kernels of
            other machines round elsewhere.
    """

    max_rel_diff: float
    argmax_agreement: float
    images: int
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the graph is the masked path, within rounding."""
        return self.max_rel_diff <= self.tolerance and self.argmax_agreement == 1.0


def verification_images(
    samples: Samples, *, path: str, random_images: int = RANDOM_IMAGES, most: int | None = None
) -> list[Images]:
    """Return float32 (N, C, H, W) batches: the samples, their versions attacked on ``path``, and noise.

    Of each kind there are at most ``most`` images, where that is given.
    """
    real = [to_tensor(images[:most]).numpy() for images in (samples.images, samples.adversarial[path])]
    generator = np.random.default_rng(_RANDOM_SEED)
    noise = generator.random((random_images, *real[0].shape[1:]), dtype=np.float32)
    return [*real, noise[:most]]


def reference_scores(reference: nn.Module, batches: Sequence[Images]) -> Scores:
    """Return the scores (N, classes) of a torch network in eval mode for all images of ``batches``."""

    def run(chunk: Images) -> Scores:
        with torch.no_grad():  # holds for one thread only
            scores: Scores = reference(torch.from_numpy(chunk)).numpy()
        return scores

    threads = torch.get_num_threads()
    with attack_mode(reference):
        torch.set_num_threads(1)
        try:
            return _run_chunks(run, batches)
        finally:
            torch.set_num_threads(threads)


def engine_scores(engine: Engine, batches: Sequence[Images]) -> Scores:
    """Return the scores (N, classes) of a graph for all images of ``batches``; one thread a call is enough for it."""
    return _run_chunks(engine.run, batches)


def _run_chunks(run: Callable[[Images], Scores], batches: Sequence[Images]) -> Scores:
    """Run chunks of the images on all cores, a whole chunk each.

    Threads that share one convolution wait for each other at its end: that costs a tenth on idle cores, and made it
    four times slower on cores that other programs used too.
    """
    size = max(1, min(_CHUNK_IMAGES, _CHUNK_VALUES // batches[0][0].size))
    chunks = [
        np.ascontiguousarray(batch[start : start + size]) for batch in batches for start in range(0, len(batch), size)
    ]
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        return np.concatenate(list(pool.map(run, chunks)))


def agreement(expected: Scores, got: Scores, *, tolerance: float | None = TOLERANCE_FP32) -> Agreement:
    """Compare the scores (N, classes) of a network and of its graph.

    Args:
        expected: the network's.
        got: the graph's, for the same images.
        tolerance: what ``max_rel_diff`` may be, and the margin under which a tie is a tie; None for twice the
            difference that is found.
    """
    scale = max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(expected - got).max()) / scale
    if tolerance is None:
        tolerance = 2 * difference
    ranked = np.sort(expected, axis=1)
    clear = (ranked[:, -1] - ranked[:, -2]) / scale > tolerance
    same = expected.argmax(axis=1) == got.argmax(axis=1)
    return Agreement(
        max_rel_diff=difference,
        argmax_agreement=float(same[clear].mean()) if clear.any() else 1.0,
        images=len(expected),
        tolerance=tolerance,
    )


def require(found: Agreement, *, name: str, rounding: float | None = None) -> None:
    """Raise VerificationError unless ``found`` holds.

    ``rounding`` is what float32 costs the network itself (`smart_export.proof.Proof`), whose fold is proved then; None
    where nothing is known of it.
    """
    if not math.isfinite(found.max_rel_diff):
        raise VerificationError(
            f"the graph '{name}' gives scores that are infinite or NaN; a value in it is larger than its precision "
            f"holds: take a higher one{', or --baseline none' if name == DENSE else ''}"
        )
    if not found.holds and rounding is not None and rounding > found.tolerance / ROUNDING_MARGIN:
        raise VerificationError(
            f"rounding to float32 changes the scores of '{name}' by {rounding:.2g} of the largest before any export, "
            f"so that no graph can be verified (the fold is right: float64 proves it); train the network longer"
            f"{', or --baseline none leaves this graph out' if name == DENSE else ''}"
        )
    if not found.holds:
        what = "the unmasked network" if name == DENSE else "its masked path"
        raise VerificationError(
            f"the graph '{name}' does not agree with {what} within {found.tolerance:g} and on every class: over "
            f"{found.images} images the difference is {found.max_rel_diff:.3g}, and {found.argmax_agreement:.1%} of "
            "the classes are equal; it does not belong to this checkpoint, or the fold is wrong: report it"
        )


def require_batch_independence(
    engine: Engine, input_shape: tuple[int, int, int], *, name: str, tolerance: float | None
) -> None:
    """Check that an image's scores in ``engine`` are the same alone, in batches of 2, 3 and 8, and in another order.

    Args:
        engine: runs the graph.
        input_shape: channels, height, width.
        name: of the graph.
        tolerance: what scores may differ by, as a fraction of the largest; None for int8.

    Raises:
        VerificationError: if they are not.
    """
    found = batch_dependence(
        lambda images: torch.from_numpy(engine.run(images.numpy())),
        fixed_images(input_shape),
        allowed=_INT8_LEVELS if tolerance is None else tolerance,
    )
    if found is not None:
        raise VerificationError(
            f"in the graph '{name}' an image's scores depend on the batch it comes in: {found[0]}; a device answers "
            f"images one at a time, so let nothing in the network mix the images of a batch or drop its axis"
        )
