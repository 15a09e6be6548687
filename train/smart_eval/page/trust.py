"""How far the figures can be trusted: the checks for hidden gradients, and accuracy over the attack's radius."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smart_eval.page import charts
from smart_eval.page.figures import accuracy
from smart_eval.page.html import Markup, join, name_of, section, table, tag
from smart_eval.page.subject import Model, Report

_SIGNS = {True: ("✓", "good", "passed"), False: ("✗", "bad", "failed"), None: ("-", "plain", "not judged")}


def suspect(model: Model, path: str) -> bool:
    """Return whether a check of this path failed, so that its figures under attack may be too high."""
    return any(check["passed"] is False and check["path"] == path for check in model.get("checks", ()))


def flag(model: Model, path: str) -> Markup | None:
    """Return what stands beside a figure of a path that is suspect; it leads to the reasons."""
    return join(" ", tag("a", "suspect", href="#checks", class_="flag wrong")) if suspect(model, path) else None


def verdict(report: Report) -> Markup | None:
    """Return whether the figures are suspect, and each check in a sentence."""
    found = [model for model in report.models if model.get("checks")]
    if not found:
        return None
    failed = [check for model in found for check in model["checks"] if check["passed"] is False]
    title = "These figures are suspect" if failed else "Checks for hidden gradients"
    style = "verdict bad" if failed else "verdict good"
    return section("checks", title, *report.each(found, _checks), style=style)


def _checks(report: Report, model: Model) -> Markup:
    checks = model["checks"]
    failed = [check for check in checks if check["passed"] is False]
    judged = [check for check in checks if check["passed"] is not None]
    says = f"{len(judged) - len(failed)} of {len(judged)} passed."
    if len(judged) < len(checks):
        says += f" {len(checks) - len(judged)} could not be judged."
    if failed:
        says += (
            " Accuracies under attack may be too high: the attacks may have failed where the network did not withstand."
        )
    return join(
        tag("p", says, class_="lead" if failed else None),
        _list(report, failed) if failed else None,
        tag(
            "details",
            tag("summary", "Every other check" if failed else "Every check"),
            _list(report, [one for one in checks if one not in failed]),
        ),
    )


def _list(report: Report, checks: list[Mapping[str, Any]]) -> Markup:
    items = []
    for check in checks:
        sign, kind, word = _SIGNS[check["passed"]]
        items.append(
            tag(
                "li",
                tag("span", sign, tag("span", f" {word}: ", class_="spoken"), class_=f"sign {kind}"),
                report.path(check["path"]),
                ", ",
                tag("b", check["name"].replace("-", " ")),
                ": ",
                check["sentence"],
            )
        )
    return tag("ul", *items, class_="checks")


def over_eps(report: Report, *, half: bool) -> Markup | None:
    """Return the accuracy of each path over the radius of the attack."""
    found = [model for model in report.models if model.get("eps_curve")]
    if not found:
        return None
    return section(
        "over-eps", "Accuracy over eps", tag("div", *report.each(found, _curve), class_="grid-of-two"), half=half
    )


def _curve(report: Report, model: Model) -> Markup:
    curve = model["eps_curve"]
    paths = curve["paths"]
    drawn = [
        charts.Line(
            name=path,
            points=list(zip(curve["eps"], found["accuracy"], strict=True)),
            intervals=found["interval"],
            colour=report.colour(path),
        )
        for path, found in paths.items()
    ]
    rows: list[list[object]] = [
        [
            f"{eps:.4g}",
            *(accuracy(found["accuracy"][i], found["interval"][i]) for found in paths.values()),
        ]
        for i, eps in enumerate(curve["eps"])
    ]
    return join(
        tag(
            "figure",
            charts.lines(
                drawn,
                x_title="eps",
                y_title="accuracy, %",
                label="accuracy of each path over eps; the table below has the figures",
                mark=model["eps"],
            ),
            report.key(paths),
            tag(
                "figcaption",
                f"Under {curve['attack']} on {curve['examples']} images; bands are 95% intervals. The dotted line is "
                "the eps of all other figures.",
            ),
        ),
        tag(
            "details",
            tag("summary", "All figures"),
            table(label="accuracy over eps", columns=["eps", *map(name_of, paths)], rows=rows),
        ),
    )
