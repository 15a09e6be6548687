"""An image's scores must not depend on the batch it comes in: a device answers images one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smart_common.errors import shortened
from smart_train.errors import NetworkError
from smart_train.masking.tracing import run_classifier
from smart_train.masking.trial import ROUNDED, copied, trial_of

# Of a full batch of 8: images alone, two, three, and all of them in another order.
GROUPINGS = ((0,), (1, 2), (4, 6, 3), (7, 6, 5, 4, 3, 2, 1, 0))
_BATCH = 8
_MARGIN, _MOST = 4, 1e-3  # times a network's own rounding, and what no rounding excuses

Run = Callable[[Tensor], Tensor]


def fixed_images(shape: Sequence[int]) -> Tensor:
    """Return the images that are tried, float32 (8, C, H, W) of noise in [0, 1], for an input of ``shape``."""
    return torch.rand(_BATCH, *shape, generator=torch.Generator().manual_seed(0))


def batch_dependence(run: Run, images: Tensor, *, allowed: float) -> tuple[str, tuple[int, ...]] | None:
    """Return how scores depend on the batch, and the images that show it; None where they do not.

    Where the scores of the full batch are not finite there is nothing to compare with, and None is returned too.

    Args:
        run: maps images (N, C, H, W), N from 1 to 8, to scores (N, classes).
        images: 8 different ones.
        allowed: what the scores of an image may differ by, as a fraction of the largest score.
    """
    full = run(images)
    scale = float(full.abs().max())
    if not math.isfinite(scale):
        return None
    for chosen in GROUPINGS:
        got, expected = run(images[list(chosen)]), full[list(chosen)]
        if got.shape != expected.shape:
            size = f"a batch of {len(chosen)}"
            return f"{size} gives scores of shape {tuple(got.shape)} instead of {tuple(expected.shape)}", chosen
        difference = float((got - expected).abs().max())
        if not difference <= allowed * scale:  # NaN, as of a deviation over one image, is a difference too
            order = "in another order" if len(chosen) == len(images) else f"in a batch of {len(chosen)}"
            apart = f"differ by {difference / scale:.2g} of the largest from" if difference >= 0 else "are NaN beside"
            return f"{order} they {apart} those in a batch of 8", chosen
    return None


@torch.no_grad()
def check_batch_independence(network: nn.Module, shape: Sequence[int]) -> None:
    """Check that an image's scores are the same alone, in a batch of 2, 3 and 8, and in another order.

    Equal is what the network's own rounding in float32 makes no difference to, a thousandth of the largest score at
    most. In float64, where the network computes in it.

    Args:
        network: maps images (N, C, H, W) to scores (N, classes); it is not changed, and tried in eval mode.
        shape: channels, height, width.

    Raises:
        NetworkError: if they are not, or not finite; it names the layer that does it where one does. Or if it is no
            classifier.
    """
    images = fixed_images(shape)
    trial = trial_of(network, images, prepare=_fill_zero_weights_)
    images = images.to(trial.dtype)
    run_classifier(trial.network, images[:2])
    _require_finite(network, images)
    run = _guarded(trial.network)
    allowed = trial.tolerance
    if trial.dtype == torch.float64:
        rounding = copied(network).cpu().float().eval()
        _fill_zero_weights_(rounding)
        full, rounded = run(images), _guarded(rounding)(images.float())
        own = float((rounded - full).abs().max() / full.abs().max().clamp(min=1e-30))
        allowed = min(max(_MARGIN * own, trial.tolerance), _MOST) if math.isfinite(own) else ROUNDED
    found = batch_dependence(run, images, allowed=allowed)
    if found is None:
        return
    how, chosen = found
    if not torch.equal(run(images), run(images)):
        raise NetworkError(
            f"{type(network).__name__} gives other scores each time, in eval mode too; let a dropout or noise heed "
            f"self.training"
        )
    where = _first_dependent(trial.network, images, chosen, allowed=allowed)
    raise NetworkError(
        f"an image's scores depend on the batch it comes in: {how}, first {where}; a device answers images one at "
        "a time, so let nothing there mix the images of a batch or drop its axis"
    )


def _require_finite(network: nn.Module, images: Tensor) -> None:
    """Raise NetworkError if the scores of ``images`` are not finite in float32, as it is and will be trained."""
    network, images = copied(network).cpu().float().eval(), images.float()
    scores = _guarded(network)(images)
    if bool(torch.isfinite(scores).all()):
        return
    what = "NaN" if bool(scores.isnan().any()) else "infinite"
    where = f"the forward of {type(network).__name__}"
    for (name, _), (inputs, output) in _calls(network, images).items():
        if _is_finite(output) or not all(map(_is_finite, inputs)):
            continue
        where = _named(network, name)
        break
    raise NetworkError(
        f"the untrained network gives {what} scores for images in [0, 1], first in {where}; let it start from weights, "
        "and compute with numbers, that stay finite in float32"
    )


def _is_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())


def _named(network: nn.Module, name: str) -> str:
    """Return what to call the module ``name`` of ``network``, or its forward if others are inside of it."""
    module = network.get_submodule(name)
    kind = type(module).__name__
    named = f"{name} ({kind})" if name else kind
    return f"the forward of {named}" if any(module.children()) else named


def _fill_zero_weights_(network: nn.Module) -> None:
    """Put noise in the place of weights that are zero throughout: a head that starts so hides all that is before it."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        if weight.dim() > 1 and weight.is_floating_point() and not bool(weight.any()):
            weight.copy_(torch.randn(weight.shape, generator=generator).to(weight) / weight[0].numel() ** 0.5)


