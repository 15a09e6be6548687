"""``ckpt.pt``: everything that evaluation and export need, as plain tensors, numbers and strings.

It is read with ``weights_only=True``, which builds tensors and containers and runs no code, and every name, type,
shape and range in it is checked before a network is built from it.
"""

from __future__ import annotations

import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from smart_common.roles import Role, default_role
from smart_train.architectures import ARCHITECTURES, CUSTOM, Argument, Factory, build_network
from smart_train.checkpoint.atomic import save_atomically
from smart_train.data.images import MAX_SIDE, VALIDATION_SAMPLES
from smart_train.errors import CheckpointError, ConfigError
from smart_train.masking.accounting import batch_norm_parameters, densities
from smart_train.masking.groups import Axis, Group, Member, Point, Scope
from smart_train.masking.layers import layer_norm_axis
from smart_train.masking.network import Normalise, SmartNetwork, check_path_names
from smart_train.masking.parts import (
    Part,
    axis_length,
    has_plain_inputs,
    has_whole_filter_groups,
    is_depthwise,
    is_grouped,
    parameter_axis,
    parts,
)
from smart_train.masking.structure import Structure
from smart_train.masking.weight_masks import kept_inputs, pattern_holds

FORMAT = "smart-edge checkpoint"
FORMAT_VERSION = 1
MAX_BYTES = 4 * 2**30  # far above any edge classifier; a larger file is refused before it is read
_MAX_PICKLE_BYTES = 4 * 2**20  # a real one has under 1 MiB; each byte can ask for 60, and a microsecond, when read
_MAX_ENTRIES = 4096  # a tensor is one; networks of some hundred layers have a thousand
_MAX_PATHS = 16
_MAX_ARGUMENTS = 16  # of an architecture
_MAX_CLASSES = 2**16  # three times ImageNet-21k's
_MAX_NAME = 1024  # characters of one name
_MAX_DEPTH = 8  # of nested plain values
_MAX_VALUES = 2**20  # in the plain record
_LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)  # whose parameters are sliced with them
_LEVEL_TOLERANCE = 1e-3  # of a pixel's 255 levels: float32 images are exact to a twentieth of that

