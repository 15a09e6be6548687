"""Does a graph compute what its masked path computes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from smart_export.errors import VerificationError
from smart_runtime.engines import Engine
from smart_runtime.manifest import DENSE
from smart_train.checkpoint import Samples
from smart_train.evaluation.accuracy import to_tensor
from smart_train.methods.step import in_eval_mode

TOLERANCE_FP32 = 1e-4  # float32 sums in another order: 1e-6 is usual, a wrong fold is far above
RANDOM_IMAGES = 256
_CHUNK = 64
_RANDOM_SEED = 0

Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """How well two networks agree.

    Attributes:
        max_rel_diff: max|a-b| / max(1, max|a|) over all images and scores.
        argmax_agreement: fraction of the images with the same best class, among those whose two best scores differ by
            more than the tolerance; 1.0 if there are none.
        images: how many images were compared.
        tolerance: what ``max_rel_diff`` may be.
    """

    max_rel_diff: float
    argmax_agreement: float
    images: int
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the graph is the masked path, within rounding."""
        return self.max_rel_diff <= self.tolerance and self.argmax_agreement == 1.0


def verification_images(samples: Samples, *, path: str, shape: tuple[int, int, int]) -> list[Images]:
    """Return float32 (N, C, H, W) batches: the samples, the path's adversarial ones, and 256 random images."""
    real = [to_tensor(images).numpy() for images in (samples.images, samples.adversarial[path])]
    generator = np.random.default_rng(_RANDOM_SEED)
    return [*real, generator.random((RANDOM_IMAGES, *shape), dtype=np.float32)]


def compare(
    reference: nn.Module, engine: Engine, batches: Sequence[Images], *, tolerance: float = TOLERANCE_FP32
) -> Agreement:
    """Run the same images through ``reference`` (torch, eval mode) and ``engine``.

    Args:
        reference: maps images (N, C, H, W) to scores (N, classes).
        engine: the exported graph.
        batches: float32 (N, C, H, W) in [0, 1].
        tolerance: what ``max_rel_diff`` may be, and the margin under which a tie is a tie.
    """
    expected_parts, got_parts = [], []
    with in_eval_mode(reference), torch.no_grad():
        for batch in batches:
            for start in range(0, len(batch), _CHUNK):
                chunk = np.ascontiguousarray(batch[start : start + _CHUNK])
                expected_parts.append(reference(torch.from_numpy(chunk)).numpy())
                got_parts.append(engine.run(chunk))
    expected, got = np.concatenate(expected_parts), np.concatenate(got_parts)
    scale = max(1.0, float(np.abs(expected).max()))
    ranked = np.sort(expected, axis=1)
    clear = (ranked[:, -1] - ranked[:, -2]) / scale > tolerance
    same = expected.argmax(axis=1) == got.argmax(axis=1)
    return Agreement(
        max_rel_diff=float(np.abs(expected - got).max()) / scale,
        argmax_agreement=float(same[clear].mean()) if clear.any() else 1.0,
        images=len(expected),
        tolerance=tolerance,
    )


def require(agreement: Agreement, *, name: str) -> None:
    """Raise VerificationError unless ``agreement`` holds."""
    if not agreement.holds:
        what = "the unmasked network" if name == DENSE else "its masked path"
        raise VerificationError(
            f"expected the graph '{name}' to agree with {what} within {agreement.tolerance:g} and on every class, got "
            f"a difference of {agreement.max_rel_diff:.3g} and {agreement.argmax_agreement:.1%} equal classes over "
            f"{agreement.images} images; it does not belong to this checkpoint, or the fold is wrong: report it"
        )
