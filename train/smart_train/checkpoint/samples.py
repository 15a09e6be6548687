"""Make, select and divide the labelled images that a checkpoint carries, or others of the same form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from smart_train.accuracy import CHUNK, to_tensor
from smart_train.attacks import Attack
from smart_train.checkpoint.format import Samples
from smart_train.chunks import usual_chunk
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.network import PathNetwork, SmartNetwork


def make_samples(
    net: SmartNetwork,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack,
    seed: int,
    paths: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    done: Callable[[int], None] = lambda _: None,
) -> Samples:
    """Return ``images`` with an adversarial version of each for every path, made on that path.

    Args:
        net: the network, on ``device``; its train/eval flags are as before afterwards.
        images: uint8 (N, H, W, C), as the network takes them.
        labels: int64 (N,).
        attack: its eps holds in uint8 too, since the versions are rounded towards the originals.
        seed: of the attack's random starts, the same ones for each path.
        paths: for which paths; all by default.
        device: where to compute.
        done: called with the number of images of each chunk that was attacked, on each path.
    """
    return Samples(
        images=images,
        labels=labels,
        adversarial={
            path: _adversarial(
                net.path(path),
                images,
                labels,
                attack=attack,
                generator=torch.Generator(device=device).manual_seed(seed),
                done=done,
            )
            for path in (net.path_names if paths is None else paths)
        },
        eps=attack.eps,
        attack=attack.label,
    )


def _adversarial(
    model: PathNetwork,
    images: Tensor,
    labels: Tensor,
    *,
    attack: Attack,
    generator: torch.Generator,
    done: Callable[[int], None],
) -> Tensor:
    device = generator.device
    parts = []
    height, width, channels = images.shape[1:]
    chunk = usual_chunk([model], (channels, height, width), device=device, most=CHUNK)
    with attack_mode(model):
        for start in range(0, len(labels), chunk):
            part = images[start : start + chunk]
            floats = attack.run(
                model,
                to_tensor(part.to(device)),
                labels[start : start + chunk].to(device),
                generator=generator,
            )
            original = part.permute(0, 3, 1, 2).double()
            change = (floats.cpu().double() * 255 - original).trunc()
            parts.append((original + change).to(torch.uint8).permute(0, 2, 3, 1).contiguous())
            done(len(part))
    return torch.cat(parts)


def select(samples: Samples, index: Tensor) -> Samples:
    """Return the images with the numbers ``index``, int64 (K,), in that order."""
    return Samples(
        images=samples.images[index],
        labels=samples.labels[index],
        adversarial={path: images[index] for path, images in samples.adversarial.items()},
        eps=samples.eps,
        attack=samples.attack,
    )


def halves(samples: Samples, *, seed: int) -> tuple[Samples, Samples]:
    """Return two parts without a common image, drawn by ``seed``; of an odd number the second one has one more."""
    order = torch.randperm(len(samples.labels), generator=torch.Generator().manual_seed(seed))
    middle = len(order) // 2
    return select(samples, order[:middle]), select(samples, order[middle:])