# All that torch.save writes for tensors. torch reads more without running code, but not without harm: a bytearray of
# any length, a text in any codec.
_PICKLE_NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch BoolStorage",
    "torch ByteStorage",
    "torch FloatStorage",
    "torch LongStorage",
}
_PARAMETER_NAMES = {
    "torch._utils _rebuild_parameter",
    "torch BFloat16Storage",
    "torch DoubleStorage",
    "torch HalfStorage",
    "torch IntStorage",
}


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
        architecture, arguments: a name in ``ARCHITECTURES`` and its arguments; or ``CUSTOM`` for a network of the
            user's own, and those of its factory, which is not stored.
        input_shape: channels, height, width.
        class_names: one a class.
        mean, std: normalisation per channel.
        net: the network with its masks.
        training: plain record of how it was trained; holds no path of the machine.
        metrics: per path, what was measured on the test split; empty until the training has ended.
        samples: images that travel with it.
        roles: what each path is for; one that has no role here has its name's (`smart_common.roles`).
    """

    architecture: str
    arguments: Mapping[str, Argument]
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    net: SmartNetwork
    samples: Samples
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    roles: Mapping[str, Role] = field(default_factory=dict)

    def role(self, path: str) -> Role:
        """Return what ``path`` is for."""
        return self.roles.get(path) or default_role(path)


def network_state(net: SmartNetwork) -> dict[str, Any]:
    """Return copies of the tensors of ``net``: the shared weights once, and each path's own.

    The form is ``{"shared": {name: tensor}, "paths": {path: {name: tensor}}}``, names as inside the plain network.
    """
    first = net.path(net.path_names[0]).network
    own = batch_norm_parameters(first)
    shared = {n: p.detach().cpu().clone() for n, p in first.named_parameters() if n not in own}
    paths = {
        path: {n: t.detach().cpu().clone() for n, t in net.path(path).network.state_dict().items() if n not in shared}
        for path in net.path_names
    }
    return {"shared": shared, "paths": paths}


def load_network_state_(net: SmartNetwork, state: Mapping[str, Any]) -> None:
    """Copy what :func:`network_state` returned into ``net``, in place; names and shapes must match exactly.

    Raises:
        CheckpointError: if they do not.
    """
    for path in net.path_names:
        wanted = net.path(path).network.state_dict()
        given = {**state["shared"], **state["paths"][path]}
        wrong = sorted(wanted.keys() ^ given.keys()) or [
            n for n, t in wanted.items() if t.shape != given[n].shape or t.dtype != given[n].dtype
        ]
        if wrong:
            raise CheckpointError(
                f"expected the tensors of its architecture for path {path}, got a missing, extra or misshapen "
                f"{wrong[0]}; train or copy the checkpoint again"
            )
        net.path(path).network.load_state_dict(given)


def save_checkpoint(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
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
            "roles": {path: checkpoint.role(path).value for path in net.path_names},
            "structure": asdict(net.structure),
            "groups": [_group_record(group) for group in net.groups],
            "masks": {path: [m.cpu() for m in net.masks(path)] for path in net.path_names},
            **_weights_record(net),
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
        Path(path),
    )


def _weights_record(net: SmartNetwork) -> dict[str, Any]:
    """Return the masks of single weights, and which layers have none and why; nothing where only channels are."""
    if not net.structure.removes.weights:
        return {}
    return {
        "weight_masks": {path: {n: m.cpu() for n, m in net.weight_masks(path).items()} for path in net.path_names},
        "dense_layers": net.dense_layers,
    }


def _group_record(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "size": group.size,
        "members": [{"module": m.module, "axis": m.axis, "indices": m.indices} for m in group.members],
        "points": [{"layer": p.layer, "producer": p.producer} for p in group.points],
    }


def read_plain(
    path: Path, *, kind: str = "a smart-edge checkpoint of tensors and plain values", parameters: bool = False
) -> Any:
    """Read a file of tensors and plain values; anything that would run code is refused and does not run.

    Args:
        path: the file, as ``torch.save`` writes it.
        kind: what is expected of it, for the error.
        parameters: whether it may hold ``nn.Parameter`` objects and all kinds of numbers, as others' files do.

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
    try:
        _check_archive(path, names=_PICKLE_NAMES | _PARAMETER_NAMES if parameters else _PICKLE_NAMES)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a foreign file makes the readers of zip and pickle trip over has no bounds
        raise CheckpointError(
            f"expected {kind}, got something else or a damaged file in {path}, which was not run or loaded; copy it "
            f"again, or {'save network.state_dict() with torch.save' if parameters else 'train one with smart-train'}"
        ) from error


