"""Accuracy against robustness in one drawing."""

from __future__ import annotations

from smart_eval.page import charts
from smart_eval.page.figures import latency, percent
from smart_eval.page.html import Markup, join, name_of, section, tag
from smart_eval.page.subject import Report, under_attack
from smart_eval.page.threat_tables import attackers_differ
from smart_eval.page.trust import suspect

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def trade_off(report: Report, *, half: bool) -> Markup | None:
    """Return accuracy against robustness, with latency as a third mark where it is known."""
    if not any(model["attacks"] for model in report.models):
        return None
    several, found, timed = report.several, [], False
    for number, model in enumerate(report.models):
        speeds, _ = report.speeds(model)
        letter = _letter(number) if several else ""
        for path, row in model["paths"].items():
            speed = speeds.get(path)
            timed = timed or speed is not None
            time = "" if speed is None else latency(speed.median_ms)
            value, interval = under_attack(model, path)
            doubted = suspect(model, path)
            words = f"{report.name(model)}, {path}: {percent(row['clean_accuracy'])} clean, "
            words += f"{percent(value)} under attack{' (suspect)' if doubted else ''}"
            found.append(
                charts.Point(
                    x=value,
                    y=row["clean_accuracy"],
                    x_interval=interval,
                    y_interval=row["clean_interval"],
                    size=None if speed is None else speed.median_ms,
                    label=" ".join(filter(None, (letter, time))),
                    title=words + (f", {time} a call" if time else ""),
                    colour=report.colour(path),
                    hollow=doubted,
                )
            )
    letters = [f"{_letter(i)}: {report.name(model)}" for i, model in enumerate(report.models)] if several else []
    return section(
        "trade-off",
        "Accuracy against robustness",
        tag(
            "figure",
            charts.scatter(
                found,
                x_title="accuracy under attack, %",
                y_title="accuracy on clean images, %",
                label="; ".join(point.title for point in found),
            ),
            report.key(report.paths),
            tag(
                "figcaption",
                "Up and to the right is better. Lines are 95% intervals",
                "; the area of a mark is in proportion to the latency written beside it" if timed else None,
                "; a hollow mark is suspect" if any(point.hollow for point in found) else None,
                ". Neither axis need start at zero.",
                *(join(tag("br"), name_of(line)) for line in letters),
            ),
        ),
        attackers_differ(report),
        half=half,
    )


def _letter(number: int) -> str:
    return _LETTERS[number] if number < len(_LETTERS) else str(number + 1)
