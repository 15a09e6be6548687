"""One network with several masked paths: the same weights, each path with its own masks and batch norms.

Every path is a module tree of its own whose weights are the very same Parameter objects, so there is no active-path
state anywhere: a path can be trained, attacked, compiled or exported while the others are in use.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from smart_common.errors import SmartError, alternatives, shortened
from smart_train.choices import Budget, Scope, Shares
from smart_train.errors import ConfigError, NetworkError
from smart_train.masking.batch_independence import check_batch_independence
from smart_train.masking.budget import kept_of_groups, kept_of_layers
from smart_train.masking.finding import find_groups
from smart_train.masking.groups import FoundGroups, Group, apply_mask_
from smart_train.masking.layers import Expert, batch_norm_parameters, check_weights, expert_at, make_expert_, weight_at
from smart_train.masking.passes import INPUT, Out, Pass
from smart_train.masking.structure import Structure, parse_structure
from smart_train.masking.trial import copied
from smart_train.masking.weight_masks import WeightLayers, find_weight_layers, kept_inputs

DEFAULT_PATHS = ("clean", "robust")
_PATH_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_SAID = 4  # layers that a refusal of a whole network gives reasons for
_KEY = "path_"  # before a path's name in the module tree, where "half" or "type" would hide a method of nn.Module


class Normalise(nn.Module):
    """(images - mean) / std per channel; it lives inside the network so that eps stays in pixel units.

    Args:
        mean: one value a channel, in the units of images in [0, 1].
        std: likewise, above 0.

    Raises:
        ConfigError: if their numbers of values differ or a std is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ConfigError(
                f"expected a mean and a std above 0 for each channel, got {list(mean)} and {list(std)}; "
                f"leave them out for 0 and 1"
            )
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to the same shape."""
        return (images - self.mean) / self.std


class PathNetwork(nn.Module):
    """One path as an ordinary module: images (N, C, H, W) in [0, 1] to scores (N, classes).

    Its train/eval flag, batch norms and masks are its own; its other parameters are shared with the sibling paths.
    """

    def __init__(self, network: nn.Module, *, normalise: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network

    @property
    def randomised(self) -> bool:
        """Whether it draws noise for its weights in each pass: the same image may have other scores the next time."""
        return any(isinstance(module, Expert) and module.noise is not None for module in self.modules())

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (N, classes); raise NetworkError where the network's own code stops or gives anything else."""
        name = type(self.network).__name__
        try:
            scores: Tensor = self.network(self.normalise(images))
        except (SmartError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # its own code runs here
            if "DefaultCPUAllocator" in str(error):  # memory too, by torch's words
                raise
            raise NetworkError(
                f"the network's own code stopped, called by {name}.forward on {len(images)} images: "
                f"{shortened(f'{type(error).__name__}: {error}')}; correct it there"
            ) from error
        if isinstance(scores, tuple | list | dict):  # a stand-in while it is traced is none of these
            raise NetworkError(
                f"{name} gives {type(scores).__name__} with {len(scores)} outputs in "
                f"{'training' if self.training else 'eval'} mode instead of scores (N, classes); turn auxiliary heads "
                f"off (aux_logits=False in torchvision), or return the scores alone"
            )
        return scores


class SmartNetwork(nn.Module):
    """Several paths over one set of weights; made by :func:`convert`.

    Attributes:
        groups: where ``channel`` masks act, the same for every path.
        structure: what the masks may remove.
        kept_whole: groups that are never masked, with the reason.
        weight_layers: the layers whose single weights are masked, the same for every path.
        dense_layers: where single weights are masked, the layers that keep all of theirs, with the reason.
        shares: what the paths have in common: all parameters but those of batch norms, or nothing.
        kept: how many of its ``size`` each group keeps once masks are closed, the same on every path.

    Raises:
        ConfigError: if a path has no name that it may have.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        paths: Sequence[str],
        groups: Sequence[Group],
        structure: Structure,
        normalise: Normalise,
        kept_whole: Mapping[str, str] | None = None,
        weight_layers: Sequence[str] = (),
        dense_layers: Mapping[str, str] | None = None,
        shares: Shares = "weights",
    ) -> None:
        super().__init__()
        check_path_names(paths)
        self.groups = tuple(groups)
        self.structure = structure
        self.kept_whole = dict(kept_whole or {})
        self.weight_layers = tuple(weight_layers)
        self.dense_layers = dict(dense_layers or {})
        self.shares = shares
        own = own_parameters(network, shares)
        shared = {id(p): p for name, p in network.named_parameters() if name not in own}
        modules = dict(network.named_modules())
        self.kept = kept_of_groups(structure, self.groups, modules)
        self._kept_weights = kept_of_layers(
            structure, {name: weight_at(network, name).shape for name in self.weight_layers}
        )
        self._paths = nn.ModuleDict()
        for name in paths:
            tree = copied(network, shared=dict(shared))
            make_expert_(tree)
            self._paths[_KEY + name] = PathNetwork(tree, normalise=copy.deepcopy(normalise))
            for i, group in enumerate(self.groups):
                self.set_mask(name, i, torch.ones(group.size, dtype=torch.bool))
            for layer in self.weight_layers:
                self.set_weight_mask(name, layer, torch.ones(weight_at(tree, layer).shape, dtype=torch.bool))

    def __repr__(self) -> str:
        network = type(self.path(self.path_names[0]).network).__name__
        masks = f"{self.structure.name} at density {self.structure.density:g}"
        return f"SmartNetwork({network}, paths {', '.join(self.path_names)}, {masks}, {len(self.groups)} groups)"

    @property
    def path_names(self) -> tuple[str, ...]:
        """The paths in order."""
        return tuple(key.removeprefix(_KEY) for key in self._paths)

    def own_parameters(self) -> set[str]:
        """Return the names inside the network of the parameters that every path has for itself."""
        return own_parameters(self.path(self.path_names[0]).network, self.shares)

    def path(self, name: str) -> PathNetwork:
        """Return the path ``name`` as a module of its own.

        Raises:
            ConfigError: if there is no such path.
        """
        if _KEY + name not in self._paths:
            raise ConfigError(f"unknown path {alternatives(name, self.path_names)}")
        path = self._paths[_KEY + name]
        assert isinstance(path, PathNetwork)
        return path

    def renamed(self, names: Mapping[str, str]) -> SmartNetwork:
        """Return a network whose paths are the very same modules under other ``names``, by those that they have here.

        Raises:
            ConfigError: if a path would have no name that it may have.
        """
        wanted = [names.get(path, path) for path in self.path_names]
        check_path_names(wanted)
        found = copy.copy(self)
        found._modules = dict(self._modules)
        found._paths = nn.ModuleDict(
            {_KEY + new: self.path(old) for new, old in zip(wanted, self.path_names, strict=True)}
        )
        return found

    def forward(self, passes: Sequence[Pass]) -> list[Out]:
        """Do the passes in order; a path may have several, each of which moves its batch norms' statistics.

        All passes of a training step go through one call, which is what data-parallel wrappers can synchronise.
        """
        return [self._pass(one) for one in passes]

    def _pass(self, one: Pass) -> Out:
        path, features = self.path(one.path), dict[str, Tensor]()
        hooks = [
            # Copies: a layer after it may work in place.
            path.network.get_submodule(name.removesuffix(INPUT)).register_forward_hook(
                lambda _module, inputs, output, name=name: features.update(
                    {name: (inputs[0] if name.endswith(INPUT) else output).clone()}
                )
            )
            for name in one.tap
        ]
        try:
            return Out(path(one.images), features)
        finally:
            for hook in hooks:
                hook.remove()

    def mask(self, path: str, group: int) -> Tensor:
        """Return the mask of group number ``group`` on ``path``: bool (size,), a copy."""
        found = self.groups[group]
        layer = expert_at(self.path(path).network, found.points[0].layer)
        assert layer.mask is not None
        member = next(found.members_at(found.points[0].layer))
        return layer.mask[member.indices[:, 0].to(layer.mask.device)].clone()

    def masks(self, path: str) -> list[Tensor]:
        """Return every group's mask on ``path``."""
        return [self.mask(path, i) for i in range(len(self.groups))]

    def set_mask(self, path: str, group: int, keep: Tensor) -> None:
        """Keep the channels of group number ``group`` where ``keep`` (bool, (size,)) is true, on ``path`` alone."""
        found = self.groups[group]
        if keep.shape != (found.size,) or keep.dtype != torch.bool or not bool(keep.any()):
            raise ConfigError(
                f"expected a bool mask of {found.size} channels with at least one kept for group {found.name}, got "
                f"{keep.dtype} of shape {tuple(keep.shape)} keeping {int(keep.sum())}; a group never becomes empty"
            )
        device = next(self.path(path).parameters()).device
        apply_mask_(self.path(path).network, found, keep.to(device))

    def kept_weights(self, layer: str, shape: Sequence[int]) -> int:
        """Return how many weights of ``layer``, of ``shape`` after slicing, a path keeps once masks are closed."""
        return self._kept_weights.get(layer) or self.structure.kept_weights(shape)

    def kept_inputs(self, path: str, *, keeps: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Return, for each layer of ``weight_layers``, its input channels that ``path`` keeps: bool (in,) on the CPU.

        ``keeps`` (bool (size,) a group) stands in for the path's channel masks.
        """
        modules = dict(self.path(path).network.named_modules())
        keeps = self.masks(path) if keeps is None else keeps
        return kept_inputs(self.weight_layers, modules=modules, groups=self.groups, keeps=keeps)

    def weight_mask(self, path: str, layer: str) -> Tensor:
        """Return the mask of the single weights of ``layer`` on ``path``: bool of the weight's shape, a copy."""
        expert = expert_at(self.path(path).network, layer)
        assert expert.weight_mask is not None
        return expert.weight_mask.clone()

    def weight_masks(self, path: str) -> dict[str, Tensor]:
        """Return the mask of every layer of ``weight_layers`` on ``path``."""
        return {layer: self.weight_mask(path, layer) for layer in self.weight_layers}

    def set_weight_mask(self, path: str, layer: str, keep: Tensor) -> None:
        """Keep the weights of ``layer``, one of ``weight_layers``, where ``keep`` is true, on ``path`` alone."""
        expert = self.path(path).network.get_submodule(layer)
        if layer not in self.weight_layers or not isinstance(expert, Expert) or not isinstance(expert.weight, Tensor):
            raise ConfigError(f"weights of {layer!r} cannot be masked; those of {', '.join(self.weight_layers)} can")
        if keep.shape != expert.weight.shape or keep.dtype != torch.bool:
            raise ConfigError(
                f"expected a bool mask of shape {tuple(expert.weight.shape)} for {layer}, got {keep.dtype} of shape "
                f"{tuple(keep.shape)}; a mask has one value a weight"
            )
        expert.set_weight_mask(keep.to(expert.weight.device))


def own_parameters(network: nn.Module, shares: Shares) -> set[str]:
    """Return the names of the parameters of ``network`` of which every path has its own."""
    return batch_norm_parameters(network) if shares == "weights" else {name for name, _ in network.named_parameters()}


def check_path_names(paths: Sequence[str]) -> None:
    """Raise ConfigError unless ``paths`` are one or more different names that a path may have."""
    if not paths or len(set(paths)) != len(paths):
        raise ConfigError(f"expected one or more different path names, got {list(paths)}; clean and robust are usual")
    for name in paths:
        if not _PATH_NAME.fullmatch(name) or name == "dense":
            raise ConfigError(
                f"expected path names of a-z, 0-9, _ and - that start with a letter and are not 'dense', got {name!r}; "
                f"clean and robust are usual"
            )


def convert(
    network: nn.Module,
    *,
    example_input: Tensor,
    paths: Sequence[str] = DEFAULT_PATHS,
    structure: str = "channel",
    density: float | None = None,
    align: int = 8,
    scope: Scope = "block",
    min_channels: int = 1,
    budget: Budget = "uniform",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> SmartNetwork:
    """Give a plain classifier several masked paths that share its weights; every mask starts dense.

    Args:
        network: maps images (N, C, H, W) to scores (N, classes); its weights become the shared ones.
        example_input: float (N, C, H, W), an input the network takes; only its shape counts.
        paths: names matching ``[a-z][a-z0-9_-]*``; ``dense`` is reserved for the unmasked baseline.
        structure: what masks may remove: ``channel``, ``N:M``, ``channel+N:M`` or ``unstructured``.
        density: what a path is to keep, in (0, 1] (see :class:`Structure`); a half by default, N/M for ``N:M``.
        align: kept channels are rounded up to a multiple of this.
        scope: ``block`` masks block interiors, ``all`` residual streams too.
        min_channels: layers with fewer input or output channels keep all weights in ``N:M``.
        budget: ``uniform`` gives every group or layer the same density, ``erk`` smaller ones a higher one.
        mean: subtracted per channel inside every path; 0 by default.
        std: what the difference is divided by; 1 by default.

    Raises:
        ConfigError: if an option is out of range.
        NetworkError: if nothing in the network can be masked, or an image's scores depend on the batch it comes in.

    Example::

        net = convert(resnet, example_input=torch.zeros(1, 3, 32, 32), density=0.5)
        scores = net.path("robust")(images)
    """
    wanted = Structure(
        name=structure,
        density=parse_structure(structure).default_density if density is None else density,
        align=align,
        scope=scope,
        min_channels=min_channels,
        budget=budget,
    )
    if example_input.dim() != 4:
        raise NetworkError(
            f"expected an example input (N, C, H, W), got shape {tuple(example_input.shape)}; add a batch axis"
        )
    channels = example_input.shape[1]
    normalise = Normalise(mean=[0.0] * channels if mean is None else mean, std=[1.0] * channels if std is None else std)
    if normalise.mean.numel() != channels:
        raise ConfigError(
            f"expected a mean for each of {channels} channels, got {normalise.mean.numel()}; leave it out for 0"
        )
    check_weights(network)
    check_batch_independence(network, example_input.shape[1:])
    found = find_groups(network, example_input, scope=scope) if wanted.pattern.channels else FoundGroups(())
    layers = WeightLayers((), {})
    if wanted.pattern.weights is not None:
        layers = find_weight_layers(network, example_input, structure=wanted, groups=found.groups)
        if not layers.masked:
            reasons = [f"{name}: {why}" for name, why in layers.dense.items()]
            more = f"; and {len(reasons) - _SAID} more" if len(reasons) > _SAID else ""
            raise NetworkError(
                f"{structure} can mask the weights of no layer of {type(network).__name__} "
                f"({'; '.join(reasons[:_SAID])}{more}); use channel, or a lower "
                "min_channels where layers are too narrow"
            )
    return SmartNetwork(
        network,
        paths=paths,
        groups=found.groups,
        structure=wanted,
        normalise=normalise,
        kept_whole=found.kept_whole,
        weight_layers=layers.masked,
        dense_layers=layers.dense,
    )
