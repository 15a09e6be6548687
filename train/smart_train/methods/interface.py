"""What a training method is: a row that describes it, and what it does in each step.

A method trains whatever it likes. What it hands over after each epoch is a :class:`SmartNetwork` whose paths are plain
networks, so that selection, checkpoint, evaluation and export need not know the method.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, get_type_hints

import torch
from torch import Tensor, nn

from smart_common.roles import Role
from smart_train.attacks import Attack
from smart_train.errors import ConfigError
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.network import SmartNetwork, convert
from smart_train.masking.passes import Out, Pass
from smart_train.masking.structure import Structure
from smart_train.options import parse_fraction

Option = str | int | float | bool


@dataclass(frozen=True)
class PathSpec:
    """A path of the network: its name and what it is for."""

    name: str
    role: Role


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True)
class Batch:
    """What a step learns from.

    Attributes:
        images: float (N, C, H, W) in [0, 1], augmented.
        labels: int64 (N,), of the class that an image shows most of; what attacks are aimed at.
        targets: what a cross-entropy is taken with: ``labels``, or float (N, classes) whose rows sum to 1 where classes
            are mixed, smoothed or a teacher's.
        generator: of the attack's random numbers, on the device of ``images``.
        number, total: of this step, 1 for the first, and of all.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    generator: torch.Generator
    number: int
    total: int


class Sampler(Protocol):
    """Training images for what a method measures between epochs; the same for an epoch whenever it is asked."""

    def __call__(self, images: int) -> Iterator[Batch]:
        """Yield batches as a step would learn from, until ``images`` or all have been."""


@dataclass(frozen=True)
class Setup:
    """What a training is built with.

    Attributes:
        example: float (N, C, H, W), an input of the network; only its shape counts.
        structure: what masks may remove.
        mean, std: of the training images, one value a channel.
        num_classes: of the data.
        paths: those of the method.
        options: an instance of the method's options.
        attack: the one trained against.
        seed: of the method's own random numbers.
        teacher: images (N, C, H, W) in [0, 1] to scores (N, classes), frozen, in eval mode; None without
            ``--teacher``.
    """

    example: Tensor
    structure: Structure
    mean: Sequence[float]
    std: Sequence[float]
    num_classes: int
    paths: tuple[PathSpec, ...]
    options: Any
    attack: Attack
    seed: int
    teacher: nn.Module | None = None


@dataclass(frozen=True)
class StepLoss:
    """The loss to minimise (a scalar with gradient), and the parts that the history shows (scalars without)."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """A step once its attacks are made.

    Attributes:
        passes: to be done in this order, in one call of the training's modules.
        loss: of what the passes gave, in their order. It draws no random numbers: with ``--awp`` it is taken twice.
    """

    passes: Sequence[Pass]
    loss: Callable[[Sequence[Out]], StepLoss]


class Training:
    """One training by a method; here of one network with masked paths, the very one that is deployed.

    A method overrides :meth:`step`, and of the rest what is different for it.

    Attributes:
        net: the network that learns, with the masks that are learned.
        extra: what else learns and is not deployed; None if nothing does.
    """

    def __init__(self, net: SmartNetwork, setup: Setup, *, extra: nn.Module | None = None) -> None:
        self.net = net
        self.setup = setup
        self.options = setup.options
        self.extra = extra

    @classmethod
    def build(cls, plain: nn.Module, setup: Setup) -> Training:
        """Return the training of ``plain``, whose weights become those of the paths."""
        return cls(masked(plain, setup, paths=[path.name for path in setup.paths]), setup)

    @property
    def modules(self) -> nn.Module:
        """Everything with parameters, for the optimiser; called with the passes of a step, it does them in order."""
        return self.net

    def deployable(self, sample: Sampler) -> SmartNetwork:
        """Return the network as it would be deployed now: its paths are selected, saved, measured and exported.

        Called after each epoch; what it returns may share weights with :attr:`net`.
        """
        del sample
        return self.net

    def record(self) -> dict[str, Any]:
        """Return what the checkpoint's record says of the deployed network beside the options, in plain values."""
        return {}

    def epoch_start(self, epoch: int, sample: Sampler) -> None:
        """Prepare for an epoch, 1 for the first; also after a resume."""

    def step(self, batch: Batch, attack: Attack) -> Step:
        """Attack what the step attacks, with the paths in eval mode, and say what is to be passed and lost."""
        raise NotImplementedError


