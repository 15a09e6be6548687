"""Which images each path gets right, clean and under each attack: chunk by chunk, so that a run can go on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from smart_train.data.images import Split
from smart_train.evaluation.accuracy import classified_rightly, to_tensor
from smart_train.evaluation.named import CLEAN, NamedAttack
from smart_train.evaluation.records import Records, Right
from smart_train.methods.step import fixed

CHUNK = 512
"""Images that are attacked together: enough to fill a core, and the gradients of large ones still fit its memory."""


class Paths(Protocol):
    """What is measured: networks by name, a `SmartNetwork` for one."""

    @property
    def path_names(self) -> tuple[str, ...]:
        """The paths in order."""

    def path(self, name: str) -> nn.Module:
        """Return the path ``name``: images float32 (N, C, H, W) in [0, 1] to scores (N, classes)."""


def chunk_seed(seed: int, attack: str, chunk: int) -> int:
    """Return the seed of one attack on one chunk, below 2^56: the same for each path, another for each chunk."""
    text = f"{seed} {attack} {chunk}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")


def measure(
    net: Paths,
    split: Split,
    *,
    attacks: Sequence[NamedAttack],
    seed: int,
    records: Records,
    about: Mapping[str, Any],
    chunk: int = CHUNK,
    device: torch.device | str = "cpu",
    done: Callable[[str, str, int], None] = lambda _, __, ___: None,
) -> dict[str, dict[str, Right]]:
    """Return which images each path gets right: by path, then by attack, ``clean`` first, bool (len(split),).

    Under an attack an image counts as right if it is classified rightly before and after, so attacks run on what is
    right without them. What torch computes is float32 and in eval mode.

    Args:
        net: on ``device``; its train/eval flag is as before afterwards.
        split: what to measure on.
        attacks: from `parse_attacks`.
        seed: of the attacks.
        records: what is known already, and where results are kept.
        about: what the results depend on beside path, attack, seed and chunk; values that JSON has.
        chunk: images that are attacked together; at equal size, threads and seed the results are equal to the bit.
        device: where the network is.
        done: called with path, attack and number of images, chunk by chunk.
    """
    results: dict[str, dict[str, Right]] = {}
    starts = range(0, len(split), chunk)
    about = run_settings(about, seed=seed, chunk=chunk, split=split)
    with exactly():
        for path in net.path_names:
            model = net.path(path)
            results[path] = {}
            with fixed(model):
                for attack in (None, *attacks):
                    name = CLEAN if attack is None else attack.name
                    found = []
                    for number, start in enumerate(starts):
                        part = Split(split.images[start : start + chunk], split.labels[start : start + chunk])
                        before = None if attack is None else results[path][CLEAN][start : start + chunk]
                        found.append(
                            records.of(
                                {**about, "path": path, **settings(attack), "chunk": number},
                                count=len(part),
                                judge=partial(
                                    _right,
                                    model,
                                    part,
                                    attack=attack,
                                    before=before,
                                    seed=chunk_seed(seed, name, number),
                                    device=device,
                                ),
                            )
                        )
                        done(path, name, len(part))
                    results[path][name] = np.concatenate(found)
    return results


def run_settings(about: Mapping[str, Any], *, seed: int, chunk: int, split: Split) -> dict[str, Any]:
    """Return what all results of a run depend on."""
    return {**about, "seed": seed, "chunk_size": chunk, "examples": len(split)}


def settings(attack: NamedAttack | None) -> dict[str, Any]:
    """Return what of an attack a result depends on."""
    if attack is None:
        return {"attack": CLEAN}
    return {"attack": attack.name, **{name: value for name, value in attack.record.items() if name != "name"}}


def _right(
    model: nn.Module,
    part: Split,
    *,
    attack: NamedAttack | None,
    before: Right | None,
    seed: int,
    device: torch.device | str,
) -> Right:
    """Return which images of ``part`` are right, clean or, of those that ``before`` names, after the attack."""
    images = to_tensor(torch.from_numpy(part.images).to(device))
    labels = torch.from_numpy(part.labels).to(device)
    if attack is None or before is None:
        return _correct(model, images, labels)
    right = before.copy()
    if before.any():
        left = torch.from_numpy(np.flatnonzero(before)).to(device)
        images, labels = images[left], labels[left]
        right[before] = _correct(model, attack(model, images, labels, seed=seed), labels)
    return right


def _correct(model: nn.Module, images: Tensor, labels: Tensor) -> Right:
    right: Right = classified_rightly(model, images, labels).cpu().numpy()
    return right


@contextmanager
def exactly() -> Iterator[None]:
    """Compute float32 as float32 on a GPU too, where convolutions use TF32 else, and always in one order."""
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
