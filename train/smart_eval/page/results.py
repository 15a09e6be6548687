"""The table of every attack."""

from __future__ import annotations

from collections.abc import Sequence

from smart_eval.page import charts
from smart_eval.page.figures import barred
from smart_eval.page.html import Markup, join, name_of, note, section, table, tag
from smart_eval.page.subject import Model, Report, tried_more, under_attack
from smart_eval.page.threat_tables import attackers_differ
from smart_eval.page.trust import flag


def results(report: Report) -> Markup:
    """Return the table with intervals."""
    names = list(dict.fromkeys(attack["name"] for model in report.models for attack in model["attacks"]))
    worst, more = len(names) > 1, any(map(tried_more, report.models))
    counts = len({model["examples"] for model in report.models}) > 1
    columns: list[object] = ["path", *(["images"] if counts else []), "clean images"]
    columns += [*names, *(["worst of these"] if worst else []), *(["all that was tried"] if more else [])]
    rows: list[list[object]] = []
    for model in report.models:
        for path, found in model["paths"].items():
            colour = charts.colour(report.colour(path))
            figures: list[tuple[float, Sequence[float]] | None] = [(found["clean_accuracy"], found["clean_interval"])]
            for name in names:
                one = found["attacks"].get(name)
                figures.append(None if one is None else (one["accuracy"], one["interval"]))
            figures += [(found["robust_accuracy"], found["robust_interval"])] if worst else []
            figures += [under_attack(model, path) if tried_more(model) else None] if more else []
            cells = [str(model["examples"])] if counts else []
            who = join(
                report.path(path), flag(model, path), tag("small", *_which(report, model)) if report.several else None
            )
            rows.append([who, *cells, *("" if one is None else barred(*one, colour=colour) for one in figures)])
    counted = " An image counts under an attack if it is classified rightly before and after it"
    counted += "; under the worst of these, if it withstands every one." if worst else "."
    return section(
        "results",
        "Every attack" if names else "Accuracy",
        table(label="accuracy of each path under each attack", columns=columns, rows=rows),
        note("Accuracy with its 95% interval (Wilson 1927).", counted if names else None),
        attackers_differ(report),
    )


def _which(report: Report, model: Model) -> list[object]:
    how = f" ({model['precision']}, {model['engine']})" if model["kind"] == "bundle" else ""
    return [name_of(report.name(model)), how]
