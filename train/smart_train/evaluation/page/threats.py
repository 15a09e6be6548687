"""What attackers achieve who do not aim at the path that runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smart_train.evaluation.page.charts import colour
from smart_train.evaluation.page.details import radius
from smart_train.evaluation.page.figures import accuracy
from smart_train.evaluation.page.html import Markup, join, name_of, note, section, table, tag
from smart_train.evaluation.page.subject import Report

_KINDS = {
    "transfer": "Made on a path",
    "unknown_path": "On the mean loss",
    "worst": "Worst of all",
    "chosen_path": "The attacker's choice",
}


def transfer(report: Report) -> Markup | None:
    """Return which images made on which path fool which other one."""
    found = [model for model in report.models if model.get("threats")]
    if not found:
        return None
    return section("transfer", "Attacks on one path, tried on the other", *(_model(report, model) for model in found))


def _model(report: Report, model: Mapping[str, Any]) -> Markup:
    threats = model["threats"]
    made, mean, worst, chosen = (threats.get(kind, {}) for kind in _KINDS)
    paths = list(model["paths"])
    columns: list[object] = ["path that runs", *(join("made on ", name_of(path)) for path in paths)]
    columns += ["on the mean loss"] if mean else []
    columns += ["worst of all"] if worst else []
    rows: list[list[object]] = []
    for path in paths:
        own = colour(report.colour(path))
        cells: list[object] = [report.path(path)]
        cells += [_cell(made.get("paths", {}).get(path, {}).get(source), own) for source in paths]
        cells += [_cell(mean["paths"].get(path), own)] if mean else []
        cells += [_cell(worst["paths"].get(path), own)] if worst else []
        rows.append(cells)
    blank: list[object] = [""] * len(paths)
    if mean.get("expected"):
        end = [_cell(mean.get("expected_worst"), "")] if worst else []
        rows.append(["one at random", *blank, _cell(mean["expected"], ""), *end])
    if chosen and worst:
        rows.append(["the attacker's choice", *blank, *([""] if mean else []), _cell(chosen, "")])
    sentences = [(kind, threats[key]["threat_model"]) for key, kind in _KINDS.items() if key in threats]
    attack = threats.get("attack", {})
    return join(
        tag("h3", name_of(report.name(model))) if len(report.models) > 1 else None,
        table(label="accuracy of each path on images made on each", columns=columns, rows=rows),
        tag("dl", *(join(tag("dt", kind), tag("dd", sentence)) for kind, sentence in sentences), class_="facts"),
        note(f"Images by {attack['name']} within eps {radius(attack['eps'])}; accuracy with 95% intervals.")
        if attack
        else None,
    )


def _cell(figure: Mapping[str, Any] | None, own: str) -> object:
    return "" if figure is None else accuracy(figure["accuracy"], figure.get("interval"), colour=own)
