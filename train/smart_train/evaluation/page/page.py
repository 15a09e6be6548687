"""The whole page."""

from __future__ import annotations

from importlib import resources

from smart_train.evaluation.page.answers import gains, results, trade_off
from smart_train.evaluation.page.corrupted import corruptions
from smart_train.evaluation.page.details import classes, made_by, pictures, radius, threat_models
from smart_train.evaluation.page.device import exported, on_the_device, replayed
from smart_train.evaluation.page.html import Markup, join, name_of, tag
from smart_train.evaluation.page.subject import Report
from smart_train.evaluation.page.threats import transfer
from smart_train.evaluation.page.trust import over_eps, verdict

# Nothing is fetched and nothing runs, even if an escape were forgotten: styles and pictures of the page itself only.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def render(report: Report) -> str:
    """Return the page as HTML; equal reports give equal pages, and what the document lacks is left out."""
    alone = len(report.models) == 1 and bool(report.models[0]["attacks"])  # two drawings of one height, side by side
    suspect = any(check["passed"] is False for model in report.models for check in model.get("checks", ()))
    trusted = verdict(report)
    curve = over_eps(report, half=alone)
    sections = [
        trusted if suspect else None,
        gains(report),
        None if suspect else trusted,
        trade_off(report, half=alone),
        curve if curve is not None else classes(report, half=alone),
        results(report),
        transfer(report),
        replayed(report),
        corruptions(report),
        classes(report, half=False) if curve is not None else None,
        on_the_device(report),
        exported(report),
        pictures(report),
        threat_models(report),
        made_by(report),
    ]
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"Robustness of {', '.join(report.name(model) for model in report.models)}"),
        tag("style", Markup(style)),
    )
    body = tag("body", tag("header", tag("div", *_title(report))), tag("main", *sections))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _title(report: Report) -> list[Markup | None]:
    first = report.models[0]
    attacks = list(dict.fromkeys(attack["name"] for model in report.models for attack in model["attacks"]))
    counts = sorted({model["examples"] for model in report.models})
    names = [name_of(report.name(model)) for model in report.models]
    facts = [
        f"{' and '.join(map(str, counts))} test images",
        f"{', '.join(attacks) or 'no attack'}",
        f"L-infinity, eps {', '.join(sorted({radius(model['eps']) for model in report.models}))}",
        f"seed {first['seed']}",
    ]
    separated = [part for name in names for part in (name, ", ")][:-1]
    return [
        tag("p", "smart-eval", class_="kicker"),
        tag("h1", "Accuracy and robustness of ", join(*separated)),
        tag("p", " · ".join(facts), class_="facts-line"),
    ]
