"""The network that a training starts from, before anything of it is masked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from smart_train.architectures.build import build_network
from smart_train.architectures.custom import Factory
from smart_train.architectures.libraries import LibraryNetwork
from smart_train.data.images import ImageSet
from smart_train.errors import ConfigError
from smart_train.masking.tracing import run_classifier
from smart_train.training.config import TrainConfig
from smart_train.training.initial_weights import InitialWeights, load_initial_weights_
from smart_train.training.schedule import Stream

MAX_PARAMETERS = 2**29
"""Of a network that a name and its arguments make: 2 GiB of weights, far above any edge classifier."""


def plain_network(
    config: TrainConfig, data: ImageSet, *, factory: Factory | None, initial: InitialWeights | None
) -> nn.Module:
    """Return the network of ``config`` for ``data``, with weights drawn by its seed, or the ``initial`` ones.

    Raises:
        CheckpointError: if the initial weights are those of another network.
        ConfigError: if the network does not give one score a class, or its arguments, which may be those of a recipe,
            give it more than `MAX_PARAMETERS`; a network of the user's own may have any size.
    """
    channels, height, width = data.shape
    build = partial(
        build_network,
        config.model,
        num_classes=len(data.class_names),
        in_channels=channels,
        arguments=config.model_arguments,
        generator_seed=int(np.random.SeedSequence([config.seed, Stream.INIT]).generate_state(1)[0]),
        factory=factory,
    )
    if config.model_arguments and (factory is None or isinstance(factory, LibraryNetwork)):
        _check_size(build, model=config.model if factory is None else factory.reference)
    network = build()
    if initial is not None:
        load_initial_weights_(network, initial, num_classes=len(data.class_names), in_channels=channels)
    network.eval()  # batch norms must not move
    with torch.no_grad():
        scores = run_classifier(network, torch.zeros(2, channels, height, width)).shape[1]
    if scores != len(data.class_names):  # a factory need not heed num_classes
        raise ConfigError(
            f"the network gives {scores} scores for {len(data.class_names)} classes; let the factory use num_classes"
        )
    return network.train()


def _check_size(build: Callable[[], nn.Module], *, model: str) -> None:
    """Raise ConfigError if a network is too large, before memory is taken for it."""
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build().parameters())
    if parameters > MAX_PARAMETERS:
        raise ConfigError(
            f"{model} has {parameters} parameters with these arguments, and at most {MAX_PARAMETERS} are trained; make "
            "it narrower with --model-arg"
        )