def _check_archive(path: Path, *, names: Set[str]) -> None:
    """Raise ValueError unless the file is a zip as torch.save writes it: stored, not compressed, every byte as summed.

    torch checks no sums itself, and reads what is no zip in older ways of its own.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise ValueError("not a file of torch.save")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size for e in entries):
            raise ValueError("compressed")
        if len({e.filename.lower() for e in entries}) != len(entries):  # torch finds a name in capitals too
            raise ValueError("two entries of one name")
        if any(e.external_attr for e in entries):  # one bit of it makes an entry a folder, which torch reads as nothing
            raise ValueError("an entry that is no plain file")
        if sum(e.file_size for e in entries) > path.stat().st_size:
            raise ValueError("overlapping entries")
        pickles = [e for e in entries if e.filename.lower().endswith(".pkl")]
        if len(entries) > _MAX_ENTRIES or len(pickles) != 1:
            raise ValueError("too many entries, or not one that says what the others are")
        if pickles[0].file_size > _MAX_PICKLE_BYTES:
            raise ValueError("too many plain values")
        if archive.testzip() is not None:
            raise ValueError("a checksum differs")
        _check_pickle(archive.read(pickles[0]), names=names, entries=len(entries))


def _check_pickle(data: bytes, *, names: Set[str], entries: int) -> None:
    """Raise ValueError if the pickle names more than tensors are made of, or holds what can share one hash.

    A dictionary of many keys with one hash takes minutes to fill. Long numbers and tuples can be made so; ours has none
    of the first, and of the second five for each tensor, which is an entry of the file.
    """
    tuples_left = 8 * entries + 64
    for opcode, argument, _ in pickletools.genops(data):
        tuples_left -= "TUPLE" in opcode.name
        if tuples_left < 0:
            raise ValueError("more tuples than tensors need")
        if opcode.name == "GLOBAL" and argument not in names:
            raise ValueError("more than tensors and plain values")
        if isinstance(argument, int) and not -(2**63) <= argument < 2**63:
            raise ValueError("a number that is too long")


class _Reader:
    """Takes values out of a checkpoint's nested dictionaries, refusing what is missing or of another type.

    Tensors are counted against the size of the file: a pickle can claim a tensor of any size over a few stored bytes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes_left = path.stat().st_size
        self._values_left = _MAX_VALUES
        self._characters_left = _MAX_PICKLE_BYTES

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"expected {what} in the checkpoint {self._path}, got another value; it is damaged or not one of ours"
        )

    def get(self, source: Any, key: str, kind: type | tuple[type, ...]) -> Any:
        if not isinstance(source, dict) or key not in source or not isinstance(source[key], kind):
            raise self.fail(f"a value '{key}'")
        return source[key]

    def integer(self, source: Any, key: str) -> int:
        value = self.get(source, key, int)
        if isinstance(value, bool) or abs(value) >= 2**31:
            raise self.fail(f"an integer '{key}'")
        return int(value)

    def number(self, source: Any, key: str) -> float:
        value = self.get(source, key, (int, float))
        if isinstance(value, bool) or not abs(value) < 1e6:  # false for nan too
            raise self.fail(f"a finite number '{key}'")
        return float(value)

    def fraction(self, source: Any, key: str) -> float:
        value = self.number(source, key)
        if not 0 <= value <= 1:
            raise self.fail(f"{key} in [0, 1]")
        return value

    def argument(self, source: Any, key: str) -> Argument:
        """Return an argument of a network: a whole number, a finite one, true or false, or printable text."""
        value = self.get(source, key, (bool, int, float, str))
        if isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self.text(source, key)
        return self.integer(source, key) if isinstance(value, int) else self.number(source, key)

    def numbers(self, source: Any, key: str, *, length: int) -> tuple[float, ...]:
        values = self.get(source, key, list)
        if len(values) != length:
            raise self.fail(f"{length} numbers '{key}'")
        return tuple(self.number({key: v}, key) for v in values)

    def text(self, source: Any, key: str) -> str:
        """Return a name, printable because it may reach a terminal."""
        value = self.get(source, key, str)
        if not 1 <= len(value) <= _MAX_NAME or not value.isprintable():
            raise self.fail(f"printable text of up to {_MAX_NAME} characters '{key}'")
        return str(value)

    def texts(self, source: Any, key: str, *, least: int, most: int) -> tuple[str, ...]:
        values = self.get(source, key, list)
        if not least <= len(values) <= most:
            raise self.fail(f"from {least} to {most} '{key}'")
        return tuple(self.text({key: v}, key) for v in values)

    def tensor(self, source: Any, key: str, *, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor:
        """Return a copy of a plain tensor on the CPU; None in ``shape`` stands for any length."""
        value = self.get(source, key, Tensor)
        plain = type(value) is Tensor and value.layout == torch.strided and value.device.type == "cpu"
        fits = len(shape) == value.dim() and all(w in (None, n) for w, n in zip(shape, value.shape, strict=True))
        # A tensor may be stored as the negative of its bytes, which NumPy does not take.
        if not plain or not fits or value.dtype != dtype or value.requires_grad or value.is_neg():
            raise self.fail(f"a {dtype} tensor '{key}' of shape {shape}")
        self._bytes_left -= value.numel() * value.element_size()
        if self._bytes_left < 0:
            raise self.fail("tensors no larger than the file")
        if dtype.is_floating_point and not bool(torch.isfinite(value).all()):
            raise self.fail(f"finite values in '{key}'")
        copy: Tensor = value.clone(memory_format=torch.contiguous_format)
        return copy

    def record(self, source: Any, key: str) -> dict[str, Any]:
        """Return a dictionary of plain values that JSON can hold."""
        found = self.get(source, key, dict)
        self._plain(found, key, depth=0)
        return dict(found)

    def _plain(self, value: Any, key: str, *, depth: int) -> None:
        self._values_left -= 1  # a list may hold another one many times over, and that one another
        if type(value) is str:
            self._characters_left -= len(value)  # likewise
        if depth > _MAX_DEPTH or self._values_left < 0 or self._characters_left < 0:
            raise self.fail(f"a record '{key}' of less depth and length")
        if type(value) is dict and all(type(k) is str for k in value):
            inner = [*value, *value.values()]
        elif type(value) is list:
            inner = value
        elif (
            value is None
            or type(value) is bool
            or (type(value) is str and value.isprintable())  # it may reach a terminal
            or (type(value) is int and abs(value) < 2**63)
            or (type(value) is float and math.isfinite(value))
        ):
            return
        else:
            raise self.fail(f"plain values in '{key}'")
        for item in inner:
            self._plain(item, key, depth=depth + 1)


def plain_record(raw: Any, key: str, *, path: Path) -> dict[str, Any]:
    """Return what stands under ``key`` in ``raw``, which :func:`read_plain` read from ``path``: values as in JSON.

    Raises:
        CheckpointError: if it is no dictionary of plain values, or a very large or deep one.
    """
    return _Reader(path).record(raw, key)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    factory: Factory | None = None,
    arguments: Mapping[str, Argument] | None = None,
) -> Checkpoint:
    """Read a checkpoint that may come from a stranger.

    Args:
        path: the file.
        factory: what makes the network, for one of the user's own: a checkpoint names no code. It gets the arguments
            that the checkpoint holds.
        arguments: take the place of those of the same name.

    Raises:
        CheckpointError: if anything in it is not as this version writes it, or the network is the user's own and there
            is no factory or one that gives another network.
    """
    path = Path(path)
    raw = read_plain(path)
    read = _Reader(path)
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), str) or raw["format"] != FORMAT:
        raise CheckpointError(
            f"expected a smart-edge checkpoint, got another file in {path}; train one with smart-train"
        )
    version = read.integer(raw, "format_version")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"expected checkpoint format {FORMAT_VERSION} or older, got {version} in {path}; update smart-edge"
        )
    try:
        return _build(raw, read, factory=factory, overruling=arguments or {})
    except ConfigError as error:  # a network or structure this version cannot build
        raise CheckpointError(f"{error} (in the checkpoint {path})") from error


