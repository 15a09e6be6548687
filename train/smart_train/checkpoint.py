"""``ckpt.pt``: everything that evaluation and export need, as plain tensors, numbers and strings.

It is read with ``weights_only=True``, which builds tensors and containers and runs no code, and every name, type,
shape and range in it is checked before a network is built from it.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smart_train.accounting import batch_norm_parameters
from smart_train.architectures import ARCHITECTURES, build_network
from smart_train.errors import CheckpointError, ConfigError
from smart_train.files import save_atomically
from smart_train.groups import Group, Member, Point
from smart_train.network import Normalise, SmartNetwork, Structure

FORMAT = "smart-edge checkpoint"
FORMAT_VERSION = 1
MAX_BYTES = 4 * 2**30  # far above any edge classifier; a larger file is refused before it is read
_MAX_SIDE = 4096


@dataclass(frozen=True, eq=False)
class Samples:
    """Validation images that travel with the network, for verification, calibration and the accuracy gate.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        adversarial: per path, uint8 (N, H, W, C) within ``eps`` of ``images``, made on that path.
        eps: in pixel units.
        attack: its short form, ``pgd20x1``.
    """

    images: Tensor
    labels: Tensor
    adversarial: Mapping[str, Tensor]
    eps: float
    attack: str


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network with all that describes it.

    Attributes:
        architecture, arguments: a name in ``ARCHITECTURES`` and its arguments.
        input_shape: channels, height, width.
        class_names: one a class.
        mean, std: normalisation per channel.
        net: the network with its masks.
        training: plain record of how it was trained; holds no path of the machine.
        metrics: per path, what was measured on the validation split when it was saved.
        samples: images that travel with it.
    """

    architecture: str
    arguments: dict[str, int]
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    net: SmartNetwork
    samples: Samples
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)


def network_state(net: SmartNetwork) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of ``net``, the shared weights once under ``shared`` and each path's own under its name."""
    first = net.path(net.path_names[0]).network
    own = batch_norm_parameters(first)
    state = {"shared": {n: p.detach().cpu().clone() for n, p in first.named_parameters() if n not in own}}
    for path in net.path_names:
        tensors = net.path(path).network.state_dict()
        state[path] = {n: t.detach().cpu().clone() for n, t in tensors.items() if n not in state["shared"]}
    return state


def load_network_state_(net: SmartNetwork, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Copy what :func:`network_state` returned into ``net``, in place; names and shapes must match exactly.

    Raises:
        CheckpointError: if they do not.
    """
    for path in net.path_names:
        wanted = net.path(path).network.state_dict()
        given = {**state["shared"], **state[path]}
        wrong = sorted(wanted.keys() ^ given.keys()) or [
            n for n, t in wanted.items() if t.shape != given[n].shape or t.dtype != given[n].dtype
        ]
        if wrong:
            raise CheckpointError(
                f"expected the tensors of its architecture for path {path}, got a missing, extra or misshapen "
                f"{wrong[0]}; train or copy the checkpoint again"
            )
        net.path(path).network.load_state_dict(given)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write ``checkpoint`` to ``path``: beside it first, then renamed."""
    net = checkpoint.net
    save_atomically(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "architecture": {"name": checkpoint.architecture, "arguments": dict(checkpoint.arguments)},
            "input_shape": list(checkpoint.input_shape),
            "class_names": list(checkpoint.class_names),
            "normalisation": {"mean": list(checkpoint.mean), "std": list(checkpoint.std)},
            "paths": list(net.path_names),
            "structure": {
                "name": net.structure.name,
                "density": net.structure.density,
                "align": net.structure.align,
                "scope": net.structure.scope,
            },
            "groups": [_group_record(group) for group in net.groups],
            "masks": {path: [m.cpu() for m in net.masks(path)] for path in net.path_names},
            "state": network_state(net),
            "training": checkpoint.training,
            "metrics": checkpoint.metrics,
            "samples": {
                "images": checkpoint.samples.images,
                "labels": checkpoint.samples.labels,
                "adversarial": dict(checkpoint.samples.adversarial),
                "eps": checkpoint.samples.eps,
                "attack": checkpoint.samples.attack,
            },
        },
        path,
    )


def _group_record(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "size": group.size,
        "members": [{"module": m.module, "axis": m.axis, "indices": m.indices} for m in group.members],
        "points": [{"layer": p.layer, "producer": p.producer} for p in group.points],
    }


