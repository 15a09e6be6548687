"""Start a training from the weights of another one: files of torchvision, timm, and training scripts of all kinds."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from smart_common.errors import shortened
from smart_train.checkpoint.format import FORMAT
from smart_train.checkpoint.reader import plain_value, read_bytes
from smart_train.errors import CheckpointError
from smart_train.options import check_normalisation
from smart_train.training.published_names import in_our_names

_log = logging.getLogger(__name__)

# Under which training scripts put it, beside optimisers and epochs; of a best and a last the last.
_INSIDE = ("state_dict", "model_state_dict", "model", "net", "last")
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of data-parallel and compiled wrappers, and of training frameworks
_MOST_WRAPPERS = 8  # around one another
_AVERAGED = "n_averaged"
_NORMALISING = (("mu", "sigma"), ("mean", "std"))  # buffers of networks that normalise images themselves
_CHANNELS = (1, 3)  # values of these
_COUNTER = "num_batches_tracked"  # of batch norms; older files have none, and nothing follows from it
_MOST_SHARED = 4  # how often tensors may share the numbers in a file
_MAX_HEADER_BYTES = 4 * 2**20  # of safetensors: names, types and shapes, some hundred bytes a tensor
_LISTED = 5  # names that a refusal gives


@dataclass(frozen=True, eq=False)
class InitialWeights:
    """A network's tensors by name, and the SHA-256 of the file they came from, whose ``name`` is for messages."""

    tensors: dict[str, Tensor]
    sha256: str
    name: str = "the file to start from"

    def normalising(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return the mean and std, a value or one a channel, that a network with these buffers normalises images by."""
        for pair in _NORMALISING:
            mean, std = ([t for name, t in self.tensors.items() if name.rpartition(".")[2] == part] for part in pair)
            if len(mean) == len(std) == 1 and mean[0].shape == std[0].shape and mean[0].numel() in _CHANNELS:
                found = tuple(mean[0].flatten().tolist()), tuple(std[0].flatten().tolist())
                check_normalisation(*found, wanted=f"{' and '.join(pair)} in {self.name}")
                return found
        return None


def read_initial_weights(path: Path) -> InitialWeights:
    """Read a state dict, alone or under one of ``_INSIDE``, that may come from a stranger: no code of it runs.

    Files of ``torch.save``, of the time before version 1.6 too, and ``.safetensors`` are read.

    Raises:
        CheckpointError: if the file is missing or too large, or holds anything else.
    """
    data = read_bytes(path)
    if path.suffix == ".safetensors":
        raw: Any = _safetensors(data, path=path)
    else:
        raw = plain_value(data, path=path, kind="state dict of tensors", parameters=True)
    found: Any = raw
    if isinstance(raw, dict) and not _is_state(raw):
        if isinstance(raw.get("format"), str) and raw["format"] == FORMAT:
            raise CheckpointError(
                f"{path} is a smart-edge checkpoint, whose paths have batch norms of their own; save what a path has, "
                "torch.save(load_checkpoint(FILE).net.path(NAME).network.state_dict(), NEW), or resume it"
            )
        found = next((raw[key] for key in _INSIDE if isinstance(raw.get(key), dict)), None)
    if not isinstance(found, dict) or not _is_state(found):
        raise CheckpointError(
            f"no tensors by name in {path}, neither alone nor under {', '.join(_INSIDE)}; save network.state_dict()"
        )
    tensors = {name: tensor.detach() for name, tensor in found.items()}
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > _MOST_SHARED * len(data):
        raise CheckpointError(f"the tensors in {path} claim more numbers than the file holds; copy it again")
    return InitialWeights(tensors, hashlib.sha256(data).hexdigest(), shortened(path.name))


def _safetensors(data: bytes, *, path: Path) -> dict[str, Tensor]:
    damaged = CheckpointError(f"no file of safetensors at {path}, or a damaged one; copy it again")
    if int.from_bytes(data[:8], "little") > _MAX_HEADER_BYTES:
        raise damaged
    try:
        return load(data)
    except Exception as error:  # a damaged file has errors of the library's own
        raise damaged from error


def _is_state(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _unwrapped(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors by their names, and by those without each prefix that all of them have.

    A running average of a network (``torch.optim.swa_utils.AveragedModel``) counts beside them what it has averaged,
    and a network that normalises images in a wrapper has the buffers for it there.
    """
    yield tensors
    for _ in range(_MOST_WRAPPERS):
        names = [name for name in tensors if not _beside(name)]
        prefix = next((p for p in _PREFIXES if names and all(name.startswith(p) for name in names)), None)
        if prefix is None:
            return
        tensors = {name.removeprefix(prefix): tensors[name] for name in names}
        yield tensors


def _beside(name: str) -> bool:
    return name == _AVERAGED or any(name in pair for pair in _NORMALISING)


@torch.no_grad()
def load_initial_weights_(network: nn.Module, weights: InitialWeights, *, num_classes: int, in_channels: int) -> None:
    """Copy the weights into a plain ``network``, in place; a head for other classes starts anew, and it is said.

    Prefixes of wrappers are taken off the names where they fit better without, and names of published residual networks
    become ours where they fit better so. Filters for RGB become filters for grey
    by their sum over the channels, and the other way round by a third of them for each, as timm does it. Counters of
    batch norms may be missing or too many; floating types may differ and are converted.

    Raises:
        CheckpointError: if any other name or shape differs, or a value is not finite; it names the first ones.
    """
    wanted = network.state_dict()
    forms = [form for tensors in _unwrapped(weights.tensors) for form in (tensors, in_our_names(tensors))]
    given = max(forms, key=lambda tensors: len(wanted.keys() & tensors.keys()))
    fitting: dict[str, Tensor] = {}
    head = next(reversed(wanted)).rpartition(".")[0]  # the module that comes last
    new_head, misfits = [], []
    for name, tensor in wanted.items():
        found = given.get(name)
        if found is None:
            if name.rpartition(".")[2] != _COUNTER:
                misfits.append(f"no {name}")
            continue
        plain = found.layout == torch.strided and found.device.type == "cpu" and not found.is_quantized
        if not plain or found.is_floating_point() != tensor.is_floating_point():
            misfits.append(f"{name} is {found.dtype}")
            continue
        found = _for_channels(found, tensor.shape, channels=in_channels)  # of a size that was checked
        if found.shape == tensor.shape:
            fitting[name] = found
        elif name.startswith(f"{head}.") and (num_classes, *found.shape[1:]) == tensor.shape:
            new_head.append(name)
        else:
            misfits.append(f"{name} has shape {tuple(found.shape)} instead of {tuple(tensor.shape)}")
        if name in fitting and found.is_floating_point() and not bool(torch.isfinite(found).all()):
            misfits.append(f"{name} has values that are not finite")
    misfits += [f"{shortened(name)} is not in the network" for name in given if name not in wanted and _counts(name)]
    if misfits:
        more = f"; and {len(misfits) - _LISTED} more" if len(misfits) > _LISTED else ""
        raise CheckpointError(
            f"{weights.name} does not fit the network, {len(fitting)} of whose {len(wanted)} tensors it has: "
            f"{'; '.join(misfits[:_LISTED])}{more}; give a state dict of the same network"
        )
    for name, tensor in fitting.items():
        wanted[name].copy_(tensor)
    if new_head:
        classes = given[new_head[0]].shape[0]
        _log.warning(
            "note: %d of %d tensors are from %s; %s, for its %d classes, start anew for %d",
            *(len(fitting), len(wanted), weights.name, " and ".join(new_head), classes, num_classes),
        )


def _counts(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last != _COUNTER and not any(last in pair for pair in _NORMALISING)


def _for_channels(weight: Tensor, shape: Sequence[int], *, channels: int) -> Tensor:
    """Return a first layer's ``weight`` for images of ``channels`` where it has RGB or grey and the other is wanted."""
    if (
        weight.dim() != 4
        or len(shape) != 4
        or (weight.shape[1], shape[1]) not in {(1, 3), (3, 1)}
        or shape[1] != channels
    ):
        return weight
    return weight.sum(1, keepdim=True) if shape[1] == 1 else weight.expand(-1, 3, -1, -1) / 3
