"""Mixes at export: which shares, with which temperatures, and whether a device computes what the networks say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np

from smart_common.roles import clean_and_attacked
from smart_export.errors import ExportError, VerificationError
from smart_export.sources import Sources
from smart_export.stages import Export, ExportedGraph, written_scores
from smart_export.verify import (
    PathGate,
    Scores,
    agreement,
    path_gate,
    reference_scores,
    require,
    require_gate,
    verification_images,
)
from smart_runtime.bundle.manifest import Manifest
from smart_runtime.bundle.mixes import MAX_MIXES, FittedTemperature, MixInfo
from smart_runtime.reference import ParityResult
from smart_runtime.together import mixed
from smart_train.calibration import temperature_of
from smart_train.errors import ConfigError
from smart_train.mixture import Mixture, mix_name, mixed_paths

_SHARES = np.arange(99, 0, -1) / 100  # that --mix-clean tries
_TEMPERATURE = 0.01  # by which a fit may differ on another machine, as a fraction


@dataclass(frozen=True, kw_only=True)
class WantedMixes:
    """Which mixes a bundle is to have.

    ``shares`` are of the path for attacked images; ``clean`` asks for the largest share, in whole percents, whose
    accuracy on the clean images that judge is at least this, a fraction.
    """

    shares: Sequence[float] = ()
    clean: float | None = None

    def __bool__(self) -> bool:
        return bool(self.shares) or self.clean is not None


@dataclass(frozen=True, kw_only=True)
class ExportedMix:
    """One mix as it stands in the bundle.

    ``agreement`` compares it, computed as a device does, with the mix of the masked paths; ``gate`` is what its
    accuracies lost; ``warnings`` has a sentence for each that was not decided, ``judged`` all as plain values.
    """

    name: str
    paths: tuple[str, str]
    share: float
    temperatures: tuple[float, float]
    agreement: ParityResult
    gate: PathGate
    judged: Mapping[str, Any]
    warnings: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        return {
            "paths": list(self.paths),
            "share": self.share,
            "temperatures": list(self.temperatures),
            "gate": dict(self.judged),
        }


def check_mixes(wanted: WantedMixes, sources: Sources) -> None:
    """Raise ExportError, before anything is built, if the bundle cannot have these mixes."""
    if not wanted:
        return
    try:
        names = [mix_name(share) for share in wanted.shares]
        mixed_paths(sources.roles)
    except ConfigError as error:
        raise ExportError(str(error)) from error
    if len(names) + (wanted.clean is not None) > MAX_MIXES:
        raise ExportError(f"a bundle has at most {MAX_MIXES} mixes; leave some --mix out")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ExportError(f"--mix asks for {twice} twice; name it once")
    if wanted.clean is not None and not 0 < wanted.clean <= 1:
        raise ExportError(f"expected a clean accuracy above 0, up to 1, for a mix, got {wanted.clean:g}; 0.97, say")
    taken = next((name for name in names if name in sources.paths), None)
    if taken is not None:
        raise ExportError(
            f"the checkpoint has a path {taken!r} already, so no mix can be called that; take another share"
        )


def export_mixes(
    wanted: WantedMixes,
    *,
    sources: Sources,
    exports: Mapping[str, Export],
    graphs: Mapping[str, ExportedGraph],
    temperatures: Mapping[str, FittedTemperature],
    bundle: Path,
) -> tuple[ExportedMix, ...]:
    """Return the mixes, each verified and judged as a path is.

    Both paths run on the images that judge: clean ones, those attacked on the path for attacked images, and noise. An
    attack on the mix itself is for smart-eval.

    Raises:
        ExportError: no share keeps the clean accuracy that is asked for.
        VerificationError, GateError: as of a path.
    """
    if not wanted:
        return ()
    paths = mixed_paths(sources.roles)
    clean, robust = paths
    export = exports[robust]
    samples = export.judging.samples
    images = verification_images(samples, path=robust, random_images=export.random_images)
    networks = [sources.of_path[path].net.path(path) for path in paths]
    of_networks = [reference_scores(network, images) for network in networks]
    of_graphs = [written_scores(graphs[path], images, export=exports[path], bundle=bundle) for path in paths]
    t = temperatures[clean].temperature, temperatures[robust].temperature
    labels, count = samples.labels.numpy(), len(samples.labels)

    def accuracy(share: float) -> float:
        scores = mixed(of_networks[0][:count], of_networks[1][:count], share=share, temperatures=t)
        return float((scores.argmax(axis=1) == labels).mean())

    shares = [float(share) for share in wanted.shares]
    if wanted.clean is not None:
        best = next((float(share) for share in _SHARES if accuracy(float(share)) >= wanted.clean), None)
        if best is None:
            raise ExportError(
                f"no mix is right on {wanted.clean:g} of the {count} clean images that judge, and the path {clean!r} "
                f"alone on {float((of_networks[0][:count].argmax(axis=1) == labels).mean()):.4g}; ask for less"
            )
        shares += [best] if all(abs(best - share) > 1e-6 for share in shares) else []
    tolerance = max(graphs[path].agreement.tolerance for path in paths) / min(
        1.0, *t
    )  # t divides what scores differ by

    def exported(share: float) -> ExportedMix:
        network = Mixture(*networks, share=share, temperatures=t)
        got = mixed(of_graphs[0], of_graphs[1], share=share, temperatures=t)
        expected = reference_scores(network, images)
        return _judged(export, expected, got, paths=paths, share=share, temperatures=t, tolerance=tolerance)

    return tuple(exported(share) for share in shares)


def check_dial(manifest: Manifest, sources: Sources) -> None:
    """Check that temperatures and mixes are those that an export of ``sources`` has.

    Raises:
        VerificationError: one is not.
    """
    fitted = {path: temperature_of(one, path).temperature for path, one in sources.of_path.items()}
    for path, graph in manifest.paths.items():
        if graph.calibration is not None and not isclose(graph.temperature, fitted[path], rel_tol=_TEMPERATURE):
            raise VerificationError(
                f"the temperature of the path {path!r} is {graph.temperature:.3g}, and the checkpoint's samples give "
                f"{fitted[path]:.3g}; give the checkpoint that it was exported from"
            )
    pair = clean_and_attacked(sources.roles)
    for mix in manifest.mixes.values():
        same = mix.paths == pair and _name_of(mix) == mix.name
        for path, temperature in zip(mix.paths, mix.temperatures, strict=True):
            same = same and isclose(temperature, fitted[path], rel_tol=_TEMPERATURE)
        if not same:
            raise VerificationError(
                f"{mix.name} is another mix than the checkpoint's of that name; give the checkpoint that it was "
                "exported from, or export the bundle again"
            )


def _name_of(mix: MixInfo) -> str | None:
    try:
        return mix_name(mix.share)
    except ConfigError:
        return None


def _judged(
    export: Export,
    expected: Scores,
    got: Scores,
    *,
    paths: tuple[str, str],
    share: float,
    temperatures: tuple[float, float],
    tolerance: float,
) -> ExportedMix:
    name, labels = mix_name(share), export.judging.samples.labels.numpy()
    found = agreement(expected, got, tolerance=tolerance)
    require(found, name=name)
    count = len(labels)
    gate = path_gate(
        labels,
        clean=(expected[:count], got[:count]),
        adversarial=(expected[count : 2 * count], got[count : 2 * count]),
    )
    warnings = require_gate(
        gate, name=name, max_drop=export.max_drop, undecided=export.undecided, verified=export.verified
    )
    return ExportedMix(
        name=name,
        paths=paths,
        share=share,
        temperatures=temperatures,
        agreement=found,
        gate=gate,
        judged={
            **gate.record(max_drop=export.max_drop, verified=export.verified),
            "attacked_on": paths[1],
            "tolerance": found.tolerance,
            "max_rel_diff": found.max_rel_diff,
            "argmax_agreement": found.argmax_agreement,
        },
        warnings=warnings,
    )
