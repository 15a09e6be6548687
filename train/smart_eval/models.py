"""What smart-eval measures: a checkpoint or a bundle, opened, with all that a report says of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from smart_common.errors import shortened
from smart_common.files import digest_and_value
from smart_common.mask_info import MaskInfo
from smart_common.names import printable
from smart_common.roles import Role
from smart_eval.attacks.base import DRAWS, NamedAttack, Transferred
from smart_eval.bundles import BundlePaths, Replay, recorded_eps, replay
from smart_eval.costs import Cost, cost_of_bundle, cost_of_network
from smart_eval.mixes import MIXED, MixedPaths, mix_record, mixes_of, with_mixes
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.signatures import PublicKey
from smart_runtime.engines import REFERENCE_ENGINE
from smart_runtime.notes import notes_on
from smart_runtime.tripwire.records import TripwireRecord, read_tripwire
from smart_train.accuracy import to_tensor
from smart_train.calibration import temperature_of
from smart_train.checkpoint.described_masks import describe_masks
from smart_train.checkpoint.format import Checkpoint, Samples, check_source, load_checkpoint
from smart_train.choices import CUSTOM
from smart_train.errors import ConfigError
from smart_train.masking.accounting import densities
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.network import SmartNetwork
from smart_train.methods import METHODS, load_method
from smart_train.mixture import mixed_paths

WHITE_BOX = (
    "White-box: the attacker knows the network, its weights and which path runs, and changes each pixel by at most eps "
    "(L-infinity, pixels in [0, 1]). The user chose the path; the attacker cannot change it."
)
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
RANDOMISED = (
    f"it draws random numbers in each call: attacks follow the mean over {DRAWS} calls, one call judges each image, "
    "and neither checks for hidden gradients nor attacks from other paths are made"
)
_FEW = 8
_MOST_STEPS = 10**6  # of an attack: no training had more


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a report says of a checkpoint or a bundle before anything of it is measured.

    Attributes:
        model: where it is, a file or a bundle's folder, or what stands for that in reports.
        kind: what it is.
        digest: the SHA-256 of the file, of a bundle's checksums, or of an open checkpoint's parameters.
        class_names: one a class, in the order of the labels.
        threat_model: a sentence of what the attacker knows and may do.
        precision: that it computes in.
        engine: what computes it.
        notes: what to know about how it is measured, of a bundle about its engine, a sentence each.
        replay: what a bundle makes of the samples of its source, by path; None without one.
        roles: what each path is for; one that has none here has its name's (`smart_common.roles`).
        masks: how they were found and what the paths keep and share, in the document's values; None if nothing says it.
        randomised: whether a path draws random numbers in each call, so that attacks follow the mean of many.
        cost: parameters, multiply-accumulates and bytes of each path.
        method: that it was trained with, None where nothing says.
        forwards: what one training image cost, in forward passes of the network; None where nothing says.
        mixes: by name, the paths, the share and the temperatures of each mix.
    """

    model: Path
    kind: Literal["checkpoint", "bundle"]
    digest: str
    class_names: tuple[str, ...]
    threat_model: str
    precision: str = "fp32"
    engine: str = "torch"
    notes: tuple[str, ...] = ()
    replay: Mapping[str, Replay] | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    masks: Mapping[str, Any] | None = None
    randomised: bool = False
    cost: Cost
    method: str | None = None
    forwards: float | None = None
    mixes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """These alone, by name."""
        return {field.name: getattr(self, field.name) for field in fields(Facts)}


