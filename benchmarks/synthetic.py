"""Checkpoints and bundles of untrained networks: what latency, size and export time need, without hours of training.

Weights and masks are random, batch-norm statistics are those of random pictures, so that features keep their usual size
at any depth (denormals or infinities would be slower than what users run). Accuracies mean nothing here.

    from synthetic import synthetic_bundle

    folder = synthetic_bundle(Path("out"), model="resnet34", input_shape=(3, 32, 32), density=0.5, align=4)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smart_devices import resolve_target
from smart_export.build import build_bundle
from smart_train import Checkpoint, SmartNetwork, convert
from smart_train.accuracy import to_tensor
from smart_train.architectures.build import build_network
from smart_train.checkpoint.format import Samples
from smart_train.choices import Scope

EPS = 8 / 255
_PROBE_SIDE = 64
_CALIBRATION_IMAGES = 8  # a statistic over 8 pictures and all their positions is near enough to that of many


def synthetic_checkpoint(
    *,
    model: str,
    input_shape: tuple[int, int, int],
    density: float,
    align: int,
    scope: Scope = "block",
    seed: int = 0,
    classes: int = 10,
    samples: int = 8,
    width: int | None = None,
    network: nn.Module | None = None,
) -> Checkpoint:
    """Return an untrained network with masks at their target, as a checkpoint that could be saved.

    Args:
        model: a name in ``ARCHITECTURES``, or what to call ``network``.
        input_shape: channels, height, width.
        density: fraction of each masked group's channels that a path keeps, in (0, 1].
        align: kept channels are rounded up to a multiple of this.
        scope: which groups are masked.
        seed: of weights, masks and pictures.
        classes: scores per image.
        samples: random pictures that travel with it.
        width: channels of the first stage; the network's own by default.
        network: one that is in no table; its size and scores must fit the other options.

    Raises:
        SmartError: if an option is out of range.
    """
    arguments: dict[str, Any] = {} if width is None else {"width": width}
    channels = input_shape[0]
    mean, std = (0.5,) * channels, (0.25,) * channels
    if network is None:
        network = build_network(
            model, num_classes=classes, in_channels=channels, arguments=arguments, generator_seed=seed
        )
    net = convert(
        network,
        # These networks end in an average over all positions, so their groups are the same for any size of image, and
        # the probe of each group is quicker on a small one.
        example_input=torch.zeros(2, channels, *(min(side, _PROBE_SIDE) for side in input_shape[1:])),
        density=density,
        align=align,
        scope=scope,
        mean=mean,
        std=std,
    )
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (samples, *input_shape[1:], channels), dtype=torch.uint8, generator=generator)
    _mask_(net, generator)
    _normalise_(net, _pictures((_CALIBRATION_IMAGES, *input_shape), generator), generator)
    return Checkpoint(
        architecture=model,
        arguments=arguments,
        input_shape=input_shape,
        class_names=tuple(str(i) for i in range(classes)),
        mean=mean,
        std=std,
        net=net,
        samples=Samples(
            images=pictures,
            labels=torch.arange(samples) % classes,
            adversarial={path: _disturbed(pictures, generator) for path in net.path_names},
            eps=EPS,
            attack="noise",
        ),
        training={"model": model, "data": {"kind": "synthetic"}, "seed": seed, "epochs": 0},
        metrics={path: {} for path in net.path_names},
    )


def synthetic_bundle(
    folder: Path,
    *,
    model: str,
    input_shape: tuple[int, int, int],
    density: float,
    align: int,
    scope: Scope = "block",
    seed: int = 0,
    target: str = "cpu",
    classes: int = 10,
    samples: int = 8,
    baseline: bool = True,
    network: nn.Module | None = None,
) -> Path:
    """Build a bundle of both paths and, with ``baseline``, ``dense`` into ``folder``, which must not exist; return it.

    It is verified as every bundle is, on ``samples`` pictures, their disturbed versions and as many random images. The
    other options are those of :func:`synthetic_checkpoint`; ``target`` is a device's name.

    Raises:
        SmartError: if an option is out of range or ``folder`` cannot be used.
    """
    checkpoint = synthetic_checkpoint(
        model=model,
        input_shape=input_shape,
        density=density,
        align=align,
        scope=scope,
        seed=seed,
        classes=classes,
        samples=samples,
        network=network,
    )
    return build_bundle(
        checkpoint, output=folder, target=resolve_target(target), baseline=baseline, random_images=samples
    ).bundle


def _pictures(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return to_tensor(torch.randint(0, 256, (shape[0], *shape[2:], shape[1]), dtype=torch.uint8, generator=generator))


def _disturbed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Return the pictures (N, H, W, C) with uniform noise within ``EPS``."""
    steps = int(EPS * 255)
    noise = torch.randint(-steps, steps + 1, pictures.shape, generator=generator)
    return (pictures.to(torch.int64) + noise).clamp(0, 255).to(torch.uint8)


def _mask_(net: SmartNetwork, generator: torch.Generator) -> None:
    """Keep exactly ``structure.kept(size)`` random channels of every group on every path, in place."""
    for path in net.path_names:
        for i, group in enumerate(net.groups):
            keep = torch.zeros(group.size, dtype=torch.bool)
            kept = net.structure.kept(group.size, bundle=group.bundle)
            keep[torch.randperm(group.size, generator=generator)[:kept]] = True
            net.set_mask(path, i, keep)


@torch.no_grad()
def _normalise_(net: SmartNetwork, images: Tensor, generator: torch.Generator) -> None:
    """Give batch norms random weights and biases and the statistics of ``images``, in place."""
    for path in net.path_names:
        norms = [m for m in net.path(path).modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) + 0.5)
            norm.bias.copy_(torch.rand(norm.bias.shape, generator=generator) - 0.5)
        with _whole_batch(norms):
            net.path(path).train()(images)
    net.eval()


@contextmanager
def _whole_batch(norms: list[nn.BatchNorm2d]) -> Iterator[None]:
    """Make running statistics those of the next batch instead of a moving average."""
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 1.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
