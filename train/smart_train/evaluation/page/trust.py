"""How far the figures can be trusted: the checks for hidden gradients, and accuracy over the attack's radius."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smart_train.evaluation.page import charts
from smart_train.evaluation.page.figures import percent, span
from smart_train.evaluation.page.html import Markup, join, name_of, section, side_by_side, table, tag
from smart_train.evaluation.page.subject import Report

_SIGNS = {True: ("✓", "good", "passed"), False: ("✗", "bad", "failed"), None: ("-", "plain", "not judged")}


def verdict(report: Report) -> Markup | None:
    """Return whether the figures are suspect, and each check in a sentence."""
    found = [model for model in report.models if model.get("checks")]
    if not found:
        return None
    failed = [check for model in found for check in model["checks"] if check["passed"] is False]
    title = "These figures are suspect" if failed else "Checks for hidden gradients"
    return section(
        "checks", title, *(_checks(report, model) for model in found), style="verdict bad" if failed else "verdict good"
    )


def _checks(report: Report, model: Mapping[str, Any]) -> Markup:
    checks = model["checks"]
    failed = [check for check in checks if check["passed"] is False]
    judged = [check for check in checks if check["passed"] is not None]
    says = f"{len(judged) - len(failed)} of {len(judged)} passed."
    if failed:
        says += (
            " Accuracies under attack may be too high: the attacks may have failed where the network did not withstand."
        )
    return join(
        tag("h3", name_of(report.name(model))) if len(report.models) > 1 else None,
        tag("p", says, class_="lead" if failed else None),
        _list(report, failed) if failed else None,
        tag("details", tag("summary", "Every check"), _list(report, [one for one in checks if one not in failed])),
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
    return section("over-eps", "Accuracy over eps", side_by_side([_curve(report, model) for model in found]), half=half)


def _curve(report: Report, model: Mapping[str, Any]) -> Markup:
    curve = model["eps_curve"]
    paths = curve["paths"]
    drawn = [
        charts.Line(
            name=path,
            points=list(zip(curve["eps"], found["accuracy"], strict=True)),
            intervals=found.get("interval"),
            colour=report.colour(path),
        )
        for path, found in paths.items()
    ]
    rows: list[list[object]] = [
        [
            f"{eps:.4g}",
            *(
                join(
                    tag("span", percent(found["accuracy"][i]), class_="figure"),
                    tag("span", span(found["interval"][i]), class_="interval"),
                )
                for found in paths.values()
            ),
        ]
        for i, eps in enumerate(curve["eps"])
    ]
    return join(
        tag("h3", name_of(report.name(model))) if len(report.models) > 1 else None,
        tag(
            "figure",
            charts.lines(
                drawn,
                x_title="eps",
                y_title="accuracy, %",
                label="accuracy of each path over eps; the table below has the figures",
                mark=model["eps"],
            ),
            charts.key([(name_of(path), report.colour(path)) for path in paths]),
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