@dataclass(frozen=True, kw_only=True)
class OpenModel(Facts, AbstractContextManager["OpenModel"]):
    """A checkpoint or a bundle that is ready to be measured; as a context it closes the graphs of a bundle.

    Attributes:
        net: its paths.
        made_on: the networks whose gradients attacks follow, by path: a checkpoint's own, the masked ones of a bundle's
            source, none without one.
        about: what results depend on beside it, in values that JSON has.
        input_shape: channels, height, width.
        training: the plain record of how it was trained.
        samples: of the checkpoint, or of a bundle's source; None without one.
        temperatures: what calibrates the scores of each path; mixes have none.
        tripwire: a bundle's own operating points; None of a checkpoint, and where a bundle has none.
        recorded_eps: the radius that it was trained for or judged by, in pixel units; None if nothing says.
    """

    net: SmartNetwork | BundlePaths | MixedPaths
    made_on: Mapping[str, nn.Module]
    about: Mapping[str, Any]
    input_shape: tuple[int, int, int]
    training: Mapping[str, Any]
    recorded_eps: float | None
    samples: Samples | None
    temperatures: Mapping[str, float]
    tripwire: TripwireRecord | None = None

    @property
    def eps(self) -> float:
        """The recorded radius; raises ConfigError if there is none."""
        if self.recorded_eps is None:
            raise ConfigError(f"no eps is recorded in {self.model}; give --eps, 8/255 is usual for photographs")
        return self.recorded_eps

    @property
    def usual_attack(self) -> str:
        """The attack where the user names none."""
        return "pgd" if self.made_on else "square"

    def attacks(self, attacks: Sequence[NamedAttack]) -> list[NamedAttack]:
        """Return ``attacks`` as they are made here: on the paths themselves, or on the source where graphs have none.

        Raises:
            ConfigError: one of them needs gradients, and there are none; or a path is randomised, and there is no
                version for that.
        """
        if self.randomised:
            return [attack.for_randomised() for attack in attacks]
        if self.kind == "checkpoint":
            return list(attacks)
        blind = next((one.name for one in attacks if one.needs_gradients), None)
        if blind is not None and not self.made_on:
            raise ConfigError(
                f"{blind} needs gradients, which the graphs of the bundle {self.model} do not have; use --attack "
                f"square, or give the checkpoint it was exported from as --source"
            )
        return [Transferred(one) if one.needs_gradients else one for one in attacks]

    def __exit__(self, *_: object) -> None:
        """Close the graphs of a bundle."""
        if isinstance(self.net, BundlePaths):
            self.net.close()


@dataclass(frozen=True)
class Source:
    """The checkpoint that bundles were exported from, and the SHA-256 of its file."""

    checkpoint: Checkpoint
    digest: str


def read_source(
    checkpoint: str | os.PathLike[str] | Checkpoint, *, load: Callable[[Path], Checkpoint] = load_checkpoint
) -> Source:
    """Return a checkpoint, read by ``load`` if it is a file, with its digest; raises as `load_checkpoint` does."""
    if isinstance(checkpoint, Checkpoint):
        return Source(checkpoint, _parameters_digest(checkpoint.net))
    digest, value = digest_and_value(Path(checkpoint), load)
    return Source(value, digest)


def open_checkpoint(source: Source, *, file: Path, mix: Sequence[float] = ()) -> OpenModel:
    """Return a checkpoint to measure, with mixes of these shares; raises ConfigError if it cannot have them.

    Of a user's own network results also depend on the code: its scores show it.
    """
    checkpoint = source.checkpoint
    own: dict[str, Any] = {}
    if checkpoint.architecture == CUSTOM:
        own = {"arguments": dict(checkpoint.arguments), "scores": _scores_digest(checkpoint)}
    base, mixes = checkpoint.net, mixes_of(checkpoint, mix)
    net = MixedPaths(base, mixes) if mixes else base
    roles = {path: checkpoint.role(path) for path in base.path_names}
    records = {name: mix_record(mixed_paths(roles), one.share, one.temperatures) for name, one in mixes.items()}
    made_on = {path: net.path(path) for path in net.path_names}
    randomised = any(getattr(base.path(path), "randomised", False) for path in base.path_names)
    return OpenModel(
        model=file,
        kind="checkpoint",
        threat_model=WHITE_BOX,
        net=net,
        made_on=made_on,
        digest=source.digest,
        about={"model": source.digest, **own},
        input_shape=checkpoint.input_shape,
        class_names=checkpoint.class_names,
        training=checkpoint.training,
        recorded_eps=checkpoint.samples.eps,
        samples=checkpoint.samples,
        roles=roles,
        masks=_masks_of_checkpoint(checkpoint),
        randomised=randomised,
        cost=with_mixes(cost_of_network(base, input_shape=checkpoint.input_shape), records),
        **_trained(checkpoint.training),
        notes=(*([RANDOMISED] if randomised else []), *([MIXED] if mixes else [])),
        mixes=records,
        temperatures={} if randomised else {p: temperature_of(checkpoint, p).temperature for p in base.path_names},
    )


def _masks_of_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    kept = densities(checkpoint.net)
    info = describe_masks(checkpoint.net, training=checkpoint.training)
    return _masks_record(info, {path: (kept.kept[path], kept.parameters[path]) for path in kept.kept})


def _masks_record(info: MaskInfo, kept: Mapping[str, tuple[float | None, float | None]]) -> dict[str, Any]:
    paths = {path: {"density": own, "parameter_density": parameters} for path, (own, parameters) in kept.items()}
    return {**info.record(), "paths": paths}