def read_plain(path: Path) -> Any:
    """Read a file of tensors and plain values; anything that would run code is refused and does not run.

    Raises:
        CheckpointError: if it is missing, too large, damaged, or holds more than tensors and plain values.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"expected a checkpoint at {path}, got {error.strerror}; check the path") from error
    if size > MAX_BYTES:
        raise CheckpointError(
            f"expected a checkpoint of at most {MAX_BYTES} bytes, got {size} in {path}; it is not one of ours"
        )
    foreign = CheckpointError(
        f"expected a smart-edge checkpoint of tensors and plain values, got something else in {path}, which was not run "
        f"or loaded; train one with smart-train"
    )
    if not zipfile.is_zipfile(path):  # torch.save writes zip files; a bare pickle is refused unread
        raise foreign
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
    ) as error:
        raise foreign from error


class _Reader:
    """Takes values out of a checkpoint's nested dictionaries, refusing what is missing or of another type."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"expected {what} in the checkpoint {self._path}, got another value; it is damaged or not one of ours"
        )

    def get(self, source: Any, key: str, kind: type | tuple[type, ...]) -> Any:
        if not isinstance(source, Mapping) or key not in source or not isinstance(source[key], kind):
            raise self.fail(f"a value '{key}'")
        if isinstance(source[key], bool) and kind in (int, float, (int, float)):
            raise self.fail(f"a number '{key}'")
        return source[key]

    def numbers(self, source: Any, key: str, *, length: int) -> tuple[float, ...]:
        values = self.get(source, key, list)
        if len(values) != length or not all(isinstance(v, int | float) and abs(v) < 1e6 for v in values):
            raise self.fail(f"{length} numbers '{key}'")
        return tuple(float(v) for v in values)

    def names(self, source: Any, key: str) -> tuple[str, ...]:
        values = self.get(source, key, list)
        if not values or not all(isinstance(v, str) for v in values):
            raise self.fail(f"names '{key}'")
        return tuple(values)

    def tensor(self, source: Any, key: str, *, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        value = self.get(source, key, Tensor)
        if value.dtype != dtype or tuple(value.shape) != shape:
            raise self.fail(f"a {dtype} tensor '{key}' of shape {shape}")
        assert isinstance(value, Tensor)
        return value


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that may come from a stranger.

    Raises:
        CheckpointError: if anything in it is not as this version writes it.
    """
    raw = read_plain(path)
    read = _Reader(path)
    if not isinstance(raw, Mapping) or raw.get("format") != FORMAT:
        raise CheckpointError(
            f"expected a smart-edge checkpoint, got another file in {path}; train one with smart-train"
        )
    version = read.get(raw, "format_version", int)
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"expected checkpoint format {FORMAT_VERSION} or older, got {version} in {path}; update smart-edge"
        )
    try:
        return _build(raw, read)
    except ConfigError as error:  # a network or structure this version cannot build
        raise CheckpointError(f"{error} (in the checkpoint {path})") from error


def _build(raw: Mapping[str, Any], read: _Reader) -> Checkpoint:
    architecture = read.get(raw, "architecture", Mapping)
    name = read.get(architecture, "name", str)
    arguments = read.get(architecture, "arguments", Mapping)
    if not all(isinstance(k, str) and isinstance(v, int) for k, v in arguments.items()):
        raise read.fail("integer model arguments")
    shape = read.get(raw, "input_shape", list)
    if len(shape) != 3 or not all(isinstance(v, int) and 1 <= v <= _MAX_SIDE for v in shape):
        raise read.fail(f"an input shape of three numbers up to {_MAX_SIDE}")
    channels, height, width = shape
    class_names = read.names(raw, "class_names")
    normalisation = read.get(raw, "normalisation", Mapping)
    mean = read.numbers(normalisation, "mean", length=channels)
    std = read.numbers(normalisation, "std", length=channels)
    if min(std) <= 0:
        raise read.fail("standard deviations above 0")
    paths = read.names(raw, "paths")
    structure = read.get(raw, "structure", Mapping)
    # On the meta device first: names and shapes are compared before memory is taken for them.
    with torch.device("meta"):
        plain = build_network(
            name, num_classes=len(class_names), in_channels=channels, arguments=dict(arguments), generator_seed=0
        )
    _check_state(plain, read.get(raw, "state", Mapping), paths=paths, read=read)
    modules = dict(plain.named_modules())
    groups = [_group(record, modules, read) for record in read.get(raw, "groups", list)]
    net = SmartNetwork(
        plain.to_empty(device="cpu"),
        paths=paths,
        groups=groups,
        structure=Structure(
            name=read.get(structure, "name", str),
            density=float(read.get(structure, "density", (int, float))),
            align=read.get(structure, "align", int),
            scope=read.get(structure, "scope", str),
        ),
        normalise=Normalise(mean=mean, std=std),
    )
    load_network_state_(net, raw["state"])
    masks = read.get(raw, "masks", Mapping)
    for path in paths:
        keeps = read.get(masks, path, list)
        if len(keeps) != len(groups):
            raise read.fail(f"a mask for each group of path {path}")
        for i, keep in enumerate(keeps):
            if not isinstance(keep, Tensor):
                raise read.fail(f"bool masks of path {path}")
            net.set_mask(path, i, keep)
    net.eval()
    return Checkpoint(
        architecture=name,
        arguments=dict(arguments),
        input_shape=(channels, height, width),
        class_names=class_names,
        mean=mean,
        std=std,
        net=net,
        samples=_samples(raw, read, paths=paths, shape=(height, width, channels)),
        training=dict(read.get(raw, "training", Mapping)),
        metrics={path: dict(read.get(read.get(raw, "metrics", Mapping), path, Mapping)) for path in paths},
    )


def _check_state(plain: nn.Module, state: Mapping[str, Any], *, paths: tuple[str, ...], read: _Reader) -> None:
    own = batch_norm_parameters(plain)
    shared = {n for n, _ in plain.named_parameters() if n not in own}
    wanted = plain.state_dict()
    for part in ("shared", *paths):
        tensors = read.get(state, part, Mapping)
        names = shared if part == "shared" else wanted.keys() - shared
        if set(tensors) != set(names):
            raise read.fail(f"the tensors of its architecture under '{part}'")
        for name in names:
            read.tensor(tensors, name, dtype=wanted[name].dtype, shape=tuple(wanted[name].shape))


def _group(record: Any, modules: Mapping[str, nn.Module], read: _Reader) -> Group:
    size = read.get(record, "size", int)
    if not 1 <= size <= 2**20:
        raise read.fail("a group size of 1 or more")
    members = []
    for member in read.get(record, "members", list):
        module, axis = read.get(member, "module", str), read.get(member, "axis", str)
        indices = read.get(member, "indices", Tensor)
        found = modules.get(module)
        if axis == "channel":
            length = found.num_features if isinstance(found, nn.BatchNorm2d) else getattr(found, "groups", 0)
        elif axis in {"in", "out"} and isinstance(found, nn.Conv2d):
            length = found.in_channels if axis == "in" else found.out_channels
        elif axis in {"in", "out"} and isinstance(found, nn.Linear):
            length = found.in_features if axis == "in" else found.out_features
        else:
            length = 0
        fits = indices.dtype == torch.int64 and indices.dim() == 2 and indices.shape[0] == size and indices.numel() > 0
        if not fits or int(indices.min()) < 0 or int(indices.max()) >= length:
            raise read.fail(f"channel numbers of {module} in a group")
        members.append(Member(module, axis, indices))
    outputs = {m.module for m in members if m.axis != "in"}
    points = []
    for point in read.get(record, "points", list):
        layer, producer = read.get(point, "layer", str), read.get(point, "producer", (str, type(None)))
        if layer not in outputs or (producer is not None and producer not in outputs):
            raise read.fail("mask points that are members of their group")
        points.append(Point(layer, producer))
    if not points:
        raise read.fail("a mask point for each group")
    return Group(read.get(record, "name", str), size, tuple(members), tuple(points))


def _samples(raw: Mapping[str, Any], read: _Reader, *, paths: tuple[str, ...], shape: tuple[int, int, int]) -> Samples:
    samples = read.get(raw, "samples", Mapping)
    count = len(read.get(samples, "labels", Tensor))
    adversarial = read.get(samples, "adversarial", Mapping)
    return Samples(
        images=read.tensor(samples, "images", dtype=torch.uint8, shape=(count, *shape)),
        labels=read.tensor(samples, "labels", dtype=torch.int64, shape=(count,)),
        adversarial={p: read.tensor(adversarial, p, dtype=torch.uint8, shape=(count, *shape)) for p in paths},
        eps=float(read.get(samples, "eps", (int, float))),
        attack=read.get(samples, "attack", str),
    )


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a person wants to know of a checkpoint, as plain values for a table or JSON."""
    from smart_train.accounting import densities  # noqa: PLC0415  # only needed here

    found = densities(checkpoint.net)
    return {
        "architecture": checkpoint.architecture,
        "arguments": checkpoint.arguments or {"width": ARCHITECTURES[checkpoint.architecture].width},
        "input_shape": list(checkpoint.input_shape),
        "class_names": list(checkpoint.class_names),
        "structure": {
            "name": checkpoint.net.structure.name,
            "density": checkpoint.net.structure.density,
            "align": checkpoint.net.structure.align,
            "scope": checkpoint.net.structure.scope,
        },
        "union_density": found.union,
        "paths": {
            path: {
                "density": found.channels[path],
                "parameter_density": found.parameters[path],
                **checkpoint.metrics[path],
            }
            for path in checkpoint.net.path_names
        },
        "training": checkpoint.training,
    }