def _build(
    raw: Mapping[str, Any], read: _Reader, *, factory: Factory | None, overruling: Mapping[str, Argument]
) -> Checkpoint:
    """Check everything, on the meta device what is a network, and take memory for the network only then."""
    architecture = read.get(raw, "architecture", dict)
    name = read.text(architecture, "name")
    given = read.get(architecture, "arguments", dict)
    if len(given) > _MAX_ARGUMENTS:
        raise read.fail(f"at most {_MAX_ARGUMENTS} model arguments")
    stored = {read.text({"arguments": key}, "arguments"): read.argument(given, key) for key in given}
    arguments = {**stored, **overruling}
    sides = [read.integer({"input_shape": side}, "input_shape") for side in read.get(raw, "input_shape", list)[:4]]
    if len(sides) != 3 or not all(1 <= side <= MAX_SIDE for side in sides):
        raise read.fail(f"an input shape of three numbers up to {MAX_SIDE}")
    channels, height, width = sides
    class_names = read.texts(raw, "class_names", least=2, most=_MAX_CLASSES)
    normalisation = read.get(raw, "normalisation", dict)
    mean = read.numbers(normalisation, "mean", length=channels)
    std = read.numbers(normalisation, "std", length=channels)
    normalise = Normalise(mean=mean, std=std)
    paths = read.texts(raw, "paths", least=1, most=_MAX_PATHS)
    check_path_names(paths)
    roles = _roles(raw, read, paths=paths)
    structure = _structure(read.get(raw, "structure", dict), read)
    build = partial(
        build_network,
        name,
        num_classes=len(class_names),
        in_channels=channels,
        arguments=arguments,
        generator_seed=0,
        factory=factory,
    )
    plain = _on_meta(build, own=name == CUSTOM)
    state = _state(plain, read.get(raw, "state", dict), paths=paths, read=read)
    if name == CUSTOM:  # it may hold more than its state, and a layer norm of its own is tried to know its axis
        plain = build()
    groups = _groups(read.get(raw, "groups", list), parts(plain), read)
    if structure.removes.channels and not groups:
        raise read.fail("one or more groups")
    masks = {path: _masks(read.get(raw, "masks", dict), path, read, groups, structure) for path in paths}
    weight_masks: dict[str, dict[str, Tensor]] = {path: {} for path in paths}
    if structure.removes.weights:
        weight_masks = _weight_masks(raw, plain, structure, groups, masks=masks, read=read)
    dense_layers = _dense_layers(raw, read) if structure.removes.weights else {}
    metrics = read.get(raw, "metrics", dict)
    figures = {path: _metrics(metrics, path, read) for path in paths}
    training = read.record(raw, "training")
    samples = _samples(raw, read, paths=paths, shape=(height, width, channels), classes=len(class_names))

    net = SmartNetwork(
        plain if name == CUSTOM else plain.to_empty(device="cpu"),
        paths=paths,
        groups=groups,
        structure=structure,
        normalise=normalise,
        weight_layers=list(weight_masks[paths[0]]),
        dense_layers=dense_layers,
    )
    load_network_state_(net, state)
    for path, keeps in masks.items():
        for i, keep in enumerate(keeps):
            net.set_mask(path, i, keep)
        for layer, keep in weight_masks[path].items():
            net.set_weight_mask(path, layer, keep)
    net.eval()
    return Checkpoint(
        architecture=name,
        arguments=arguments,
        input_shape=(channels, height, width),
        class_names=class_names,
        mean=mean,
        std=std,
        net=net,
        samples=samples,
        training=training,
        metrics=figures,
        roles=roles,
    )


