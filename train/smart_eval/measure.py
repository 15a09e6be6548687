"""Which images each path gets right, clean and under each attack: chunk by chunk, so that a run can go on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from smart_eval.attacks.base import NamedAttack
from smart_eval.attacks.table import CLEAN
from smart_eval.records import Records, Right
from smart_train.accuracy import classified_rightly, tensors
from smart_train.chunks import CHUNK
from smart_train.data.images import Split
from smart_train.masking.attack_mode import attack_mode


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


@dataclass(frozen=True, kw_only=True)
class Run:
    """How networks are measured, and where results are kept.

    Attributes:
        seed: of the attacks, and of all else that is random.
        records: what is known already, and where results are kept; by default in memory.
        about: what results depend on beside path, attack, seed and chunk, which a file of records must tell apart: the
            network, the images; values that JSON has.
        chunk: images that are attacked together; at equal size, threads and seed the results are equal to the bit.
        device: where the network is.
        done: called with path, attack and number of images, chunk by chunk.
    """

    seed: int = 0
    records: Records = field(default_factory=Records)
    about: Mapping[str, Any] = field(default_factory=dict)
    chunk: int = CHUNK
    device: torch.device | str = "cpu"
    done: Callable[[str, str, int], None] = lambda _, __, ___: None

    def settings(self, split: Sized) -> dict[str, Any]:
        """Return what all results on ``split`` depend on."""
        return {**self.about, "seed": self.seed, "chunk_size": self.chunk, "examples": len(split)}

    def chunks(self, total: int) -> Iterator[tuple[int, slice]]:
        """Yield the number of each chunk of ``total`` images, and which images it has."""
        for number, start in enumerate(range(0, total, self.chunk)):
            yield number, slice(start, min(start + self.chunk, total))


def measure(net: Paths, split: Split, *, attacks: Sequence[NamedAttack], run: Run) -> dict[str, dict[str, Right]]:
    """Return which images each path gets right: by path, then by attack, ``clean`` first, bool (len(split),).

    Under an attack an image counts as right if it is classified rightly before and after, so attacks run on what is
    right without them. What torch computes is float32 and in eval mode.

    Args:
        net: on the run's device; its train/eval flag is as before afterwards.
        split: what to measure on.
        attacks: from `parse_attacks`.
        run: its seed, records and so on.
    """
    results: dict[str, dict[str, Right]] = {}
    about = run.settings(split)
    with exactly():
        for path in net.path_names:
            model = net.path(path)
            results[path] = {}
            with attack_mode(model):
                for attack in (None, *attacks):
                    name = CLEAN if attack is None else attack.name
                    before = None if attack is None else results[path][CLEAN]
                    results[path][name] = in_chunks(
                        len(split),
                        run,
                        result=partial(_right, model, split, attack=attack, before=before, device=run.device),
                        key={**about, "path": path, **settings(attack)},
                    )
    return results


def in_chunks(
    total: int,
    run: Run,
    *,
    result: Callable[[slice, int], Right],
    key: Mapping[str, Any],
    of_chunk: Callable[[slice], Mapping[str, Any]] = lambda _: {},
) -> Right:
    """Return what ``result`` finds of ``total`` images, bool (total,), chunk by chunk.

    Args:
        total: how many images.
        run: its seed, records and so on.
        result: given which images and the seed of what is random, returns what is found of them, bool.
        key: what all results depend on, ``path`` and ``attack`` their names.
        of_chunk: returns what the result of one chunk depends on besides.
    """
    found = []
    for number, where in run.chunks(total):
        right = run.records.of(
            {**key, "chunk": number, **of_chunk(where)},
            count=where.stop - where.start,
            judge=partial(_judged, result, where, chunk_seed(run.seed, key["attack"], number), device=run.device),
        )
        found.append(right)
        run.done(key["path"], key["attack"], len(right))
    return np.concatenate(found)


def _judged(result: Callable[[slice, int], Right], where: slice, seed: int, *, device: torch.device | str) -> Right:
    with seeded(seed, device=device):
        return result(where, seed)


@contextmanager
def seeded(seed: int, *, device: torch.device | str) -> Iterator[None]:
    """Run a block with torch's global generators seeded, which networks that are randomised draw from."""
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


def settings(attack: NamedAttack | None) -> dict[str, Any]:
    """Return what of an attack a result depends on."""
    if attack is None:
        return {"attack": CLEAN}
    return {"attack": attack.name, **{name: value for name, value in attack.record().items() if name != "name"}}


def _right(
    model: nn.Module,
    split: Split,
    where: slice,
    seed: int,
    *,
    attack: NamedAttack | None,
    before: Right | None,
    device: torch.device | str,
) -> Right:
    """Return which images are right, clean or, of those that ``before`` names, after the attack."""
    if attack is None or before is None:
        return _correct(model, *tensors(split, where, device))
    right = before[where].copy()
    left = np.flatnonzero(right)
    if len(left):
        images, labels = tensors(split, where.start + left, device)
        right[left] = _correct(model, attack(model, images, labels, seed=seed), labels)
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
