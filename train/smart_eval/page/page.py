"""The whole page."""

from __future__ import annotations

from importlib import resources

from smart_eval.page.classes import classes
from smart_eval.page.corrupted import corruptions
from smart_eval.page.device import exported, on_the_device
from smart_eval.page.figures import radius
from smart_eval.page.gains import gains
from smart_eval.page.gallery import gallery
from smart_eval.page.html import Markup, name_of, tag
from smart_eval.page.origin import made_by
from smart_eval.page.replay import replayed
from smart_eval.page.results import results
from smart_eval.page.subject import Report
from smart_eval.page.threat_tables import threat_models, transfer
from smart_eval.page.tradeoff import trade_off
from smart_eval.page.trust import over_eps, suspect, verdict

# Nothing is fetched and nothing runs, even if an escape were forgotten: styles and pictures of the page itself only.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_MOST_NAMES = 3  # in the heading


def render(report: Report) -> str:
    """Return the page as HTML; equal reports give equal pages, and what the models lack is left out."""
    alone = not report.several and bool(report.models[0]["attacks"])  # two drawings of one height, side by side
    suspicious = any(suspect(model, path) for model in report.models for path in model["paths"])
    checked, curve = verdict(report), over_eps(report, half=alone)
    sections = [
        *([checked, gains(report)] if suspicious else [gains(report), checked]),
        trade_off(report, half=alone),
        curve if curve is not None else classes(report, half=alone),
        results(report),
        transfer(report),
        replayed(report),
        corruptions(report),
        classes(report, half=False) if curve is not None else None,
        on_the_device(report),
        exported(report),
        gallery(report),
        threat_models(report),
        made_by(report),
    ]
    words, names = _what(report)
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{words}{', '.join(names)}"),
        tag("style", Markup(style)),
    )
    body = tag("body", tag("header", tag("div", *_title(report))), tag("main", *sections))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _what(report: Report) -> tuple[str, list[str]]:
    """Return what the page is about: words, and the models' names, or their number where they are too many."""
    attacked = any(model["attacks"] for model in report.models)
    many = len(report.models) > _MOST_NAMES
    names = [f"{len(report.models)} models"] if many else [report.name(model) for model in report.models]
    return "Accuracy and robustness of " if attacked else "Accuracy of ", names


def _title(report: Report) -> list[Markup]:
    words, names = _what(report)
    attacks = list(dict.fromkeys(attack["name"] for model in report.models for attack in model["attacks"]))
    counts = sorted({model["examples"] for model in report.models})
    radii = sorted({model["eps"] for model in report.models if model["attacks"]})
    facts = [
        f"{' and '.join(map(str, counts))} test images",
        *([", ".join(attacks), f"L-infinity, eps {', '.join(map(radius, radii))}"] if attacks else ["no attack"]),
        f"seed {report.models[0]['seed']}",
    ]
    return [
        tag("p", "smart-eval", class_="kicker"),
        tag("h1", words, *[part for name in names for part in (", ", name_of(name))][1:]),
        tag("p", " · ".join(facts), class_="facts-line"),
    ]