def open_bundle(
    folder: str | os.PathLike[str] | Bundle,
    *,
    trust: str | os.PathLike[str] | PublicKey | None = None,
    source: Source | None = None,
    engine: str = REFERENCE_ENGINE,
) -> OpenModel:
    """Open the bundle in ``folder``, every byte checked, and replay the samples of its source.

    Args:
        folder: the bundle, or where it is.
        trust: a public key; only a bundle signed by it is opened.
        source: the checkpoint that it was exported from.
        engine: what runs its graphs.

    Raises:
        BundleError, SignatureError, EngineError, MissingExtraError, OSError: as `SmartModel.load` raises them.
        ConfigError: the source is another network, or there were two.
    """
    bundle = folder if isinstance(folder, Bundle) else Bundle.open(folder, trust=trust)
    manifest, checkpoint = bundle.manifest, None if source is None else source.checkpoint
    if checkpoint is not None:
        if "separately" in manifest.training:
            raise ConfigError(
                f"{bundle.root} was made of two checkpoints, and a source is one; leave --source out, or measure each "
                "checkpoint by itself"
            )
        check_source(manifest, checkpoint)
    net = BundlePaths(bundle, source=None if checkpoint is None else checkpoint.net, engine=engine)
    mixes = {mix.name: mix_record(mix.paths, mix.share, mix.temperatures) for mix in manifest.mixes.values()}
    return OpenModel(
        model=bundle.root,
        kind="bundle",
        threat_model=BLACK_BOX if checkpoint is None else FROM_SOURCE,
        net=net,
        made_on={name: found for name in net.path_names if (found := net.path(name).source) is not None},
        digest=bundle.digest,
        about={"model": bundle.digest, "engine": net.engine, **({} if source is None else {"source": source.digest})},
        input_shape=manifest.input.shape,
        class_names=manifest.class_names,
        training=manifest.training,
        recorded_eps=recorded_eps(manifest),
        samples=None if checkpoint is None else checkpoint.samples,
        precision=manifest.precision,
        engine=net.engine,
        notes=(*notes_on(manifest, engine_name=net.engine), *([MIXED] if mixes else [])),
        mixes=mixes,
        temperatures={name: graph.temperature for name, graph in manifest.paths.items()},
        tripwire=read_tripwire(manifest),
        replay=None if checkpoint is None else replay(net, manifest, checkpoint),
        roles={name: graph.role for name, graph in manifest.paths.items() if graph.role is not None},
        masks=None
        if manifest.masks is None
        else _masks_record(
            manifest.masks, {name: (graph.density, graph.parameter_density) for name, graph in manifest.paths.items()}
        ),
        cost=with_mixes(cost_of_bundle(manifest), mixes),
        **_trained(manifest.training),
    )


def _trained(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return method, with what must be said beside its figures, and forwards, of a record that may come from anyone.

    Forwards are not known where the training did more than its method does by default.
    """
    name, attack = training.get("method"), training.get("attack")
    if not isinstance(name, str) or not name.strip():
        return {}
    # A bundle of two networks has the methods of both (`smart_export.sources`).
    label = shortened(printable("-and-".join(map(_with_caveat, name.split("-and-")))))
    steps = attack.get("steps") if isinstance(attack, Mapping) else None
    if name not in METHODS or type(steps) is not int or not 0 <= steps < _MOST_STEPS or _does_more(training):
        return {"method": label}
    return {"method": label, "forwards": float(load_method(name).forwards(steps))}


def _with_caveat(name: str) -> str:
    caveat = load_method(name).caveat if name in METHODS else ""
    return f"{name} ({caveat})" if caveat else name


def _does_more(training: Mapping[str, Any]) -> bool:
    """Return whether a record has what costs more passes: AWP, a teacher's targets, another base of the method."""
    added, options = (
        found if isinstance(found := training.get(key), Mapping) else {} for key in ("refinements", "method_options")
    )
    usual = getattr(load_method(training["method"]).options(), "base", None)
    return any(added.get(name, 0) != 0 for name in ("awp", "distill")) or options.get("base", usual) != usual


def _parameters_digest(net: SmartNetwork) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(np.ascontiguousarray(value.cpu().numpy()).tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _scores_digest(checkpoint: Checkpoint) -> str:
    """Return a digest of what each path makes of a few images."""
    digest, images = hashlib.blake2b(digest_size=8), to_tensor(checkpoint.samples.images[:_FEW])
    for name in checkpoint.net.path_names:
        path = checkpoint.net.path(name)
        with attack_mode(path):
            digest.update(path(images).numpy().tobytes())
    return digest.hexdigest()
