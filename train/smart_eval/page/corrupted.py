"""Accuracy on images that nobody attacked but that came out worse."""

from __future__ import annotations

from smart_eval.page import charts
from smart_eval.page.figures import accuracy
from smart_eval.page.html import Markup, join, name_of, note, section, table, tag
from smart_eval.page.subject import Model, Report


def corruptions(report: Report) -> Markup | None:
    """Return a drawing for each kind of corruption and a table of all."""
    found = [model for model in report.models if model.get("corruptions")]
    if not found:
        return None
    return section("corruptions", "Without an attacker: corruptions", *report.each(found, _model, folded=True))


def _model(report: Report, model: Model) -> Markup:
    rows = model["corruptions"]
    kinds = list(dict.fromkeys(row["name"] for row in rows))
    paths = list(model["paths"])
    cells: list[list[object]] = [
        [
            row["name"],
            str(row["severity"]),
            f"{row['parameter']:g}",
            *(accuracy(row["paths"][path]["accuracy"], row["paths"][path]["interval"]) for path in paths),
        ]
        for row in rows
    ]
    meanings = dict.fromkeys(f"{row['name']}: {row['parameter_meaning']}" for row in rows)
    return join(
        tag("div", *(_kind(report, model, kind) for kind in kinds), class_="grid-of-two"),
        report.key(paths),
        note(
            f"{', '.join(sorted({row['set'] for row in rows}))}; severity 0 is the clean image. Bands: 95% intervals."
        ),
        tag(
            "details",
            tag("summary", "All figures with 95% intervals"),
            table(
                label="accuracy under each corruption",
                columns=["corruption", "severity", "parameter", *map(name_of, paths)],
                rows=cells,
            ),
            note(f"The parameters: {'; '.join(meanings)}."),
        ),
    )


def _kind(report: Report, model: Model, kind: str) -> Markup:
    rows = [row for row in model["corruptions"] if row["name"] == kind]
    lines = []
    for path, found in model["paths"].items():
        figures = [row["paths"][path] for row in rows]
        lines.append(
            charts.Line(
                name=path,
                points=[
                    (0, found["clean_accuracy"]),
                    *((row["severity"], one["accuracy"]) for row, one in zip(rows, figures, strict=True)),
                ],
                intervals=[found["clean_interval"], *(one["interval"] for one in figures)],
                colour=report.colour(path),
            )
        )
    return tag(
        "figure",
        report.under(kind.replace("-", " ")),
        charts.lines(
            lines,
            x_title="severity",
            y_title="accuracy, %",
            label=f"accuracy of each path under {kind} by severity; the table below has the figures",
        ),
    )
