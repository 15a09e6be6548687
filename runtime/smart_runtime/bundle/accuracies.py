"""Whose accuracies a manifest holds: of what, in which precision, by which engine, on how many images, by whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from smart_common.errors import shortened
from smart_runtime.bundle.manifest import DENSE, GraphInfo, Manifest

MASKED_PATH = "masked path"
"""The network with its masks, as it was trained: what a graph was made from."""

GRAPH = "graph"


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """A path's accuracies on clean images and under attack, as fractions; None where the manifest has none.

    Attributes:
        path: the path's name, or the baseline's.
        of: ``masked path``, ``graph``, or which path of the dense control (smart-train --dense-control).
        precision, engine: what computed it and in what; None where nobody recorded it.
        images: on how many images.
        data: which images these were.
        attack, eps: that it was attacked with, in pixel units; of a graph the attack was made on its masked path.
        by: who measured it.
        clean_accuracy, robust_accuracy: what was found.
    """

    path: str
    of: str
    precision: str
    engine: str | None
    images: int | None
    data: str | None
    attack: str | None
    eps: float | None
    by: str
    clean_accuracy: float | None
    robust_accuracy: float | None

    @property
    def what(self) -> str:
        """What was measured, in words."""
        return f"{self.precision} {self.of}" + ("" if self.engine is None else f", {self.engine}")

    @property
    def where(self) -> str:
        """Which images it was measured on, in words."""
        count = "unknown" if self.images is None else f"{self.images:,}"
        return count if self.data is None else f"{count} of {self.data}"

    @property
    def under(self) -> str:
        """The attack in words."""
        eps = "" if self.eps is None else f", eps {self.eps:.4g}"
        made = ", made on the masked path" if self.of == GRAPH else ""
        return f"{self.attack or 'unknown'}{eps}{made}"

    def record(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def accuracies(manifest: Manifest) -> tuple[Accuracies, ...]:
    """Return what the manifest says of each path: its training's figures, then the graph's own by the export's gate.

    The first are those of the masked path, also where the graph is int8. Last come the dense control's, if it was
    trained. What a stranger's manifest has under wrong types is left out.
    """
    paths = [found for path in manifest.paths.values() for found in _of_path(path, manifest)]
    control = (manifest.baseline and manifest.baseline.metrics) or {}
    dense = [_trained(DENSE, f"dense control, {name} path", _object(control, name)) for name in manifest.paths]
    return (*paths, *(found for found in dense if found is not None))


def deployed(manifest: Manifest, path: str) -> Accuracies | None:
    """Return the accuracies that stand for the graph of ``path``; None without any.

    They are the graph's own, except where it computes what its masked path does (fp32): the training's, of more images.
    """
    found = [one for one in accuracies(manifest) if one.path == path]
    wanted = MASKED_PATH if manifest.precision == "fp32" else GRAPH
    return next((one for one in found if one.of == wanted), found[0] if found else None)


def _of_path(path: GraphInfo, manifest: Manifest) -> Iterator[Accuracies]:
    trained = _trained(path.name, MASKED_PATH, path.metrics or {})
    if trained is not None:
        yield trained
    clean, robust = (_object(path.gate, key) for key in ("clean_accuracy", "robust_accuracy"))
    if clean or robust:
        judged = manifest.gate or {}
        source = _text(judged, "source")
        yield Accuracies(
            path=path.name,
            of=GRAPH,
            precision=manifest.precision,
            engine=_text(judged, "engine"),
            images=_count(clean or robust, "examples"),
            data="the checkpoint's samples" if source in {"samples", None} else f"the test split of {source}",
            attack=_text(judged, "attack"),
            eps=_fraction(judged, "eps"),
            by="smart-export",
            clean_accuracy=_fraction(clean, "after"),
            robust_accuracy=_fraction(robust, "after"),
        )


def _trained(path: str, of: str, metrics: Mapping[str, Any]) -> Accuracies | None:
    if not {"clean_accuracy", "robust_accuracy"} & metrics.keys():
        return None
    split = _text(metrics, "split")
    return Accuracies(
        path=path,
        of=of,
        precision="fp32",
        engine="torch",
        images=_count(metrics, "examples"),
        data=None if split is None else f"the {split} split",
        attack=_text(metrics, "attack"),
        eps=_fraction(metrics, "eps"),
        by="smart-train",
        clean_accuracy=_fraction(metrics, "clean_accuracy"),
        robust_accuracy=_fraction(metrics, "robust_accuracy"),
    )


def _object(record: Mapping[str, Any] | None, key: str) -> Mapping[str, Any]:
    value = (record or {}).get(key)
    return value if isinstance(value, Mapping) else {}


def _text(record: Mapping[str, Any], key: str) -> str | None:
    value = record.get(key)
    return shortened(value) if isinstance(value, str) else None


def _count(record: Mapping[str, Any], key: str) -> int | None:
    value = record.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _fraction(record: Mapping[str, Any], key: str) -> float | None:
    value = record.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    return None
