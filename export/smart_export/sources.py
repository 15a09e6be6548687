"""What a bundle is made of: one checkpoint with all paths, or two networks that share nothing, a path each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from smart_common.errors import shortened
from smart_common.roles import Role, default_role
from smart_export.errors import ExportError
from smart_export.evidence import Evidence
from smart_export.verify import Images, reference_images
from smart_train import Checkpoint, load_checkpoint
from smart_train.masking.accounting import Densities, densities

CheckpointLike: TypeAlias = str | os.PathLike[str] | Checkpoint

SEPARATE = ("clean", "robust")
"""The paths of a bundle of two networks, in order."""


@dataclass(frozen=True, eq=False)
class Sources:
    """The checkpoints of a bundle.

    Attributes:
        whole: what the manifest says of all paths; its network is that of the last path alone where they are separate.
        of_path: the checkpoint that each path comes from, under the name that it has there too.
    """

    whole: Checkpoint
    of_path: Mapping[str, Checkpoint]

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths in order."""
        return tuple(self.of_path)

    @property
    def roles(self) -> dict[str, Role]:
        """What each path is for, in order."""
        return {path: one.role(path) for path, one in self.of_path.items()}

    @property
    def separate(self) -> bool:
        """Whether each path is a network of its own."""
        return self.whole not in self.of_path.values()

    @property
    def first(self) -> Checkpoint:
        """The checkpoint of the first path."""
        return self.of_path[self.paths[0]]

    @property
    def reference_images(self) -> Images:
        """What every graph of the bundle answers for devices to compare with, whatever judges: float32 (N, C, H, W)."""
        first = self.first
        return reference_images(first.samples, paths=first.net.path_names, classes=len(first.class_names))

    @property
    def densities(self) -> Densities:
        """How much each path uses of its network, and both of the larger one: 2 of two dense networks of one size."""
        if not self.separate:
            return densities(self.whole.net)
        found = {path: densities(one.net) for path, one in self.of_path.items()}
        sizes = {path: sum(p.numel() for p in one.net.path(path).parameters()) for path, one in self.of_path.items()}
        return replace(
            found[self.paths[-1]],
            kept={path: one.kept[path] for path, one in found.items()},
            parameters={path: one.parameters[path] for path, one in found.items()},
            union=sum(one.union * sizes[path] for path, one in found.items()) / max(sizes.values()),
        )

    def evidence(self, make: Callable[[Checkpoint], Evidence]) -> Evidence:
        """Return what ``make`` gives of each checkpoint, on the same images, as one for all paths."""
        if not self.separate:
            return make(self.whole)
        parts = [make(one) for one in self.of_path.values()]
        attacked = {path: images for part in parts for path, images in part.samples.adversarial.items()}
        return replace(parts[0], samples=replace(parts[0].samples, adversarial=attacked))


def read_sources(given: CheckpointLike | Mapping[str, CheckpointLike]) -> Sources:
    """Return the sources of a bundle: a checkpoint or its file, or one of a single path for each of `SEPARATE`.

    Raises:
        ExportError: there are not those of `SEPARATE`, one has several paths, or they differ in what a bundle has once:
            input shape, classes, and the radius of the attacks that judge.
        CheckpointError: a file is no checkpoint.
    """
    if not isinstance(given, Mapping):
        whole = _loaded(given)
        return Sources(whole, dict.fromkeys(whole.net.path_names, whole))
    if set(given) != set(SEPARATE):
        raise ExportError(
            f"expected a checkpoint for each of the paths {', '.join(SEPARATE)}, got {', '.join(given) or 'none'}"
        )
    of_path = {path: _under(_loaded(given[path]), path) for path in SEPARATE}
    clean, robust = of_path.values()
    for what, one, other in (
        ("input shapes", clean.input_shape, robust.input_shape),
        ("classes", clean.class_names, robust.class_names),
        ("eps of the attacked samples", clean.samples.eps, robust.samples.eps),
    ):
        if one != other:
            raise ExportError(
                f"the {what} of the two checkpoints differ, {shortened(str(one))} and {shortened(str(other))}, and a "
                "bundle has one; give networks that were trained for the same"
            )
    return Sources(_joined(of_path), of_path)


def _loaded(checkpoint: CheckpointLike) -> Checkpoint:
    return checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)


def _under(checkpoint: Checkpoint, path: str) -> Checkpoint:
    """Return a checkpoint whose one path is called ``path``; ``checkpoint`` and its network are not changed."""
    names = checkpoint.net.path_names
    if len(names) != 1:
        raise ExportError(
            f"the checkpoint for the path {path} has the paths {', '.join(names)}; give one of a single path, or "
            "export it alone, which keeps all of them"
        )
    (own,) = names
    return replace(
        checkpoint,
        net=checkpoint.net.renamed({own: path}),
        samples=replace(checkpoint.samples, adversarial={path: checkpoint.samples.adversarial[own]}),
        metrics={path: checkpoint.metrics.get(own, {})},
        roles={path: default_role(path)},
    )


def _joined(of_path: Mapping[str, Checkpoint]) -> Checkpoint:
    """Return the last checkpoint with what the manifest says of all."""
    records = {path: one.training for path, one in of_path.items()}
    methods = [str(record.get("method", "smart")) for record in records.values()]
    last = of_path[SEPARATE[-1]]
    training: dict[str, Any] = {
        "method": "-and-".join(dict.fromkeys(methods)),
        **{key: last.training[key] for key in ("data", "attack") if key in last.training},
        "separately": records,
    }
    return replace(
        last,
        architecture="-and-".join(dict.fromkeys(one.architecture for one in of_path.values())),
        metrics={path: one.metrics[path] for path, one in of_path.items()},
        roles={path: one.role(path) for path, one in of_path.items()},
        training=training,
    )
