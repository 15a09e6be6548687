"""Does a graph compute what its masked path computes, and classify as well? What it may lose is the accuracy gate's."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from smart_export.errors import ExportError, GateError, VerificationError
from smart_export.precision import TOLERANCE_FP32
from smart_runtime.bundle.manifest import DENSE
from smart_runtime.engines import Engine
from smart_train.accuracy import Z_95, to_tensor
from smart_train.checkpoint.format import Samples
from smart_train.masking.attack_mode import attack_mode

RANDOM_IMAGES = 256
DENSE_IMAGES = 16  # of each kind, for the baseline: it is there for its latency, and costs the most to run
_CHUNK_IMAGES, _CHUNK_VALUES = 64, 2**19  # a core each: features of a chunk of large images would fill the memory
_RANDOM_SEED = 0

Images = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]
Right = npt.NDArray[np.bool_]


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
    """Return float32 (N, C, H, W) batches: samples, the same attacked on ``path``, noise; ``most`` of each at most."""
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
    """Compare the scores (N, classes) of a network and of its graph for the same images.

    ``tolerance`` is also the margin under which a tie is a tie; None takes twice the difference that is found.
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


def require(found: Agreement, *, name: str) -> None:
    """Raise VerificationError unless ``found`` holds."""
    if not math.isfinite(found.max_rel_diff):
        raise VerificationError(
            f"the graph '{name}' gives scores that are infinite or NaN; a value in it is larger than its precision "
            f"holds: take a higher one{', or --baseline none' if name == DENSE else ''}"
        )
    if not found.holds:
        what = "the unmasked network" if name == DENSE else "its masked path"
        raise VerificationError(
            f"the graph '{name}' does not agree with {what} within {found.tolerance:g} and on every class: over "
            f"{found.images} images the difference is {found.max_rel_diff:.3g}, and {found.argmax_agreement:.1%} of "
            "the classes are equal; it does not belong to this checkpoint, or the fold is wrong: report it"
        )


@dataclass(frozen=True)
class PairedAccuracy:
    """One accuracy of a masked path (``before``) and of its graph (``after``) on the same ``examples``, in [0, 1].

    ``drop`` is ``before - after``, negative where the graph is better; ``low`` to ``high`` is its 95% interval.
    """

    before: float
    after: float
    drop: float
    low: float
    high: float
    examples: int


@dataclass(frozen=True)
class PathGate:
    """Both accuracies of one path; an image counts as robust if it is classified rightly before and under attack."""

    clean_accuracy: PairedAccuracy
    robust_accuracy: PairedAccuracy

    @property
    def drops(self) -> Mapping[str, PairedAccuracy]:
        """Both, by their names for people."""
        return {"clean accuracy": self.clean_accuracy, "robust accuracy": self.robust_accuracy}


def paired_accuracy(before: Right, after: Right) -> PairedAccuracy:
    """Compare which images are classified rightly before and after, bool (N,) each, N at least 1.

    The interval is the adjusted Wald one of Bonett and Price (2012, Journal of Educational and Behavioral Statistics
    37(4), 479-488): with one image added to each of the two kinds that differ, p = (lost + 1) / (N + 2)
    and q = (gained + 1) / (N + 2), it is p - q -+ 1.96 sqrt((p + q - (p - q)^2) / (N + 2)). Unlike the plain Wald
    interval it is no point where nothing differs.
    """
    count = len(before)
    p = (int(np.count_nonzero(before & ~after)) + 1) / (count + 2)
    q = (int(np.count_nonzero(~before & after)) + 1) / (count + 2)
    half = Z_95 * math.sqrt((p + q - (p - q) ** 2) / (count + 2))
    right_before, right_after = int(np.count_nonzero(before)), int(np.count_nonzero(after))
    return PairedAccuracy(
        before=right_before / count,
        after=right_after / count,
        drop=(right_before - right_after) / count,
        low=max(-1.0, p - q - half),
        high=min(1.0, p - q + half),
        examples=count,
    )


def path_gate(
    labels: npt.NDArray[np.int64], *, clean: tuple[Scores, Scores], adversarial: tuple[Scores, Scores]
) -> PathGate:
    """Compare a masked path and its graph by the ``labels`` (N,).

    Both pairs are scores (N, classes) of the path and of the graph: for the images, and for their adversarial versions,
    made on the masked path.
    """
    right = [scores.argmax(axis=1) == labels for scores in clean]
    robust = [was & (scores.argmax(axis=1) == labels) for was, scores in zip(right, adversarial, strict=True)]
    return PathGate(clean_accuracy=paired_accuracy(*right), robust_accuracy=paired_accuracy(*robust))


def check_max_drop(max_drop: float) -> None:
    """Raise ExportError unless ``max_drop`` is a fraction in [0, 1]."""
    if not 0 <= max_drop <= 1:  # NaN neither
        raise ExportError(f"expected a drop of 0 to 100 points, got {100 * max_drop:g}; 1 is usual")


def require_gate(found: PathGate, *, name: str, max_drop: float) -> None:
    """Raise GateError if an accuracy of the graph ``name`` drops by more than ``max_drop``, a fraction.

    The drop itself decides, not its interval: on 128 images that reaches to 2.1 points where nothing differs at all, so
    its upper end would let nothing pass, and its lower end would let several points go.
    """
    what, worst = max(found.drops.items(), key=lambda item: item[1].drop)
    if worst.drop > max_drop + 1e-9:  # a drop of exactly so many images passes, however it rounds
        raise GateError(
            f"the {what} of the graph '{name}' is {100 * worst.drop:.2g} points below that of its masked path, "
            f"{100 * max_drop:g} are allowed ({worst.before:.3f} to {worst.after:.3f} on {worst.examples} images, 95% "
            f"interval of the drop {100 * worst.low:.1f} to {100 * worst.high:.1f} points); judge on more images with "
            "--data, calibrate on more with --calibration, take a higher precision, or allow more with --max-drop"
        )
