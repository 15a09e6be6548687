"""Does a graph compute what its masked path computes, and classify as well? What it may lose is the accuracy gate's."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from smart_export.errors import ExportError, GateError, RoundingError, VerificationError
from smart_export.precision import ROUNDING_MARGIN, TOLERANCE_FP32
from smart_runtime.bundle.manifest import DENSE
from smart_runtime.engines import Engine
from smart_runtime.outputs import check_shape
from smart_runtime.reference import ParityResult, image_count, parity
from smart_train.accuracy import Z_95, to_tensor
from smart_train.checkpoint.format import Samples
from smart_train.masking.attack_mode import attack_mode

RANDOM_IMAGES = 256
DENSE_IMAGES = 16  # of each kind, for the baseline: it is there for its latency, and costs the most to run
_CHUNK_IMAGES, _CHUNK_VALUES = 64, 2**19  # a core each: features of a chunk of large images would fill the memory
_RANDOM_SEED = 0
_ROUNDING = 1e-9  # a drop of exactly as many images as are allowed passes, however it rounds

Undecided: TypeAlias = Literal["warn", "refuse"]
"""What happens where the images are too few to decide (see `require_gate`)."""

UNDECIDED: tuple[Undecided, ...] = get_args(Undecided)

Images = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]
Right = npt.NDArray[np.bool_]


def verification_images(
    samples: Samples, *, path: str, random_images: int = RANDOM_IMAGES, most: int | None = None
) -> list[Images]:
    """Return float32 (N, C, H, W) batches: samples, the same attacked on ``path``, noise; ``most`` of each at most."""
    real = [to_tensor(images[:most]).numpy() for images in (samples.images, samples.adversarial[path])]
    generator = np.random.default_rng(_RANDOM_SEED)
    noise = generator.random((random_images, *real[0].shape[1:]), dtype=np.float32)
    return [*real, noise[:most]]


def reference_images(samples: Samples, *, paths: Sequence[str], classes: int) -> Images:
    """Return what a bundle keeps for devices to be proved by, float32 (N, C, H, W): a few of what it is verified on.

    One of each kind in turn: a sample, the same attacked on each path, noise.
    """
    channels, height, width = to_tensor(samples.images[:1]).shape[1:]
    count = image_count((channels, height, width), classes=classes)
    found = [verification_images(samples, path=path, random_images=count, most=count) for path in paths]
    kinds = [found[0][0], *(attacked for _, attacked, _ in found), found[0][2]]
    return np.stack([kind[i] for i in range(count) for kind in kinds if i < len(kind)][:count])


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


def engine_scores(engine: Engine, batches: Sequence[Images], *, classes: int, name: str) -> Scores:
    """Return the scores (N, classes) of the graph ``name`` for all images of ``batches``; one thread a call is enough.

    Raises:
        EngineError: if it fails, or gives scores of another shape.
    """

    def run(chunk: Images) -> Scores:
        scores = engine.run(chunk)
        check_shape(scores, images=len(chunk), classes=classes, name=name)
        return scores

    return _run_chunks(run, batches)


def _run_chunks(run: Callable[[Images], Scores], batches: Sequence[Images]) -> Scores:
    """Run chunks of the images on all cores, a whole chunk each.

    Threads that share one convolution wait for each other at its end: that costs a tenth on idle cores, and made it
    four times slower on cores that other programs used too.
    """
    size = max(1, min(_CHUNK_IMAGES, _CHUNK_VALUES // batches[0][0].size))
    chunks = [
        np.ascontiguousarray(batch[start : start + size]) for batch in batches for start in range(0, len(batch), size)
    ]
    pool = ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)))
    try:
        return np.concatenate(list(pool.map(run, chunks)))
    finally:  # after an error or Control-C nobody waits for the chunks that are left
        pool.shutdown(cancel_futures=True)


def agreement(expected: Scores, got: Scores, *, tolerance: float | None = TOLERANCE_FP32) -> ParityResult:
    """Compare the scores (N, classes) of a network and of its graph for the same images.

    ``tolerance`` is what they may differ by, by precision (`smart_export.precision.TOLERANCES`). Of one that has none,
    None takes twice the difference of the export, by which a later check knows the graph again: kernels of other
    machines round elsewhere.
    """
    return parity(expected, got, tolerance=tolerance)


def require(found: ParityResult, *, name: str, rounding: float | None = None) -> None:
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
        raise RoundingError(
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


class Verdict(str, Enum):
    """What the images say of one drop: within what is allowed, above it, or that they are too few to say."""

    PASSES = "passes"
    UNDECIDED = "undecided"
    FAILS = "fails"


@dataclass(frozen=True)
class PairedAccuracy:
    """One accuracy of a masked path (``before``) and of its graph (``after``) on the same ``examples``, in [0, 1].

    ``drop`` is ``before - after``, negative where the graph is better; ``low`` to ``high`` is its 95% interval.
    ``lost`` images are right before only, ``gained`` ones after only.
    """

    before: float
    after: float
    drop: float
    low: float
    high: float
    examples: int
    lost: int
    gained: int

    def verdict(self, *, max_drop: float, verified: bool) -> Verdict:
        """Judge the whole interval against ``max_drop``.

        Where every score of the graph was ``verified`` against its path (fp32, fp16) and no image changed sides, there
        is no drop that more images could find.
        """
        unchanged = verified and self.lost == self.gained == 0
        if unchanged or self.high <= max_drop + _ROUNDING:
            return Verdict.PASSES
        return Verdict.FAILS if self.low > max_drop + _ROUNDING else Verdict.UNDECIDED

    def images_to_decide(self, *, max_drop: float) -> int | None:
        """Return the least number of images that decides if they are lost and gained at the rates of these.

        None where no number does, since the drop is ``max_drop`` to the point.
        """
        distance = self.drop - max_drop
        if abs(distance) <= _ROUNDING:
            return None

        def decides(count: int) -> bool:
            share = count / self.examples
            low, high = _interval(self.lost * share, self.gained * share, count)
            return low > max_drop if distance > 0 else high <= max_drop

        few, enough = self.examples - 1, self.examples
        while not decides(enough):
            few, enough = enough, 2 * enough
        while enough - few > 1:
            middle = (few + enough) // 2
            few, enough = (few, middle) if decides(middle) else (middle, enough)
        return enough


@dataclass(frozen=True)
class PathGate:
    """Both accuracies of one path; an image counts as robust if it is classified rightly before and under attack."""

    clean_accuracy: PairedAccuracy
    robust_accuracy: PairedAccuracy

    @property
    def drops(self) -> Mapping[str, PairedAccuracy]:
        """Both, by their names for people."""
        return {"clean accuracy": self.clean_accuracy, "robust accuracy": self.robust_accuracy}

    def record(self, *, max_drop: float, verified: bool) -> dict[str, Any]:
        """Return both with their verdicts as plain values, for the manifest and ``--json``."""

        def judged(found: PairedAccuracy) -> dict[str, Any]:
            verdict = found.verdict(max_drop=max_drop, verified=verified)
            more = found.images_to_decide(max_drop=max_drop) if verdict is Verdict.UNDECIDED else None
            return {**asdict(found), "verdict": verdict.value, "images_to_decide": more}

        return {
            "clean_accuracy": judged(self.clean_accuracy),
            "robust_accuracy": judged(self.robust_accuracy),
        }


def paired_accuracy(before: Right, after: Right) -> PairedAccuracy:
    """Compare which images are classified rightly before and after, bool (N,) each, N at least 1."""
    count = len(before)
    lost, gained = int(np.count_nonzero(before & ~after)), int(np.count_nonzero(~before & after))
    right_before, right_after = int(np.count_nonzero(before)), int(np.count_nonzero(after))
    low, high = _interval(lost, gained, count)
    return PairedAccuracy(
        before=right_before / count,
        after=right_after / count,
        drop=(right_before - right_after) / count,
        low=low,
        high=high,
        examples=count,
        lost=lost,
        gained=gained,
    )


def _interval(lost: float, gained: float, count: int) -> tuple[float, float]:
    """Return the 95% interval of a drop, of ``count`` images.

    It is the adjusted Wald one of Bonett and Price (2012, Journal of Educational and Behavioral Statistics 37(4),
    479-488): with one image added to each of the two kinds that differ, p = (lost + 1) / (N + 2) and
    q = (gained + 1) / (N + 2), it is p - q -+ 1.96 sqrt((p + q - (p - q)^2) / (N + 2)). Unlike the plain Wald
    interval it is no point where nothing differs.
    """
    p, q = (lost + 1) / (count + 2), (gained + 1) / (count + 2)
    half = Z_95 * math.sqrt((p + q - (p - q) ** 2) / (count + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)


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


def check_undecided(undecided: str) -> Undecided:
    """Return ``undecided``; raises ExportError unless it is one of ``UNDECIDED``."""
    for known in UNDECIDED:
        if undecided == known:
            return known
    raise ExportError(f"unknown answer {undecided!a:.100} where nothing is decided; choose out of warn, refuse")


def require_gate(
    found: PathGate, *, name: str, max_drop: float, undecided: Undecided = "warn", verified: bool = False
) -> tuple[str, ...]:
    """Raise GateError if an accuracy of the graph ``name`` drops by more than ``max_drop``, a fraction.

    The interval of a drop decides. Where it holds ``max_drop``, the images are too few: a drop that is measured above
    is refused all the same, one below gives a warning, or is refused too if ``undecided`` is ``refuse``. A quantised
    graph that loses nothing is undecided on a checkpoint's samples as well, and so is one of a usual network on 1,024
    images, so refusing by default would let hardly any pass. ``verified`` is as in `PairedAccuracy.verdict`.

    Returns:
        A sentence for each accuracy that was not decided.
    """
    warnings = []
    # The worst first: it is the one that an error names.
    for what, paired in sorted(found.drops.items(), key=lambda item: -item[1].drop):
        verdict = paired.verdict(max_drop=max_drop, verified=verified)
        if verdict is Verdict.PASSES:
            continue
        figures = (
            f"{100 * max_drop:g} are allowed ({paired.before:.3f} to {paired.after:.3f} on "
            f"{paired.examples} images, 95% interval of the drop {100 * paired.low:.1f} to {100 * paired.high:.1f} "
            "points)"
        )
        more = "" if verdict is Verdict.FAILS else f"; {_more_images(paired, max_drop=max_drop)}"
        if paired.drop > max_drop + _ROUNDING:
            raise GateError(
                f"the {what} of the graph '{name}' is {100 * paired.drop:.2g} points below that of its masked path, "
                f"{figures}{more}; judge on more images with --data, calibrate on more with --calibration, take a "
                "higher precision, or allow more with --max-drop"
            )
        doubt = f"the {what} of the graph '{name}' may be more than {100 * max_drop:g} points below its masked path's"
        if undecided == "refuse":
            raise GateError(
                f"{doubt}, {figures}{more}; judge on more images with --data, or write the bundle with --undecided warn"
            )
        warnings.append(f"{doubt}, which the images do not decide: {figures}{more}")
    return tuple(warnings)


def _more_images(found: PairedAccuracy, *, max_drop: float) -> str:
    needed = found.images_to_decide(max_drop=max_drop)
    if needed is None:
        return "no number of images decides where the drop is the allowed one"
    return f"about {needed:,} images would decide if they were lost and gained as these"