def _guarded(network: nn.Module) -> Run:
    def run(images: Tensor) -> Tensor:
        try:
            scores = network(images)
        except Exception as error:  # its own code runs here
            raise NetworkError(
                f"{type(network).__name__} takes no batch of {len(images)}: it stopped with "
                f"{shortened(f'{type(error).__name__}: {error}')}; a device answers batches of any size, of one too"
            ) from error
        assert isinstance(scores, Tensor)
        return scores

    return run


def _first_dependent(network: nn.Module, images: Tensor, chosen: Sequence[int], *, allowed: float) -> str:
    """Say which module is the first to give other outputs for the same inputs of the images ``chosen``."""
    full, part = _calls(network, images), _calls(network, images[list(chosen)])

    def same(whole: Any, some: Any) -> bool:
        return not isinstance(whole, Tensor) or _same_images(whole, some, chosen, of=len(images), allowed=allowed)

    for key, (inputs, output) in full.items():
        if key not in part:
            continue
        others, other = part[key]
        if all(map(same, inputs, others)) and not same(output, other):
            return f"in {_named(network, key[0])}"
    return f"in the forward of {type(network).__name__}"


def _same_images(whole: Tensor, some: Any, chosen: Sequence[int], *, of: int, allowed: float) -> bool:
    """Whether ``some``, of the images ``chosen``, is what ``whole``, ``of`` all images, has for them, on any axis."""
    if not isinstance(some, Tensor) or some.dim() != whole.dim():
        return False
    for axis, (length, less) in enumerate(zip(whole.shape, some.shape, strict=True)):
        if length % of == 0 and less * of == length * len(chosen):
            each = torch.arange(length).view(of, -1)[list(chosen)].flatten()
            whole = whole.index_select(axis, each)
            break
    if whole.shape != some.shape:
        return False
    if not whole.is_floating_point():
        return torch.equal(whole, some)
    finite = whole[whole.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(some, whole, rtol=0.0, atol=allowed * scale, equal_nan=True)


def _calls(network: nn.Module, images: Tensor) -> dict[tuple[str, int], tuple[list[Any], Any]]:
    """Return the inputs and the output of every call of a module, by its name and number, in the order they end."""
    calls: dict[tuple[str, int], tuple[list[Any], Any]] = {}
    begun: dict[str, list[list[Any]]] = {}
    counts: dict[str, int] = {}

    def kept(value: Any) -> Any:
        return value.detach().clone() if isinstance(value, Tensor) else value  # a later layer may change it in place

    handles = []
    for name, module in network.named_modules():

        def before(_: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            begun.setdefault(name, []).append([kept(value) for value in inputs])

        def after(_: nn.Module, __: tuple[Any, ...], output: Any, name: str = name) -> None:
            counts[name] = counts.get(name, 0) + 1
            calls[name, counts[name]] = begun[name].pop(), kept(output)

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls
