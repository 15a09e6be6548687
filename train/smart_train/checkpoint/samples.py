"""Make, select and divide the labelled images that a checkpoint carries, or others of the same form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from smart_train.accuracy import CHUNK, to_tensor
from smart_train.attacks import Attack
from smart_train.checkpoint.format import Samples
from smart_train.chunks import usual_chunk
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.network import SmartNetwork


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
    height, width, channels = images.shape[1:]
    adversarial = {}
    for path in net.path_names if paths is None else paths:
        model, parts = net.path(path), []
        generator = torch.Generator(device=device).manual_seed(seed)
        chunk = usual_chunk([model], (channels, height, width), device=device, most=CHUNK)
        with attack_mode(model):
            for start in range(0, len(labels), chunk):
                part = images[start : start + chunk]
                truth = labels[start : start + chunk].to(device)
                floats = attack.run(model, to_tensor(part.to(device)), truth, generator=generator)
                original = part.permute(0, 3, 1, 2).double()
                change = (floats.cpu().double() * 255 - original).trunc()
                parts.append((original + change).to(torch.uint8).permute(0, 2, 3, 1).contiguous())
                done(len(part))
        adversarial[path] = torch.cat(parts)
    return Samples(images=images, labels=labels, adversarial=adversarial, eps=attack.eps, attack=attack.label)


def select(samples: Samples, index: Tensor) -> Samples:
    """Return the images with the numbers ``index``, int64 (K,), in that order."""
    adversarial = {path: images[index] for path, images in samples.adversarial.items()}
    return replace(samples, images=samples.images[index], labels=samples.labels[index], adversarial=adversarial)


def halves(samples: Samples, *, seed: int) -> tuple[Samples, Samples]:
    """Return two parts without a common image, drawn by ``seed``; of an odd number the second one has one more."""
    order = torch.randperm(len(samples.labels), generator=torch.Generator().manual_seed(seed))
    middle = len(order) // 2
    return select(samples, order[:middle]), select(samples, order[middle:])
