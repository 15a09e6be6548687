"""``ckpt.pt``: everything that evaluation and export need, as plain tensors, numbers and strings.

It is read with ``weights_only=True``, which builds tensors and containers and runs no code, and every name, type,
shape and range in it is checked before a network is built from it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from smart_common.errors import shortened
from smart_common.names import is_name
from smart_common.roles import Role, default_role
from smart_runtime.bundle.manifest import Manifest
from smart_train.architectures.build import ARCHITECTURES, build_network
from smart_train.architectures.custom import Factory
from smart_train.architectures.libraries import library_network
from smart_train.checkpoint.described_masks import describe_masks
from smart_train.checkpoint.network_state import (
    group_record,
    load_network_state_,
    network_state,
    read_groups,
    read_masks,
    read_state,
    read_weight_masks,
)
from smart_train.checkpoint.reader import Reader, read_plain, save_atomically
from smart_train.choices import (
    CUSTOM,
    FACTORY_FORM,
    MAX_ARGUMENTS,
    Argument,
    Budget,
    Scope,
    is_factory_reference,
    is_library_name,
)
from smart_train.data.images import MAX_SIDE, VALIDATION_SAMPLES
from smart_train.errors import CheckpointError, ConfigError
from smart_train.masking.accounting import densities
from smart_train.masking.budget import kept_of_groups
from smart_train.masking.network import Normalise, SmartNetwork, check_path_names
from smart_train.masking.parts import parts
from smart_train.masking.structure import Structure

FORMAT = "smart-edge checkpoint"
FORMAT_VERSION = 1
_MAX_PATHS = 16
_MAX_CLASSES = 2**16  # three times ImageNet-21k's
_LEVEL_TOLERANCE = 1e-3  # of a pixel's 255 levels: float32 images are exact to a twentieth of that


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
        factory: what the factory of a network of the user's own was called in training, to tell people: nothing is
            imported by it.
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
    factory: str | None = None

    def __repr__(self) -> str:
        size = "x".join(map(str, self.input_shape))
        return f"Checkpoint({self.architecture}, {size}, {len(self.class_names)} classes, {self.net!r})"

    def role(self, path: str) -> Role:
        """Return what ``path`` is for."""
        return self.roles.get(path) or default_role(path)


def save_checkpoint(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write ``checkpoint`` to ``path``: beside it first, then renamed.

    Raises:
        CheckpointError: if a class has a name that `load_checkpoint` would refuse.
    """
    refused = [name for name in checkpoint.class_names if not is_name(name)]
    if refused:
        raise CheckpointError(f"the class name {refused[0]!a:.100} is not printable or too long; rename the class")
    net = checkpoint.net
    weight_masks = {path: {n: m.cpu() for n, m in net.weight_masks(path).items()} for path in net.path_names}
    save_atomically(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "architecture": {"name": checkpoint.architecture, "arguments": dict(checkpoint.arguments)},
            **({} if checkpoint.factory is None else {"factory": checkpoint.factory}),
            "input_shape": list(checkpoint.input_shape),
            "class_names": list(checkpoint.class_names),
            "normalisation": {"mean": list(checkpoint.mean), "std": list(checkpoint.std)},
            "paths": list(net.path_names),
            "roles": {path: checkpoint.role(path).value for path in net.path_names},
            "structure": asdict(net.structure),
            "groups": [group_record(group) for group in net.groups],
            "masks": {path: [m.cpu() for m in net.masks(path)] for path in net.path_names},
            **({"weight_masks": weight_masks, "dense_layers": net.dense_layers} if net.weight_layers else {}),
            "state": network_state(net),
            "training": checkpoint.training,
            "metrics": checkpoint.metrics,
            "samples": {**vars(checkpoint.samples), "adversarial": dict(checkpoint.samples.adversarial)},
        },
        Path(path),
    )


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
    read = Reader(path)
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


def _factory(reference: str | None) -> Factory:
    """Return what makes the network that a checkpoint calls ``reference``, where it is an installed library's own."""
    if reference is not None and is_library_name(reference):
        return library_network(reference)
    raise ConfigError(
        f"no factory for a network of your own, and a checkpoint holds no code; pass --model "
        f"{reference or FACTORY_FORM}, as in its training, or factory= in Python"
    )