def masked(plain: nn.Module, setup: Setup, *, paths: Sequence[str]) -> SmartNetwork:
    """Return ``plain`` with ``paths`` of dense masks, structured and normalised as ``setup`` says."""
    structure = setup.structure
    return convert(
        plain,
        example_input=setup.example,
        paths=paths,
        structure=structure.name,
        density=structure.density,
        align=structure.align,
        scope=structure.scope,
        min_channels=structure.min_channels,
        budget=structure.budget,
        mean=setup.mean,
        std=setup.std,
    )


def attacked(path: nn.Module, batch: Batch, attack: Attack, *, part: slice = slice(None), **options: Any) -> Tensor:
    """Return the images of ``part`` of a batch, attacked on ``path`` in eval mode.

    ``options`` are those of :meth:`Attack.run`.
    """
    with attack_mode(path):
        return attack.run(path, batch.images[part], batch.labels[part], generator=batch.generator, **options)


def _decimal(value: Option) -> Option:
    """Return an integer or a fraction, ``8/255``, as a decimal, and any other value as it is."""
    if type(value) is int:
        return float(value)
    if isinstance(value, str):
        with suppress(ConfigError):
            found = parse_fraction(value)
            return found if math.isfinite(found) else value
    return value


@dataclass(frozen=True)
class Method:
    """A training method, described.

    Attributes:
        summary: what it does, in a sentence.
        reference: the paper.
        paths: of the deployed network.
        build: makes a training from the plain network; mostly :meth:`Training.build` of a subclass.
        forwards: what an image costs with so many attack steps, in forward passes of the dense network (a gradient to
            the input counts 1 and one to the weights another): of a training, for tables.
        options: a frozen dataclass whose fields have defaults and ``metadata["help"]``; it checks its own ranges.
        default_density: what a path keeps unless the user says otherwise; None for the structure's own.
        defaults: of `smart-train`'s other options, by their names, where the method's differ.
        attack: the name of the only attack that makes it this method; None for any.
        soft_targets: whether its loss takes targets other than labels; so must that of its base, if it has one.
        needs_teacher: whether it is nothing without one.
        caveat: what has to be said wherever its figures appear: ``reconstruction``.
    """

    name: str
    summary: str
    reference: str
    paths: tuple[PathSpec, ...]
    build: Callable[[nn.Module, Setup], Training]
    forwards: Callable[[int], float]
    options: type[Any] = NoOptions
    default_density: float | None = None
    defaults: Mapping[str, str | int | float] = field(default_factory=dict)
    attack: str | None = None
    soft_targets: bool = True
    needs_teacher: bool = False
    caveat: str = ""

    @property
    def roles(self) -> dict[str, Role]:
        """What each path is for."""
        return {path.name: path.role for path in self.paths}

    def read_options(self, given: Mapping[str, Option]) -> Any:
        """Return the method's options with the ``given`` values, the others at their defaults.

        Raises:
            ConfigError: if a name is unknown, or a value of another type or out of range.
        """
        kinds = get_type_hints(self.options)
        known = [one.name for one in dataclasses.fields(self.options)]
        values: dict[str, Option] = {}
        for name, value in given.items():
            if name not in known:
                raise ConfigError(
                    f"unknown option {name!a:.100} of method {self.name}; it has {', '.join(known) or 'none'}"
                )
            found = _decimal(value) if kinds[name] is float else value
            if type(found) is not kinds[name]:
                raise ConfigError(
                    f"expected {name} of method {self.name} as {kinds[name].__name__}, got {value!a:.100}; "
                    f"see smart-train --help-method {self.name}"
                )
            values[name] = found
        return self.options(**values)

    def describe(self) -> str:
        """Return what a user needs to know of it, in lines."""
        lines = [f"{self.name}: {self.summary}", self.reference, *([f"a {self.caveat}"] if self.caveat else []), ""]
        lines += [f"path {path.name} (role {path.role.value})" for path in self.paths]
        if self.default_density is not None:
            lines.append(f"density {self.default_density:g} by default")
        lines += [f"--{name.replace('_', '-')} {value} by default" for name, value in self.defaults.items()]
        lines += [f"--set {one.name}={one.default}  {one.metadata['help']}" for one in dataclasses.fields(self.options)]
        return "\n".join(lines)
