"""What the page is made of, read once from the document that ``--json`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from smart_train.evaluation.page.charts import swatch
from smart_train.evaluation.page.html import Markup, name_of, tag
from smart_train.evaluation.page.included import Included, Speed
from smart_train.evaluation.page.pictures import Pictures


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page says.

    Attributes:
        document: as `smart_train.evaluation.report.document` makes it.
        pictures: of each model, in the document's order; None for one without.
        included: saved results of other commands.
        command: as the user typed it.
        environment: what it ran on and with, word by word.
    """

    document: Mapping[str, Any]
    pictures: Sequence[Pictures | None]
    included: Included
    command: str
    environment: Mapping[str, str]

    @property
    def models(self) -> Sequence[Mapping[str, Any]]:
        """The document's models."""
        found: Sequence[Mapping[str, Any]] = self.document["models"]
        return found

    @property
    def paths(self) -> list[str]:
        """The names of all paths, each once: a path has the same colour everywhere."""
        return list(dict.fromkeys(path for model in self.models for path in model["paths"]))

    def colour(self, path: str) -> int:
        """Return which of the chart's colours a path has."""
        return self.paths.index(path)

    def path(self, name: str) -> Markup:
        """Return a path's name behind its colour."""
        return tag("span", swatch(self.paths.index(name) if name in self.paths else None), name_of(name), class_="who")

    def name(self, model: Mapping[str, Any]) -> str:
        """Return a model's file name, or as much of its path as tells it from the others."""
        own = PurePath(model["model"])
        others = [PurePath(other["model"]) for other in self.models if other is not model]
        for parts in range(1, len(own.parts) + 1):
            short = own.parts[-parts:]
            if all(other.parts[-parts:] != short for other in others):
                return str(PurePath(*short))
        return str(own)

    def speeds(self, model: Mapping[str, Any]) -> tuple[Mapping[str, Speed], bool]:
        """Return what was measured of a model's graphs, by name, and whether that it is this model's is assumed.

        A bundle is known by its digest, a checkpoint by that of the bundle that smart-export says it made of it. One
        model and one bundle, of which nothing says otherwise, are taken for each other. Of several bundles of one
        checkpoint the fp32 one counts, since accuracies are measured in fp32.
        """
        rows = [row for bench in self.included.benches for row in bench.rows if row.digest is not None]
        exports = self.included.exports
        own = {model["digest"], *(one.bundle_digest for one in exports if one.checkpoint_digest == model["digest"])}
        found = [row for row in rows if row.digest in own]
        assumed = False
        known = {one.bundle_digest for one in exports}
        if not found and len(self.models) == 1 and len({row.digest for row in rows}) == 1:
            found = [row for row in rows if row.digest not in known and row.graph in (*model["paths"], "dense")]
            assumed = bool(found)
        best: dict[str, Speed] = {}
        for row in sorted(found, key=lambda row: row.precision not in {"fp32", None}):  # stable: the first given wins
            best.setdefault(row.graph, row)
        return best, assumed
