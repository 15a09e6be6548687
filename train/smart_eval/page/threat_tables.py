"""What attackers achieve who do not aim at the path that runs, and who every attacker is, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smart_eval.page.charts import colour
from smart_eval.page.figures import barred, radius
from smart_eval.page.html import Markup, join, name_of, note, section, table, tag
from smart_eval.page.subject import Model, Report, tried_more

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
    sentences = dict.fromkeys(
        (kind, model["threats"][key]["threat_model"])
        for key, kind in _KINDS.items()
        for model in found
        if key in model["threats"]
    )
    return section(
        "transfer",
        "Attacks on one path, tried on the other",
        *report.each(found, _matrix),
        tag("dl", *(join(tag("dt", kind), tag("dd", sentence)) for kind, sentence in sentences), class_="facts"),
        *report.told(_made_by),
    )


def _made_by(model: Model) -> str | None:
    attack = model.get("threats", {}).get("attack")
    if attack is None:
        return None
    return f"Images by {attack['name']} within eps {radius(attack['eps'])}; accuracy with 95% intervals."


def _matrix(report: Report, model: Model) -> Markup:
    made, mean, worst, chosen = (model["threats"].get(kind, {}) for kind in _KINDS)
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
        end = [_cell(mean.get("expected_worst"))] if worst else []
        rows.append(["one at random", *blank, _cell(mean["expected"]), *end])
    if chosen and worst:
        rows.append(["the attacker's choice", *blank, *([""] if mean else []), _cell(chosen)])
    return table(label="accuracy of each path on images made on each", columns=columns, rows=rows)


def _cell(figure: Mapping[str, Any] | None, own: str | None = None) -> object:
    return "" if figure is None else barred(figure["accuracy"], figure["interval"], colour=own)


def threat_models(report: Report) -> Markup | None:
    """Return in words what the attacker of each figure may do, and what each attack does."""
    attacked = [model for model in report.models if model["attacks"]]
    if not attacked:
        return None
    attacks = dict.fromkeys(
        (one["name"], f"{one['description']}; within eps {radius(one['eps'])} of each pixel")
        for model in attacked
        for one in model["attacks"]
    )
    return section(
        "threats",
        "Who the attacker is",
        *report.told(lambda model: model["threat_model"] if model["attacks"] else None),
        tag("dl", *(join(tag("dt", name), tag("dd", words)) for name, words in attacks), class_="facts"),
    )


def attackers_differ(report: Report) -> Markup | None:
    """Return a warning where one model's attacker may do what another's may not."""
    attackers = {
        (model["threat_model"], tried_more(model) or len(model["paths"]) == 1)
        for model in report.models
        if model["attacks"]
    }
    if len(attackers) < 2:
        return None
    return note(
        "Not all models face the same attacker: compare figures under attack only within one of ",
        tag("a", "the threat models", href="#threats"),
        ".",
    )
