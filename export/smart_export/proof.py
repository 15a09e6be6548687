"""Is a fold the very same function? Proved in float64, where rounding hides nothing, before float32 is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from smart_export.errors import VerificationError
from smart_export.precision import ROUNDING_MARGIN
from smart_export.verify import Images, reference_scores
from smart_runtime.engines import Engine
from smart_train.masking.batch_independence import batch_dependence, check_batch_independence, fixed_images
from smart_train.masking.trial import ROUNDED, copied, trial_of

PROVEN = 1e-10  # of the largest score: 1e-13 is usual in float64, and one weight of a ResNet-18 off by 1e-3 above it
_PROVING_IMAGES = 2  # of each kind
_TINY = 1e-300
_INT8_LEVELS = 0.1  # in another batch a float may round to the next of 255 levels
_FLOAT64, _MARGIN = 2.0**-29, 4  # how much less float64 rounds than float32, in a network that makes much of it


@dataclass(frozen=True)
class Proof:
    """What trying a fold in float64 showed.

    Attributes:
        difference: between the fold and its network, as a fraction of the largest score.
        rounding: between the network in float32 and in float64, likewise: what float32 costs it before any export. 0.0
            where its own code insists on float32, so that nobody can say.
    """

    difference: float
    rounding: float


@torch.no_grad()
def prove(folded: fx.GraphModule, reference: nn.Module, batches: Sequence[Images], *, name: str) -> Proof:
    """Compare a fold with the network it was made from, on a few images of each of ``batches``.

    Args:
        folded: in float64, as `smart_export.folding.fold` gives it for that ``dtype``; it is not changed.
        reference: the masked path, or the unmasked network.
        batches: float32 (N, C, H, W) each.
        name: of the graph, for the error.

    Raises:
        VerificationError: if they differ by more than rounding in float64 (in float32, where the network insists on
            it).
    """
    images = torch.cat([torch.from_numpy(batch[:_PROVING_IMAGES]) for batch in batches])
    trial = trial_of(reference, images)
    if trial.dtype == torch.float64:
        expected, got = _scores(trial.network, images.double()), _scores(folded, images.double())
        rounding = _apart(expected, torch.from_numpy(reference_scores(reference, [images.numpy()])))
        allowed = max(PROVEN, _MARGIN * rounding * _FLOAT64)
    else:
        expected, allowed, rounding = _scores(trial.network, images), ROUNDED, 0.0
        got = _scores(copied(folded).float(), images)
    difference = _apart(expected, got)
    if bool(torch.isfinite(expected).all()) and not difference <= allowed:  # nan is a difference too
        hooked = [
            n or type(m).__name__ for n, m in reference.named_modules() if m._forward_hooks or m._forward_pre_hooks
        ]
        if hooked:
            raise VerificationError(
                f"what the forward hook of {hooked[0]!a:.100} does is lost in '{name}', since a graph has no hooks; "
                f"do it in the forward of the network"
            )
        raise VerificationError(
            f"the fold of '{name}' is not the network it was made from: in {str(trial.dtype).removeprefix('torch.')} "
            f"its scores differ by {difference:.2g} of the largest, where rounding is below {allowed:g}; report it"
        )
    return Proof(difference, rounding)


@torch.no_grad()
def rounding_of(reference: nn.Module, batches: Sequence[Images]) -> float:
    """Return what float32 costs a network (see :class:`Proof`), on a few images of each of ``batches``."""
    images = torch.cat([torch.from_numpy(batch[:_PROVING_IMAGES]) for batch in batches])
    trial = trial_of(reference, images)
    if trial.dtype != torch.float64:
        return 0.0
    exact = _scores(trial.network, images.double())
    return _apart(exact, torch.from_numpy(reference_scores(reference, [images.numpy()])))


def _scores(network: nn.Module, images: Tensor) -> Tensor:
    scores: Tensor = network(images)
    return scores


def _apart(expected: Tensor, got: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=_TINY))


@torch.no_grad()
def require_batch_independence(
    answer: nn.Module | Engine,
    input_shape: tuple[int, int, int],
    *,
    name: str,
    tolerance: float | None,
    rounding: float,
) -> None:
    """Check that an image's scores are the same alone, in batches of 2, 3 and 8, and in another order.

    Args:
        answer: the fold, in float32, or an engine that runs its graph.
        input_shape: channels, height, width.
        name: of the graph.
        tolerance: what scores may differ by, as a fraction of the largest; None for int8.
        rounding: of the network itself (see :class:`Proof`), which batches of other sizes round in another way too.

    Raises:
        NetworkError: if they are not, and a layer of the fold does it.
        VerificationError: if they are not in the engine.
    """

    def run(images: Tensor) -> Tensor:
        return (
            _scores(answer, images) if isinstance(answer, nn.Module) else torch.from_numpy(answer.run(images.numpy()))
        )

    allowed = max(_INT8_LEVELS if tolerance is None else tolerance, ROUNDING_MARGIN * rounding)
    found = batch_dependence(run, fixed_images(input_shape), allowed=allowed)
    if found is None:
        return
    if isinstance(answer, nn.Module):
        check_batch_independence(answer, input_shape)  # which says where
    raise VerificationError(
        f"in the graph '{name}' an image's scores depend on the batch it comes in: {found[0]}; a device answers images "
        f"one at a time, so let nothing in the network mix the images of a batch or drop its axis"
    )