def _roles(raw: Mapping[str, Any], read: _Reader, *, paths: Sequence[str]) -> dict[str, Role]:
    """Return the role of each path; older checkpoints have none, and their names say it."""
    given = read.get(raw, "roles", dict) if "roles" in raw else {}
    roles = {}
    for path in paths:
        name = read.text(given, path) if path in given else default_role(path).value
        if name not in {role.value for role in Role}:
            raise read.fail(f"one of {', '.join(role.value for role in Role)} as the role of path {path}")
        roles[path] = Role(name)
    return roles


def _structure(source: dict[str, Any], read: _Reader) -> Structure:
    return Structure(
        name=read.text(source, "name"),
        density=read.number(source, "density"),
        align=read.integer(source, "align"),
        scope=cast("Scope", read.text(source, "scope")),
        min_channels=read.integer(source, "min_channels") if "min_channels" in source else 1,  # older ones have none
    )


def _on_meta(build: Callable[[], nn.Module], *, own: bool) -> nn.Module:
    """Return a network without values, or with them where it is of the user's ``own`` and cannot do without."""
    try:
        with torch.device("meta"):
            return build()
    except ConfigError:
        if not own:
            raise
    return build()


def _masks(
    source: dict[str, Any], path: str, read: _Reader, groups: Sequence[Group], structure: Structure
) -> list[Tensor]:
    """Return the masks of a path, which keep what the structure says: a checkpoint is written once they are frozen."""
    keeps = read.get(source, path, list)
    if len(keeps) != len(groups):
        raise read.fail(f"a mask for each group of path {path}")
    masks = []
    for group, keep in zip(groups, keeps, strict=True):
        mask = read.tensor({path: keep}, path, dtype=torch.bool, shape=(group.size,))
        kept = structure.kept(group.size, bundle=group.bundle)
        if int(mask.sum()) != kept:
            raise read.fail(f"masks of path {path} that keep {kept} of {group.size} channels of group {group.name}")
        masks.append(mask)
    return masks