def _build(
    raw: Mapping[str, Any], read: Reader, *, factory: Factory | None, overruling: Mapping[str, Argument]
) -> Checkpoint:
    """Check everything, on the meta device what is a network, and take memory for the network only then."""
    architecture = read.get(raw, "architecture", dict)
    name = read.text(architecture, "name")
    reference = read.text(raw, "factory") if "factory" in raw else None
    if reference is not None and not is_factory_reference(reference):
        raise read.fail("the name of a factory")
    if name == CUSTOM and factory is None:
        factory = _factory(reference)
    given = read.get(architecture, "arguments", dict)
    if len(given) > MAX_ARGUMENTS:
        raise read.fail(f"at most {MAX_ARGUMENTS} model arguments")
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
    state = read_state(plain, read.get(raw, "state", dict), paths=paths, read=read)
    if name == CUSTOM:  # it may hold more than its state, and a layer norm of its own is tried to know its axis
        plain = build()
    groups = read_groups(read.get(raw, "groups", list), parts(plain), read)
    if structure.pattern.channels and not groups:
        raise read.fail("one or more groups")
    masks = read_masks(raw, read, paths, groups, kept=kept_of_groups(structure, groups, parts(plain)))
    weight_masks: dict[str, dict[str, Tensor]] = {path: {} for path in paths}
    dense_layers: dict[str, str] = {}
    if structure.pattern.weights is not None:
        weight_masks = read_weight_masks(raw, plain, structure, groups, masks=masks, read=read)
        given = read.record(raw, "dense_layers")
        dense_layers = {read.text({"dense_layers": layer}, "dense_layers"): read.text(given, layer) for layer in given}
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
        factory=reference,
    )


def _roles(raw: Mapping[str, Any], read: Reader, *, paths: Sequence[str]) -> dict[str, Role]:
    """Return the role of each path; older checkpoints have none, and their names say it."""
    given = read.get(raw, "roles", dict) if "roles" in raw else {}
    roles = {}
    for path in paths:
        name = read.text(given, path) if path in given else default_role(path).value
        if name not in {role.value for role in Role}:
            raise read.fail(f"one of {', '.join(role.value for role in Role)} as the role of path {path}")
        roles[path] = Role(name)
    return roles


def _structure(source: dict[str, Any], read: Reader) -> Structure:
    return Structure(
        name=read.text(source, "name"),
        density=read.number(source, "density"),
        align=read.integer(source, "align"),
        scope=cast("Scope", read.text(source, "scope")),
        min_channels=read.integer(source, "min_channels") if "min_channels" in source else 1,  # older ones have none
        budget=cast("Budget", read.text(source, "budget") if "budget" in source else "uniform"),  # likewise
    )


def _on_meta(build: Callable[[], nn.Module], *, own: bool) -> nn.Module:
    """Return a network without values, or with them where it is of the user's ``own`` and cannot do without.

    Quietly: a factory that loads weights of its own has torch warn of each that goes nowhere here.
    """
    try:
        with torch.device("meta"), warnings.catch_warnings():
            if own:
                warnings.simplefilter("ignore")
            return build()
    except ConfigError:
        if not own:
            raise
    return build()


def _metrics(source: dict[str, Any], path: str, read: Reader) -> dict[str, Any]:
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


def _samples(
    raw: Mapping[str, Any], read: Reader, *, paths: tuple[str, ...], shape: tuple[int, int, int], classes: int
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
        "masks": describe_masks(checkpoint.net, training=checkpoint.training).record(),
        "paths": {
            path: {"density": found.kept[path], "parameter_density": found.parameters[path]} | checkpoint.metrics[path]
            for path in checkpoint.net.path_names
        },
        "training": checkpoint.training,
    }


def check_source(manifest: Manifest, source: Checkpoint, *, paths: Sequence[str] | None = None) -> None:
    """Raise ConfigError if a bundle and a checkpoint differ in input shape, classes or ``paths``, which are its own."""
    theirs = (manifest.input.shape, manifest.class_names, tuple(manifest.paths))
    ours = (source.input_shape, source.class_names, tuple(paths or source.net.path_names))
    for what, in_bundle, in_source in zip(("input shape", "classes", "paths"), theirs, ours, strict=True):
        if in_bundle != in_source:
            raise ConfigError(
                f"the {what} of the bundle, {shortened(str(in_bundle))}, and of the checkpoint, "
                f"{shortened(str(in_source))}, differ; give the checkpoint that it was exported from"
            )
