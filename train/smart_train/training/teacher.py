"""A frozen network that a training learns from: a path of a checkpoint, or a module."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from smart_common.errors import shortened
from smart_train.architectures.custom import Factory
from smart_train.checkpoint.format import Checkpoint, load_checkpoint
from smart_train.checkpoint.reader import read_bytes
from smart_train.data.images import ImageSet
from smart_train.errors import CheckpointError, ConfigError
from smart_train.masking.tracing import run_classifier
from smart_train.methods.interface import Method

PATH = "clean"
"""The path of a checkpoint that teaches unless another is named."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network that teaches.

    Attributes:
        network: images (N, C, H, W) in [0, 1] to scores (N, classes); frozen, in eval mode.
        sha256: of its checkpoint, or of the tensors of a module.
        path: of the checkpoint; "" for a module.
    """

    network: nn.Module
    sha256: str
    path: str = ""

    def record(self) -> dict[str, str]:
        """Return what identifies it, in plain values."""
        return {"sha256": self.sha256, **({"path": self.path} if self.path else {})}


def teacher_file(given: str | os.PathLike[str]) -> tuple[Path, str]:
    """Return the checkpoint and the path that ``CKPT`` or ``CKPT:PATH`` names; the path is "" if it is left out."""
    text = os.fspath(given)
    file, colon, path = text.rpartition(":")
    named = colon and "/" not in path and not Path(text).exists()
    return (Path(file), path) if named else (Path(text), "")


def read_teacher(
    given: str | os.PathLike[str] | nn.Module, data: ImageSet, *, factory: Factory | None = None
) -> Teacher:
    """Return the teacher that ``given`` is or names, frozen.

    Args:
        given: a checkpoint as ``CKPT`` (its path ``clean``, or the only one it has) or ``CKPT:PATH``; or a module,
            images (N, C, H, W) in [0, 1] to scores (N, classes), which is put in eval mode and frozen.
        data: what is trained on; the teacher must know the same classes in images of the same shape.
        factory: of the network that is trained; makes the checkpoint's too where nothing else can.

    Raises:
        CheckpointError: if the file is missing, or no checkpoint.
        ConfigError: if it has no such path, or was trained on other classes or images.
        NetworkError: if a module does not take the images, or gives no scores.
    """
    if isinstance(given, nn.Module):
        network, teacher = given, Teacher(given, _digest(given))
    else:
        file, wanted = teacher_file(given)
        checkpoint = _load(file, factory=factory)
        path = _path(checkpoint, wanted, name=shortened(file.name))
        _check(checkpoint, data, name=shortened(file.name))
        network = checkpoint.net.path(path)
        teacher = Teacher(network, hashlib.sha256(read_bytes(file)).hexdigest(), path)
    network.eval().requires_grad_(False)
    if isinstance(given, nn.Module):
        tensors = [*network.parameters(), *network.buffers()]
        example = torch.zeros(2, *data.shape, device=tensors[0].device if tensors else None)
        scores = run_classifier(network, example).shape[1]
        if scores != len(data.class_names):
            raise ConfigError(
                f"the teacher gives {scores} scores for {len(data.class_names)} classes; take one of the same classes"
            )
    return teacher


def check_teacher(method: Method, *, distill: float, given: bool) -> None:
    """Raise ConfigError if a teacher is needed and none is ``given``, or the one that is would not be asked.

    It is asked by methods that need one, and for targets of which it makes the share ``distill``.
    """
    needs = f"method {method.name}" if method.needs_teacher else "--distill"
    if (method.needs_teacher or distill) and not given:
        raise ConfigError(
            f"{needs} learns from a teacher and has none; name the checkpoint of a network of the same classes, as in "
            "--teacher standard.pt"
        )
    if given and not (method.needs_teacher or distill):
        raise ConfigError(
            f"method {method.name} has no use for a teacher; leave --teacher out, or give --distill for targets of its"
        )


def _load(file: Path, *, factory: Factory | None) -> Checkpoint:
    try:
        return load_checkpoint(file)
    except CheckpointError:
        if factory is None:
            raise
        return load_checkpoint(file, factory=factory)  # a network of the user's own, as the one that is trained


def _path(checkpoint: Checkpoint, wanted: str, *, name: str) -> str:
    paths = checkpoint.net.path_names
    path = wanted or (PATH if PATH in paths else paths[0] if len(paths) == 1 else "")
    if path not in paths:
        what = f"path {shortened(path)}" if path else f"path {PATH}"
        raise ConfigError(
            f"the teacher {name} has no {what}, it has {', '.join(paths)}; name one, as in --teacher {name}:{paths[0]}"
        )
    return path


def _check(checkpoint: Checkpoint, data: ImageSet, *, name: str) -> None:
    """Raise ConfigError unless the checkpoint is of the same classes and image shape."""
    if checkpoint.input_shape != data.shape:
        theirs, ours = ("x".join(map(str, shape)) for shape in (checkpoint.input_shape, data.shape))
        raise ConfigError(
            f"the teacher {name} takes images of {theirs}, and these are {ours} (channels x height x width); take a "
            "teacher of the same data"
        )
    if checkpoint.class_names != data.class_names:
        raise ConfigError(
            f"the teacher {name} was trained on {len(checkpoint.class_names)} classes that are not the "
            f"{len(data.class_names)} of the data; take a teacher of the same data"
        )


def _digest(network: nn.Module) -> str:
    """Return the SHA-256 over a network's tensors by name, those that are not saved too."""
    digest = hashlib.sha256()
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
