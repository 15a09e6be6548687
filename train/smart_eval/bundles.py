"""Bundles as smart-eval measures them: their graphs in their real precision, run by the engine that deploys them.

A graph has no gradient. Without the checkpoint that it came from it is attacked by what needs scores only, Square
(Andriushchenko et al. 2020, arXiv 1912.00049); with it, attacks are made on the masked path and tried on the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from smart_eval.attacks.autoattack import SQUARE
from smart_eval.attacks.base import NamedAttack, Transferred, WithSource
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.manifest import Manifest
from smart_runtime.engines import REFERENCE_ENGINE, Engine, EngineOptions, create_engine, resolve_engine
from smart_runtime.notes import notes_on
from smart_train.accuracy import CHUNK, Accuracy, to_tensor
from smart_train.checkpoint.format import Checkpoint
from smart_train.checkpoint.origin import check_source
from smart_train.errors import ConfigError
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.network import SmartNetwork

BLACK_BOX = (
    "Black-box: the attacker sees the scores that the deployed graph gives any image, asks for those of up to 5,000 "
    "images for each one attacked, knows no weights, and changes each pixel by at most eps (L-infinity, pixels in "
    "[0, 1]). Who knows the weights may break more."
)
FROM_SOURCE = (
    "Transfer from the source to the deployed graph: the attacker knows the float network, its weights and which path "
    "runs, not the graph with its rounding; adversarial images are made on the masked path, within eps of each pixel "
    "(L-infinity, pixels in [0, 1]), and tried on the graph; Square alone is made on the graph, by its scores. Who "
    "follows the graph's own rounding may break more."
)


class GraphPath(WithSource):
    """One graph of a bundle as torch calls a network: float32 (N, C, H, W) in [0, 1] to scores (N, classes).

    Its scores have no gradient; who asks for one gets a ConfigError. ``source`` is the masked path that the graph was
    made from, where that is at hand.
    """

    def __init__(self, engine: Engine, *, source: nn.Module | None) -> None:
        super().__init__()
        self._engine = engine
        self.source = source

    def forward(self, images: Tensor) -> Tensor:
        """Return the engine's scores of ``images``, on their device; raises EngineError if it fails."""
        if images.requires_grad and torch.is_grad_enabled():
            raise ConfigError(
                f"expected to be asked for scores only, which is all that a graph gives, got an attack that needs "
                f"gradients; use --attack {SQUARE}, or give the checkpoint it was exported from as --source"
            )
        batch = np.ascontiguousarray(images.detach().cpu().numpy(), dtype=np.float32)
        return torch.from_numpy(self._engine.run(batch)).to(images.device)


class BundlePaths:
    """The paths of an open bundle, loaded, under the names they have there.

    Args:
        bundle: an open one; every byte of it is checked.
        source: the network that it was exported from.
        engine: what runs its graphs.
        threads: that one call may use.

    Raises:
        BundleError: a file was changed.
        EngineError: the engine refuses a graph.
        MissingExtraError: this machine has no engine.
    """

    def __init__(
        self, bundle: Bundle, *, source: SmartNetwork | None, engine: str = REFERENCE_ENGINE, threads: int
    ) -> None:
        manifest = bundle.manifest
        self.engine = resolve_engine(engine)
        bundle.verify()
        self._engines: dict[str, Engine] = {}
        self._paths: dict[str, GraphPath] = {}
        for name in manifest.paths:
            self._engines[name] = create_engine(
                self.engine,
                bundle.graph_bytes(name),
                inputs=manifest.input,
                outputs=manifest.output,
                options=EngineOptions(threads=threads),
            )
            self._paths[name] = GraphPath(
                self._engines[name], source=None if source is None else source.path(name)
            ).eval()

    @property
    def path_names(self) -> tuple[str, ...]:
        """The paths in order."""
        return tuple(self._paths)

    def path(self, name: str) -> GraphPath:
        """Return the path ``name``."""
        return self._paths[name]

    def to(self, device: torch.device | str) -> BundlePaths:
        """Move what torch computes, the source, and return itself; the engine stays where it is."""
        for path in self._paths.values():
            path.to(device)
        return self

    def close(self) -> None:
        """Close the engines."""
        for engine in self._engines.values():
            engine.close()


@dataclass(frozen=True)
class Source:
    """The checkpoint that bundles were exported from, and the SHA-256 of its file."""

    checkpoint: Checkpoint
    digest: str


