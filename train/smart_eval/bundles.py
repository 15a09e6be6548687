"""Bundles as smart-eval measures them: their graphs in their real precision, on the reference engine unless told.

A graph has no gradient. Without the checkpoint that it came from it is attacked by what needs scores only, Square
(Andriushchenko et al. 2020, arXiv 1912.00049); with it, attacks are made on the masked path and tried on the graph.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smart_eval.attacks.base import WithSource
from smart_eval.mixes import GraphMix
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.manifest import Manifest
from smart_runtime.engines import REFERENCE_ENGINE, Engine, EngineOptions, create_engine, resolve_engine
from smart_runtime.outputs import check_shape
from smart_train.accuracy import CHUNK, Accuracy, to_tensor
from smart_train.checkpoint.format import Checkpoint
from smart_train.errors import ConfigError
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.network import SmartNetwork


class GraphPath(WithSource):
    """One graph of a bundle as torch calls a network: float32 (N, C, H, W) in [0, 1] to scores (N, classes).

    Its scores have no gradient; who asks for one gets a ConfigError. ``source`` is the masked path that the graph was
    made from, where that is at hand.
    """

    def __init__(self, engine: Engine, *, name: str, classes: int, source: nn.Module | None) -> None:
        super().__init__()
        self.engine = engine
        self._name, self._classes = name, classes
        self.source = source

    def forward(self, images: Tensor) -> Tensor:
        """Return the engine's scores of ``images``, on their device; raises EngineError if it fails.

        NaN comes through: it counts as a wrong answer, and the check of finite scores names it.
        """
        if images.requires_grad and torch.is_grad_enabled():
            raise ConfigError(
                "a graph gives scores only, and this attack needs gradients; use --attack square, or give the "
                "checkpoint it was exported from as --source"
            )
        batch = np.ascontiguousarray(images.detach().cpu().numpy(), dtype=np.float32)
        scores = self.engine.run(batch)
        check_shape(scores, images=len(batch), classes=self._classes, name=self._name)
        return torch.from_numpy(scores).to(images.device)


class BundlePaths:
    """The paths of an open bundle, loaded, under the names they have there.

    Args:
        bundle: an open one; every byte of it is checked.
        source: the network that it was exported from.
        engine: what runs its graphs.

    Raises:
        BundleError: a file was changed.
        EngineError: the engine refuses a graph.
        MissingExtraError: this machine has no engine.
    """

    def __init__(self, bundle: Bundle, *, source: SmartNetwork | None, engine: str = REFERENCE_ENGINE) -> None:
        manifest = bundle.manifest
        self.engine = resolve_engine(engine)
        bundle.verify()
        threads = min(torch.get_num_threads(), len(os.sched_getaffinity(0)))
        create = partial(
            create_engine,
            self.engine,
            inputs=manifest.input,
            outputs=manifest.output,
            options=EngineOptions(threads=threads),
        )
        self._paths = {
            name: GraphPath(
                create(bundle.graph_bytes(name)),
                name=name,
                classes=manifest.output.classes,
                source=None if source is None else source.path(name),
            ).eval()
            for name in manifest.paths
        }
        self._mixes = {name: GraphMix(mix, self._paths).eval() for name, mix in manifest.mixes.items()}

    @property
    def path_names(self) -> tuple[str, ...]:
        """The paths in order, then the mixes."""
        return (*self._paths, *self._mixes)

    def path(self, name: str) -> WithSource:
        """Return the path or the mix ``name``."""
        return self._mixes[name] if name in self._mixes else self._paths[name]

    def to(self, device: torch.device | str) -> BundlePaths:
        """Move what torch computes, the source, and return itself; the engine stays where it is."""
        for path in self._paths.values():
            path.to(device)
        return self

    def close(self) -> None:
        """Close the engines."""
        for path in self._paths.values():
            path.engine.close()


def recorded_eps(manifest: Manifest) -> float | None:
    """Return the radius that a bundle was judged by, or trained for, in pixel units; None if none in [0, 1] stands."""
    for record in (manifest.gate, manifest.training.get("attack")):
        eps = record.get("eps") if isinstance(record, Mapping) else None
        if isinstance(eps, int | float) and not isinstance(eps, bool) and 0 <= eps <= 1:
            return float(eps)
    return None


@dataclass(frozen=True)
class Replay:
    """The samples of a checkpoint on one path and on its graph.

    Attributes:
        source: accuracy of the masked path on ``clean`` images and on ``adversarial`` ones made on it; an adversarial
            one counts if it is right before and after.
        graph: likewise of the graph.
        same_class: how many images, of both kinds, both give the same class.
        max_rel_diff: max|a-b| / max(1, max|a|) over the scores of both kinds.
    """

    source: Mapping[str, Accuracy]
    graph: Mapping[str, Accuracy]
    same_class: Accuracy
    max_rel_diff: float

    def record(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            "source": {kind: one.record for kind, one in self.source.items()},
            "graph": {kind: one.record for kind, one in self.graph.items()},
            "same_class": self.same_class.value,
            "max_rel_diff": self.max_rel_diff,
        }


def replay(paths: BundlePaths, manifest: Manifest, source: Checkpoint) -> dict[str, Replay]:
    """Run the samples of ``source`` on each path and its graph, by path.

    Raises:
        ConfigError: ``source`` is not the network that the bundle was exported from: another input shape, other classes
            or paths, or a graph that is further from its path than the tolerance in its manifest.
    """
    labels = source.samples.labels.numpy()
    found = {}
    for name in manifest.paths:
        right: dict[str, dict[str, Any]] = {"source": {}, "graph": {}}
        same, difference, scale = [], 0.0, 1.0
        for kind, images in (("clean", source.samples.images), ("adversarial", source.samples.adversarial[name])):
            ours, theirs = _scores(source.net.path(name), images), _scores(paths.path(name), images)
            for who, scores in (("source", ours), ("graph", theirs)):
                right[who][kind] = scores.argmax(axis=1) == labels
                right[who][kind] &= right[who]["clean"]
            same.append(ours.argmax(axis=1) == theirs.argmax(axis=1))
            difference, scale = (
                max(difference, float(np.abs(ours - theirs).max())),
                max(scale, float(np.abs(ours).max())),
            )
        found[name] = Replay(
            **{who: {kind: Accuracy.of(one) for kind, one in kinds.items()} for who, kinds in right.items()},
            same_class=Accuracy.of(np.concatenate(same)),
            max_rel_diff=difference / scale,
        )
        tolerance = manifest.paths[name].tolerance
        if tolerance is not None and not difference / scale <= tolerance:  # not a number is no agreement
            raise ConfigError(
                f"expected the graph {name!r} within {tolerance:.2g} of its path in the source, as its manifest says, "
                f"got {difference / scale:.2g}; give the checkpoint that the bundle was exported from"
            )
    return found


@torch.no_grad()
def _scores(model: nn.Module, images: Tensor) -> Any:
    with attack_mode(model):
        return np.concatenate([model(to_tensor(part)).numpy() for part in torch.split(images, CHUNK)])
