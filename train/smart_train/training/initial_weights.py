"""Start a training from a plain checkpoint of the same network: the weights that someone trained without masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smart_common.files import digest_of_file
from smart_train.checkpoint.format import FORMAT
from smart_train.checkpoint.reader import read_plain
from smart_train.errors import CheckpointError

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
            raise _mismatch(f"{name} of shape {_shape(tensor)}", "none")
        plain = found.layout == torch.strided and found.device.type == "cpu" and not found.is_quantized
        if not plain or found.shape != tensor.shape or found.is_floating_point() != tensor.is_floating_point():
            raise _mismatch(f"{name} of shape {_shape(tensor)}", f"{found.dtype} of shape {_shape(found)}")
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise _mismatch(f"finite values in {name}", "others")
    extra = next((n for n in given if n not in wanted and n.rpartition(".")[2] != _COUNTER), None)
    if extra is not None:
        raise _mismatch(f"the network's {len(wanted)} tensors", f"{extra!a:.100} too")
    for name, tensor in wanted.items():
        if name in given:
            tensor.copy_(given[name])


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _mismatch(expected: str, got: str) -> CheckpointError:
    return CheckpointError(
        f"expected {expected} in the file to start from, got {got}; give a state dict of the same network, with as "
        f"many classes and image channels"
    )