@dataclass(frozen=True)
class OpenBundle(AbstractContextManager["OpenBundle"]):
    """A bundle that is ready to be measured; as a context it closes its graphs.

    Attributes:
        bundle: checked to the byte.
        net: its graphs.
        source: where it came from, None if nobody said.
        replay: what it makes of the samples of ``source``, by path.
    """

    bundle: Bundle
    net: BundlePaths
    source: Source | None
    replay: Mapping[str, Replay] | None

    @property
    def kind(self) -> Literal["bundle"]:
        """What it is."""
        return "bundle"

    @property
    def made_on(self) -> dict[str, nn.Module]:
        """The networks whose gradients attacks follow, by path: the masked ones of the source, none without it."""
        sources = {name: self.net.path(name).source for name in self.net.path_names}
        return {name: source for name, source in sources.items() if source is not None}

    @property
    def digest(self) -> str:
        """The SHA-256 of its checksums."""
        return self.bundle.digest

    @property
    def precision(self) -> str:
        """That its graphs compute in."""
        return self.manifest.precision

    @property
    def engine(self) -> str:
        """What runs them."""
        return self.net.engine

    @property
    def usual_attack(self) -> str:
        """The attack where the user names none."""
        return SQUARE if self.source is None else "pgd"

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.manifest.input.shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """One a class."""
        return self.manifest.class_names

    @property
    def training(self) -> Mapping[str, Any]:
        """The plain record of how it was trained."""
        return self.manifest.training

    @property
    def eps(self) -> float:
        """See `recorded_eps`."""
        return recorded_eps(self.manifest)

    @property
    def about(self) -> dict[str, Any]:
        """What results depend on."""
        source = {} if self.source is None else {"source": self.source.digest}
        return {"model": self.digest, "engine": self.engine, **source}

    @property
    def threat_model(self) -> str:
        """What the attacker knows and may do."""
        return BLACK_BOX if self.source is None else FROM_SOURCE

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about the bundle on the engine that measures it, a sentence each."""
        return notes_on(self.manifest, engine_name=self.engine)

    def attacks(self, attacks: Sequence[NamedAttack]) -> list[NamedAttack]:
        """Return ``attacks`` as they are made on the bundle: on its source, or on the graphs where scores suffice.

        Raises:
            ConfigError: there is no source, and one of them needs gradients.
        """
        if self.source is not None:
            return [Transferred(attack) if attack.needs_gradients else attack for attack in attacks]
        for attack in attacks:
            if attack.needs_gradients:
                raise ConfigError(
                    f"expected attacks that need scores only for the bundle {self.bundle.root}, whose graphs have no "
                    f"gradients, got {attack.name}; use --attack {SQUARE}, or give the checkpoint it was exported from "
                    f"as --source"
                )
        return list(attacks)

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Close the graphs."""
        self.net.close()


def open_bundle(
    folder: Path,
    *,
    trust: Path | None = None,
    source: Source | None = None,
    engine: str = REFERENCE_ENGINE,
    threads: int = 1,
) -> OpenBundle:
    """Open the bundle in ``folder``, every byte checked, and replay the samples of its source.

    Args:
        folder: the bundle.
        trust: a public key; only a bundle signed by it is opened.
        source: the checkpoint that it was exported from.
        engine: what runs the graphs.
        threads: that one call of the engine may use.

    Raises:
        BundleError, SignatureError, EngineError, MissingExtraError, OSError: as `SmartModel.load` raises them.
        ConfigError: the source is another network.
    """
    bundle = Bundle.open(folder, trust=trust)
    if source is not None:
        check_source(bundle.manifest, source.checkpoint)
    net = None if source is None else source.checkpoint.net
    paths = BundlePaths(bundle, source=net, engine=engine, threads=threads)
    replayed = None if source is None else replay(paths, bundle.manifest, source.checkpoint)
    return OpenBundle(bundle, paths, source, replayed)


def recorded_eps(manifest: Manifest) -> float:
    """Return the radius that a bundle was judged by, or trained for, in pixel units.

    Raises:
        ConfigError: its manifest names none in [0, 1].
    """
    for record in (manifest.gate, manifest.training.get("attack")):
        eps = record.get("eps") if isinstance(record, Mapping) else None
        if isinstance(eps, int | float) and not isinstance(eps, bool) and 0 <= eps <= 1:
            return float(eps)
    raise ConfigError(
        f"expected --eps for the bundle {manifest.package_name!a:.60}, whose manifest names none, got none; 8/255 is "
        f"usual for photographs"
    )


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
    for name in paths.path_names:
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
