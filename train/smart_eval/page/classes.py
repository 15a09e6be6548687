"""The figures of each class."""

from __future__ import annotations

from smart_eval.page import charts
from smart_eval.page.figures import accuracy
from smart_eval.page.html import Markup, join, name_of, section, table, tag
from smart_eval.page.subject import Model, Report

_MOST = 20  # drawn; the table has all


def classes(report: Report, *, half: bool) -> Markup | None:
    """Return for each model a drawing of the classes hit most and a table of all."""
    found = [model for model in report.models if model["classes"]]
    if not found:
        return None
    return section("classes", "Class by class", *report.each(found, _classes, folded=True), half=half)


def _classes(report: Report, model: Model) -> Markup:
    rows, paths = model["classes"], model["paths"]
    kinds = {"clean": "clean images", **({"robust": "worst of the attacks"} if model["attacks"] else {})}
    hit_most = sorted(range(len(rows)), key=lambda i: (min(p["robust_accuracy"] for p in rows[i]["paths"].values()), i))
    drawn = sorted(hit_most[:_MOST])
    pairs = [
        (
            rows[i]["name"],
            [
                charts.Pair(
                    clean=found["clean_accuracy"],
                    worst=found["robust_accuracy"] if model["attacks"] else None,
                    colour=report.colour(path),
                )
                for path, found in rows[i]["paths"].items()
            ],
        )
        for i in drawn
    ]
    cells: list[list[object]] = [
        [
            name_of(row["name"]),
            str(row["examples"]),
            *(
                accuracy(row["paths"][path][f"{kind}_accuracy"], row["paths"][path][f"{kind}_interval"])
                for path in paths
                for kind in kinds
            ),
        ]
        for row in rows
    ]
    under = "Full marks: clean images. Hollow marks: the worst of the attacks listed." if model["attacks"] else ""
    few = f" Of {len(rows)} classes, the {len(drawn)} hit most." if len(drawn) < len(rows) else ""
    return join(
        tag(
            "figure",
            charts.pairs(
                pairs,
                x_title="accuracy, %",
                label=f"accuracy of each class on {' and under the '.join(kinds.values())}; the table below has all",
            ),
            report.key(paths),
            tag("figcaption", f"{under}{few}") if under or few else None,
        ),
        tag(
            "details",
            tag("summary", "All figures with 95% intervals"),
            table(
                label="accuracy of each class",
                columns=[
                    "class",
                    "images",
                    *(join(report.path(path), f": {kind}") for path in paths for kind in kinds.values()),
                ],
                rows=cells,
            ),
        ),
    )
