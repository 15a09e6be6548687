"""What a training method is: a row that describes it, and what it does in each step.

A method trains whatever it likes. What it hands over after each epoch is a :class:`SmartNetwork` whose paths are plain
networks, so that selection, checkpoint, evaluation and export need not know the method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from smart_common.roles import Role
from smart_train.attacks import Attack
from smart_train.errors import ConfigError
from smart_train.masking.network import SmartNetwork, convert
from smart_train.masking.passes import Out, Pass
from smart_train.masking.structure import Structure

Option = str | int | float | bool
Forward = Callable[[Sequence[Pass]], list[Out]]
"""The network as the trainer wrapped it (precision, data parallel): called once a step, with all of its passes."""


@dataclass(frozen=True)
class PathSpec:
    """A path of the network: its name and what it is for."""

    name: str
    role: Role


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True)
class Setup:
    """What a training is built with.

    Attributes:
        example: float (N, C, H, W), an input of the network; only its shape counts.
        structure: what masks may remove.
        mean, std: of the training images, one value a channel.
        paths: those of the method.
        options: an instance of the method's options.
    """

    example: Tensor
    structure: Structure
    mean: Sequence[float]
    std: Sequence[float]
    paths: tuple[PathSpec, ...]
    options: Any


@dataclass(frozen=True)
class Batch:
    """What a step learns from.

    Attributes:
        images: float (N, C, H, W) in [0, 1], augmented.
        labels: int64 (N,).
        generator: of the attack's random numbers, on the device of ``images``.
        number, total: of this step, 1 for the first, and of all.
    """

    images: Tensor
    labels: Tensor
    generator: torch.Generator
    number: int
    total: int


@dataclass(frozen=True)
class StepLoss:
    """The loss to minimise (a scalar with gradient), and the parts that the history shows (scalars without)."""

    total: Tensor
    parts: dict[str, Tensor]


class Training:
    """One training by a method; here of one network with masked paths, the very one that is deployed.

    A method overrides :meth:`loss`, and of the rest what is different for it.
    """

    def __init__(self, net: SmartNetwork, options: Any = None) -> None:
        self.net = net
        self.options = options

    @classmethod
    def build(cls, plain: nn.Module, setup: Setup) -> Training:
        """Return the training of ``plain``, whose weights become those of the paths."""
        structure = setup.structure
        net = convert(
            plain,
            example_input=setup.example,
            paths=[path.name for path in setup.paths],
            structure=structure.name,
            density=structure.density,
            align=structure.align,
            scope=structure.scope,
            min_channels=structure.min_channels,
            budget=structure.budget,
            mean=setup.mean,
            std=setup.std,
        )
        return cls(net, setup.options)

    @property
    def modules(self) -> nn.Module:
        """Everything with parameters, for the optimiser; called with the passes of a step, it does them in order."""
        return self.net

    def deployable(self) -> SmartNetwork:
        """Return the network as it would be deployed now: its paths are selected, saved, measured and exported."""
        return self.net

    def epoch_start(self, epoch: int) -> None:
        """Prepare for an epoch, 1 for the first."""

    def before_step(self) -> None:
        """Act between the backward pass and the optimiser's step."""

    def loss(self, batch: Batch, attack: Attack, forward: Forward) -> StepLoss:
        """Return the loss on a batch; attacks are made on paths of :meth:`deployable`, passes done by ``forward``."""
        raise NotImplementedError

    def extra_state(self) -> dict[str, Any]:
        """Return what resuming needs beside the deployable network: tensors and plain values."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`extra_state` returned."""


@dataclass(frozen=True)
class Method:
    """A training method, described.

    Attributes:
        summary: what it does, in a sentence.
        reference: the paper.
        paths: of the deployed network.
        build: makes a training from the plain network; mostly :meth:`Training.build` of a subclass.
        options: a frozen dataclass whose fields have defaults and ``metadata["help"]``; it checks its own ranges.
        default_density: what a path keeps unless the user says otherwise; None for the structure's own.
    """

    name: str
    summary: str
    reference: str
    paths: tuple[PathSpec, ...]
    build: Callable[[nn.Module, Setup], Training]
    options: type[Any] = NoOptions
    default_density: float | None = None

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
        known = [field.name for field in dataclasses.fields(self.options)]
        values: dict[str, Option] = {}
        for name, value in given.items():
            if name not in known:
                raise ConfigError(
                    f"unknown option {name!a:.100} of method {self.name}; it has {', '.join(known) or 'none'}"
                )
            found = float(value) if kinds[name] is float and type(value) is int else value
            if type(found) is not kinds[name]:
                raise ConfigError(
                    f"expected {name} of method {self.name} as {kinds[name].__name__}, got {value!a:.100}; "
                    f"see smart-train --help-method {self.name}"
                )
            values[name] = found
        return self.options(**values)

    def describe(self) -> str:
        """Return what a user needs to know of it, in lines."""
        lines = [f"{self.name}: {self.summary}", self.reference, ""]
        lines += [f"path {path.name} (role {path.role.value})" for path in self.paths]
        if self.default_density is not None:
            lines.append(f"density {self.default_density:g} by default")
        lines += [
            f"--set {field.name}={field.default}  {field.metadata['help']}"
            for field in dataclasses.fields(self.options)
        ]
        return "\n".join(lines)