def _weight_masks(
    raw: Mapping[str, Any],
    plain: nn.Module,
    structure: Structure,
    groups: Sequence[Group],
    *,
    masks: Mapping[str, Sequence[Tensor]],
    read: _Reader,
) -> dict[str, dict[str, Tensor]]:
    """Return the masks of single weights by path and layer, which keep what the structure says, in the sliced order.

    ``masks`` are those of channels, by path.
    """
    paths = list(masks)
    source = read.get(raw, "weight_masks", dict)
    given = {path: read.get(source, path, dict) for path in paths}
    layers = {name: m for name, m in plain.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    layers = {name: m for name, m in layers.items() if not isinstance(m, nn.Conv2d) or m.groups == 1}
    names = [name for name in layers if name in given[paths[0]]]
    if not names or any(found.keys() != set(names) for found in given.values()):
        raise read.fail("weight masks of the same layers, one or more, on each path")
    result: dict[str, dict[str, Tensor]] = {}
    for path in paths:
        inputs = kept_inputs(names, modules=layers, groups=groups, keeps=masks[path])
        result[path] = {}
        for name in names:
            shape = layers[name].weight.shape
            mask = read.tensor(given[path], name, dtype=torch.bool, shape=tuple(shape))
            pattern, keep_in = structure.removes.pattern, inputs[name]
            count = int(mask.numel() / len(keep_in) * int(keep_in.sum()))
            fits = pattern is None or pattern_holds(mask, keep_in=keep_in, pattern=pattern)
            if not fits or int(mask.sum()) != structure.kept_weights(count):
                raise read.fail(f"a weight mask of {name} on path {path} that keeps what {structure.name} says")
            result[path][name] = mask
    return result


def _dense_layers(raw: Mapping[str, Any], read: _Reader) -> dict[str, str]:
    given = read.record(raw, "dense_layers")
    return {read.text({"dense_layers": name}, "dense_layers"): read.text(given, name) for name in given}


def _metrics(source: dict[str, Any], path: str, read: _Reader) -> dict[str, Any]:
    found = read.record(source, path)
    for key in found.keys() & {"clean_accuracy", "robust_accuracy", "eps"}:
        found[key] = read.fraction(found, key)
    for key in found.keys() & {"clean_interval", "robust_interval"}:
        for end in read.numbers(found, key, length=2):
            read.fraction({key: end}, key)
    if "examples" in found and read.integer(found, "examples") < 0:
        raise read.fail("a count 'examples'")
    for key in found.keys() & {"attack", "split"}:
        read.get(found, key, str)
    return found


def _state(plain: nn.Module, state: dict[str, Any], *, paths: tuple[str, ...], read: _Reader) -> dict[str, Any]:
    """Return the tensors in the form of :func:`network_state`, checked against the network on the meta device."""
    own = batch_norm_parameters(plain)
    wanted = plain.state_dict()
    shared = {n for n, _ in plain.named_parameters() if n not in own}

    def part(source: Any, key: str, names: set[str]) -> dict[str, Tensor]:
        tensors = read.get(source, key, dict)
        if tensors.keys() != names:
            raise read.fail(f"the tensors of its architecture under '{key}'")
        return {
            name: read.tensor(tensors, name, dtype=wanted[name].dtype, shape=tuple(wanted[name].shape))
            for name in sorted(names)
        }

    each = read.get(state, "paths", dict)
    return {
        "shared": part(state, "shared", shared),
        "paths": {path: part(each, path, set(wanted) - shared) for path in paths},
    }


def _has_axis(part: Part | None, axis: str, *, of: Mapping[str, Part]) -> bool:
    """Whether ``part`` is one that a group can have channels in, on ``axis``."""
    if isinstance(part, nn.Parameter):
        own = {id(p) for m in of.values() if isinstance(m, _LAYERS) for p in m.parameters(recurse=False)}
        long = parameter_axis(part)
        return axis == "channel" and id(part) not in own and long is not None and long <= 1
    if isinstance(part, nn.LayerNorm):
        return axis == "channel" and layer_norm_axis(part) is not None
    if isinstance(part, nn.BatchNorm2d):
        return axis == "channel" and part.affine and part.track_running_stats
    if type(part) not in {nn.Conv2d, nn.Linear}:
        return axis == "in" and has_plain_inputs(part)
    return axis == "channel" if is_depthwise(part) else axis in {"in", "out"}


def _groups(records: list[Any], modules: Mapping[str, Part], read: _Reader) -> list[Group]:
    """Return the groups; a channel in two of them, or twice in one, is refused: which mask would it follow?"""
    taken: dict[tuple[str, Axis], Tensor] = {}
    return [_group(record, modules, taken, read) for record in records]


def _group(record: Any, modules: Mapping[str, Part], taken: dict[tuple[str, Axis], Tensor], read: _Reader) -> Group:
    """Return one group; ``taken`` says which channels are in groups already and is brought up to date."""
    size = read.integer(record, "size")
    members = []
    for member in read.get(record, "members", list):
        module, axis = read.get(member, "module", str), cast("Axis", read.get(member, "axis", str))
        indices = read.tensor(member, "indices", dtype=torch.int64, shape=(size, None))
        found = modules.get(module)
        if found is None or not _has_axis(found, axis, of=modules) or indices.numel() == 0:
            raise read.fail("channels of its layers in a group")
        length = axis_length(found, "in" if axis == "in" else "out")
        if int(indices.min()) < 0 or int(indices.max()) >= length:
            raise read.fail(f"channel numbers of {module} in a group")
        counts = taken.get((module, axis), torch.zeros(length, dtype=torch.int64))
        counts = counts + torch.bincount(indices.flatten(), minlength=length)
        if int(counts.max()) > 1:
            raise read.fail(f"each channel of {module} in one group")
        taken[module, axis] = counts
        members.append(Member(module, axis, indices))
    if not _filter_groups_stay_whole(members, modules):
        raise read.fail("whole filter groups of grouped convolutions in a group")
    outputs = {m.module for m in members if m.axis != "in" and isinstance(modules[m.module], nn.Module)}
    given = read.get(record, "points", list)
    if not 1 <= len(given) <= len(members):
        raise read.fail("a mask point for each group, and no more than it has members")
    points = []
    for point in given:
        layer, producer = read.get(point, "layer", str), read.get(point, "producer", (str, type(None)))
        if layer not in outputs or (producer is not None and producer not in outputs):
            raise read.fail("mask points that are members of their group")
        points.append(Point(layer, producer))
    return Group(read.text(record, "name"), size, tuple(members), tuple(points))


def _filter_groups_stay_whole(members: Sequence[Member], modules: Mapping[str, Part]) -> bool:
    for name in {m.module for m in members}:
        convolution = modules[name]
        if not isinstance(convolution, nn.Conv2d) or not is_grouped(convolution):
            continue
        sides = {m.axis: m.indices for m in members if m.module == name}
        if sides.keys() != {"in", "out"} or not has_whole_filter_groups(
            convolution, inputs=sides["in"], outputs=sides["out"]
        ):
            return False
    return True


def _samples(
    raw: Mapping[str, Any], read: _Reader, *, paths: tuple[str, ...], shape: tuple[int, int, int], classes: int
) -> Samples:
    samples = read.get(raw, "samples", dict)
    labels = read.tensor(samples, "labels", dtype=torch.int64, shape=(None,))
    count = len(labels)
    if not 1 <= count <= VALIDATION_SAMPLES or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise read.fail(f"from 1 to {VALIDATION_SAMPLES} samples with labels of its classes")
    eps = read.fraction(samples, "eps")
    images = read.tensor(samples, "images", dtype=torch.uint8, shape=(count, *shape))
    given = read.get(samples, "adversarial", dict)
    adversarial = {p: read.tensor(given, p, dtype=torch.uint8, shape=(count, *shape)) for p in paths}
    levels = int(eps * 255 + _LEVEL_TOLERANCE)
    for path, changed in adversarial.items():
        if int((changed.to(torch.int16) - images.to(torch.int16)).abs().max()) > levels:
            raise read.fail(f"adversarial samples of path {path} within eps of the images")
    return Samples(images=images, labels=labels, adversarial=adversarial, eps=eps, attack=read.text(samples, "attack"))


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a person wants to know of a checkpoint, as plain values for a table or JSON."""
    arguments: Mapping[str, Argument] = checkpoint.arguments
    if not arguments and checkpoint.architecture in ARCHITECTURES:
        arguments = {"width": ARCHITECTURES[checkpoint.architecture].width}
    found = densities(checkpoint.net)
    return {
        "architecture": checkpoint.architecture,
        "arguments": arguments,
        "input_shape": list(checkpoint.input_shape),
        "class_names": list(checkpoint.class_names),
        "structure": asdict(checkpoint.net.structure),
        "dense_layers": checkpoint.net.dense_layers,
        "union_density": found.union,
        "paths": {
            path: {
                "density": found.kept[path],
                "parameter_density": found.parameters[path],
                **checkpoint.metrics[path],
            }
            for path in checkpoint.net.path_names
        },
        "training": checkpoint.training,
    }
