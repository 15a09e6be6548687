"""What a training starts from: files of weights, one for all paths or several, and the normalisation of their images.

Paths share all weights but those of their batch norms, so a file of its own gives a path its batch norms alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from smart_common.errors import shortened
from smart_train.architectures.custom import Factory
from smart_train.architectures.libraries import IMAGENET_MEAN, IMAGENET_STD, LibraryNetwork
from smart_train.data.images import ImageSet
from smart_train.errors import ConfigError
from smart_train.methods.interface import Training
from smart_train.options import parse_normalisation
from smart_train.training.config import TrainConfig
from smart_train.training.initial_weights import InitialWeights, read_initial_weights
from smart_train.training.plain_network import plain_network

_log = logging.getLogger(__name__)

FilePath: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True)
class InitialFiles:
    """What was read: the weights that paths have ``shared``, if any, and others by path for its batch norms alone."""

    shared: InitialWeights | None = None
    batch_norms: dict[str, InitialWeights] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the digests of the files, for a checkpoint to keep; nothing if there are none."""
        if self.shared is None:
            return {}
        of_paths = {path: weights.sha256 for path, weights in self.batch_norms.items()}
        return {"init_sha256": self.shared.sha256, **({"init_sha256_of_paths": of_paths} if of_paths else {})}

    @torch.no_grad()
    def started(self, training: Training, config: TrainConfig, data: ImageSet, factory: Factory | None) -> Training:
        """Return ``training`` after its paths were given their batch norms from files of their own, if there are any.

        It is said how many of the weights that paths share are others in such a file: batch norms were made for these.

        Raises:
            ConfigError: if the method trains no batch norms of a path, the network has none, or channels are permuted.
            CheckpointError: if a file is of another network.
        """
        if self.batch_norms and config.permute:
            raise ConfigError(
                "--permute and --init PATH=FILE cannot be combined: channels of one file alone are ordered"
            )
        for path, weights in self.batch_norms.items():
            source = plain_network(config, data, factory=factory, initial=weights)
            norms = {n: m for n, m in source.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
            if not norms or path not in training.net.path_names:
                raise ConfigError(
                    f"method {config.method} trains no batch norms of {config.model} that are path {path}'s own, and "
                    f"{weights.name} would give it nothing; start all paths from one file"
                )
            network = training.net.path(path).network
            for name, norm in norms.items():
                network.get_submodule(name).load_state_dict(norm.state_dict(), strict=False)
            ours, theirs = network.state_dict(), source.state_dict()
            shared = [name for name in theirs if name in ours and name.rpartition(".")[0] not in norms]
            differing = sum(not torch.equal(ours[name], theirs[name]) for name in shared)
            if differing:
                _log.warning(
                    "note: path %s starts with the batch norms of %s, where %d of the %d tensors that paths share are "
                    "others: they were not made for these weights, and its accuracy is low at first",
                    *(path, weights.name, differing, len(shared)),
                )
        return training


def read_initial_files(initial: FilePath | Mapping[str, FilePath] | None, *, paths: Sequence[str]) -> InitialFiles:
    """Read what a training of ``paths`` starts from: one file, or several by path.

    The weights that paths share are those of the file under ``""``, or else of the first.

    Raises:
        ConfigError: if there is no such path.
        CheckpointError: as `read_initial_weights`.
    """
    files = {} if initial is None else dict(initial) if isinstance(initial, Mapping) else {"": initial}
    if not files:
        return InitialFiles()
    for path, file in files.items():
        if path and path not in paths:
            raise ConfigError(
                f"no path {shortened(path)} to start from {shortened(str(file))}: this method has "
                f"{' and '.join(paths)}; for a file with = in its name write ./ before it"
            )
    first = Path(files.get("", next(iter(files.values()))))
    others = {path: Path(file) for path, file in files.items() if path and Path(file) != first}
    return InitialFiles(
        read_initial_weights(first), {path: read_initial_weights(file) for path, file in others.items()}
    )


def normalisation(
    wanted: str | None, data: ImageSet, *, factory: Factory | None, initial: InitialWeights | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation that images in [0, 1] are normalised by, a value a channel each.

    Args:
        wanted: ``data``, of the training images; ``imagenet``; ``none``, 0 and 1; numbers as ``MEAN/STD``, one each or
            one a channel with commas. None stands for what published weights of a library's network expect, if such
            are started from, else for ``data``.
        data: what is trained on.
        factory: of the network.
        initial: the weights started from.

    Raises:
        ConfigError: if it is none of these, or for another number of channels.
    """
    channels = data.shape[0]
    if wanted is None and initial is not None:
        if isinstance(factory, LibraryNetwork):
            return _per_channel(factory.mean, factory.std, channels=channels, wanted=factory.reference)
        if factory is None and (found := initial.normalising()) is not None:
            return _per_channel(*found, channels=channels, wanted=initial.name)
        _log.warning(
            "note: images are normalised by mean and standard deviation of the training images; if the weights of %s "
            "were trained with others, say --normalize imagenet, none or MEAN/STD",
            initial.name,
        )
    if wanted in (None, "data"):
        return data.mean_std()
    if wanted == "imagenet":
        return _per_channel(IMAGENET_MEAN, IMAGENET_STD, channels=channels, wanted=wanted)
    if wanted == "none":
        return (0.0,) * channels, (1.0,) * channels
    mean, std = parse_normalisation(str(wanted))
    return _per_channel(mean, std, channels=channels, wanted=str(wanted))


def _per_channel(
    mean: tuple[float, ...], std: tuple[float, ...], *, channels: int, wanted: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return one value a channel; RGB's for grey images are the mean of the three."""
    both = [mean, std]
    for i, values in enumerate(both):
        if len(values) == 1:
            both[i] = values * channels
        elif channels == 1 and len(values) == 3:
            both[i] = (sum(values) / 3,)
        elif len(values) != channels:
            raise ConfigError(f"{shortened(wanted)} normalises {len(values)} channels, and the images have {channels}")
    return both[0], both[1]
