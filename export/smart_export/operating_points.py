"""What the tripwire goes by, measured on the graphs of a bundle: how clean and attacked samples look to both paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from smart_common.roles import clean_and_attacked
from smart_export.sources import Sources
from smart_export.stages import Export, ExportedGraph, written_scores
from smart_export.timings import Stopwatch
from smart_runtime.errors import InputError
from smart_runtime.tripwire.operating_point import AT_CLEAN, AT_ROBUST, LEAST_FRAMES, SILENT, OperatingPoint
from smart_runtime.tripwire.outlook import Outlook, outlook_of
from smart_runtime.tripwire.pair_scores import SCORES
from smart_runtime.tripwire.records import TripwireRecord
from smart_train.accuracy import to_tensor
from smart_train.masking.attack_mode import attack_mode

SILENT_STEPS = 10
"""Of the attack that takes both paths to one wrong class: enough to show where such frames lie."""

SILENT_MACS = 2e12
"""What that attack may take: a minute of two cores at most. A network that is too large for it has no silent frames."""


@dataclass(frozen=True)
class Measured:
    """The operating points and what to expect of them, None where there are none, and a sentence for each concern."""

    record: TripwireRecord | None
    outlook: Outlook | None
    warnings: tuple[str, ...]


def measured(
    sources: Sources, *, export: Export, graphs: Mapping[str, ExportedGraph], bundle: Path, stopwatch: Stopwatch
) -> Measured:
    """Return the operating points of the graphs in ``bundle``, or why there are none.

    A bundle without a path for clean and one for attacked images has none, which is no concern.
    """
    with stopwatch.phase("operating points"):
        record, why_none = _record(sources, export=export, graphs=graphs, bundle=bundle)
        if record is None:
            return Measured(None, None, () if why_none is None else (why_none,))
        outlook = outlook_of(record)
        return Measured(record, outlook, outlook.warnings)


def _record(
    sources: Sources, *, export: Export, graphs: Mapping[str, ExportedGraph], bundle: Path
) -> tuple[TripwireRecord | None, str | None]:
    pair = clean_and_attacked(sources.roles)
    if pair is None:
        return None, None
    clean, robust = pair
    first, second = (sources.of_path[path].samples for path in (clean, robust))
    if not torch.equal(first.images, second.images) or not torch.equal(first.labels, second.labels):
        return None, (
            "no operating points for the tripwire: the two checkpoints carry samples of other images; train both on "
            "the same data with the same seed"
        )
    if len(first.labels) < LEAST_FRAMES:
        return None, (
            f"no operating points for the tripwire: the checkpoint has {len(first.labels)} samples, and it takes "
            f"{LEAST_FRAMES}; train with more validation images"
        )
    images = {
        "": to_tensor(first.images),
        AT_CLEAN: to_tensor(first.adversarial[clean]),
        AT_ROBUST: to_tensor(second.adversarial[robust]),
    }
    # Backward takes twice what forward takes.
    an_image = sum(graphs[path].cost.dense_macs for path in pair) * 3 * SILENT_STEPS
    count = min(len(first.labels), int(SILENT_MACS / max(an_image, 1)))
    if count >= LEAST_FRAMES:
        images[SILENT] = _silent(sources, clean=clean, robust=robust, count=count)
    scores = {
        path: {
            kind: written_scores(graphs[path], [one.numpy()], export=export, bundle=bundle)
            for kind, one in images.items()
        }
        for path in pair
    }
    of_kind = {kind: (scores[clean][kind], scores[robust][kind]) for kind in images}
    usual = of_kind.pop("")
    try:
        points = {score: OperatingPoint.fit(score, clean=usual, attacked=of_kind) for score in SCORES}
    except InputError as error:
        return None, f"no operating points for the tripwire: {error}"
    return TripwireRecord(clean, robust, MappingProxyType(points)), None


def _silent(sources: Sources, *, clean: str, robust: str, count: int) -> Tensor:
    """Return the first ``count`` samples, moved within eps to where both paths say the robust path's second choice.

    PGD from the image itself with steps of eps / 4 on the sum of both paths' cross-entropy, float32 (N, C, H, W).
    """
    samples = sources.of_path[robust].samples
    models = [sources.of_path[path].net.path(path) for path in (clean, robust)]
    original = to_tensor(samples.images[:count])
    with attack_mode(models[0]), attack_mode(models[1]):
        parts = []
        for image in torch.split(original, 64):
            with torch.no_grad():
                target = models[1](image).topk(2).indices[:, 1]
            moved = image.clone()
            for _ in range(SILENT_STEPS):
                moved.requires_grad_(True)
                loss = sum(functional.cross_entropy(model(moved), target, reduction="sum") for model in models)
                (slope,) = torch.autograd.grad(torch.as_tensor(loss), moved)
                step = moved.detach() - samples.eps / 4 * slope.sign()
                moved = torch.clamp(torch.clamp(step, image - samples.eps, image + samples.eps), 0, 1)
            parts.append(moved.detach())
    return torch.cat(parts)
