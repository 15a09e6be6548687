"""The network that a training starts from, before anything of it is masked; its weights may be of another training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smart_common.files import digest_of_file
from smart_train.architectures.build import build_network
from smart_train.architectures.custom import Factory
from smart_train.checkpoint.format import FORMAT
from smart_train.checkpoint.reader import read_plain
from smart_train.data.images import ImageSet
from smart_train.errors import CheckpointError, ConfigError
from smart_train.masking.tracing import run_classifier
from smart_train.training.config import TrainConfig
from smart_train.training.schedule import Stream

_INSIDE = ("state_dict", "model")  # under which training scripts put it, beside optimisers and epochs
_PREFIX = "module."  # of torch's data-parallel wrappers
_COUNTER = "num_batches_tracked"  # of batch norms; older files have none, and nothing follows from it


@dataclass(frozen=True, eq=False)
class InitialWeights:
    """A network's tensors by name, and the SHA-256 of the file they came from."""

    tensors: dict[str, Tensor]
    sha256: str


def read_initial_weights(path: Path) -> InitialWeights:
    """Read a state dict, alone or under ``state_dict`` or ``model``, that may come from a stranger: no code of it runs.

    Raises:
        CheckpointError: if the file is missing or too large, or holds anything else.
    """
    raw = read_plain(path, kind="state dict of tensors", parameters=True)
    found: Any = raw
    if isinstance(raw, dict) and not _is_state(raw):
        if isinstance(raw.get("format"), str) and raw["format"] == FORMAT:
            raise CheckpointError(
                f"{path} is a smart-edge checkpoint, whose paths have batch norms of their own; start from the file "
                "that it was trained from, or resume it"
            )
        found = next((raw[key] for key in _INSIDE if isinstance(raw.get(key), dict)), None)
    if not isinstance(found, dict) or not _is_state(found):
        raise CheckpointError(
            f"no tensors by name in {path}, neither alone nor under {' or '.join(_INSIDE)}; save network.state_dict()"
        )
    wrapped = all(name.startswith(_PREFIX) for name in found)
    tensors = {name.removeprefix(_PREFIX) if wrapped else name: tensor.detach() for name, tensor in found.items()}
    return InitialWeights(tensors, digest_of_file(path))


def _is_state(value: dict[Any, Any]) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


@torch.no_grad()
def load_initial_weights_(network: nn.Module, weights: InitialWeights) -> None:
    """Copy the weights into a plain ``network``, in place.

    Counters of batch norms may be missing or too many; floating types may differ and are converted.

    Raises:
        CheckpointError: if any other name or shape differs, or a value is not finite; it names the first.
    """
    wanted, given = network.state_dict(), weights.tensors
    for name, tensor in wanted.items():
        found = given.get(name)
        if found is None:
            if name.rpartition(".")[2] == _COUNTER:
                continue
            raise _mismatch(f"{name} of shape {tuple(tensor.shape)}", "none")
        plain = found.layout == torch.strided and found.device.type == "cpu" and not found.is_quantized
        if not plain or found.shape != tensor.shape or found.is_floating_point() != tensor.is_floating_point():
            raise _mismatch(f"{name} of shape {tuple(tensor.shape)}", f"{found.dtype} of shape {tuple(found.shape)}")
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise _mismatch(f"finite values in {name}", "others")
    extra = next((n for n in given if n not in wanted and n.rpartition(".")[2] != _COUNTER), None)
    if extra is not None:
        raise _mismatch(f"the network's {len(wanted)} tensors", f"{extra!a:.100} too")
    for name, tensor in wanted.items():
        if name in given:
            tensor.copy_(given[name])


def _mismatch(expected: str, got: str) -> CheckpointError:
    return CheckpointError(
        f"expected {expected} in the file to start from, got {got}; give a state dict of the same network, with as "
        f"many classes and image channels"
    )


def plain_network(
    config: TrainConfig, data: ImageSet, *, factory: Factory | None, initial: InitialWeights | None
) -> nn.Module:
    """Return the network of ``config`` for ``data``, with weights drawn by its seed, or the ``initial`` ones.

    Raises:
        CheckpointError: if the initial weights are those of another network.
        ConfigError: if the network does not give one score a class.
    """
    channels, height, width = data.shape
    network = build_network(
        config.model,
        num_classes=len(data.class_names),
        in_channels=channels,
        arguments=config.model_arguments,
        generator_seed=int(np.random.SeedSequence([config.seed, Stream.INIT]).generate_state(1)[0]),
        factory=factory,
    )
    if initial is not None:
        load_initial_weights_(network, initial)
    network.eval()  # batch norms must not move
    with torch.no_grad():
        scores = run_classifier(network, torch.zeros(2, channels, height, width)).shape[1]
    if scores != len(data.class_names):  # a factory need not heed num_classes
        raise ConfigError(
            f"the network gives {scores} scores for {len(data.class_names)} classes; let the factory use num_classes"
        )
    return network.train()
