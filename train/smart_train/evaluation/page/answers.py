"""The page's first sections: what each path gives, in cards, in a drawing and in a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smart_train.evaluation.page import charts
from smart_train.evaluation.page.figures import accuracy, latency, percent, points, size, span
from smart_train.evaluation.page.html import Markup, join, name_of, note, section, table, tag
from smart_train.evaluation.page.included import Speed
from smart_train.evaluation.page.subject import Report

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def gains(report: Report) -> Markup:
    """Return for each model a card a path, and what choosing one over the other gains and costs."""
    return section("answer", "What each path gives", *(_model(report, model) for model in report.models))


def _model(report: Report, model: Mapping[str, Any]) -> Markup:
    speeds, assumed = report.speeds(model)
    several = len(report.models) > 1
    return tag(
        "div",
        tag("h3", name_of(report.name(model))) if several else None,
        _sentence(model, speeds),
        tag("div", *(_card(report, model, path, speeds.get(path)) for path in model["paths"]), class_="cards"),
        note(
            "Latencies: --include names one bundle and this is the one model, so they were taken for each other; a "
            "result of smart-export --json beside it says for certain."
        )
        if assumed
        else None,
        class_="model",
    )


def _sentence(model: Mapping[str, Any], speeds: Mapping[str, Speed]) -> Markup | None:
    paths = model["paths"]
    accurate = max(paths, key=lambda path: paths[path]["clean_accuracy"])
    robust = max(paths, key=lambda path: paths[path]["robust_accuracy"])
    if accurate == robust or not model["attacks"]:
        return None
    gained = paths[robust]["robust_accuracy"] - paths[accurate]["robust_accuracy"]
    lost = paths[accurate]["clean_accuracy"] - paths[robust]["clean_accuracy"]
    time = None
    if accurate in speeds and robust in speeds:
        ratio = speeds[robust].median_ms / speeds[accurate].median_ms
        time = f", and takes {ratio:.2f} times as long" if abs(ratio - 1) >= 0.1 else ", in about the same time"
    return tag(
        "p",
        "Choosing ",
        name_of(robust),
        " over ",
        name_of(accurate),
        " gains ",
        tag("strong", points(gained)),
        " of accuracy under attack, costs ",
        tag("strong", points(lost)),
        " on clean images",
        time,
        ".",
        class_="lead",
    )


def _card(report: Report, model: Mapping[str, Any], path: str, speed: Speed | None) -> Markup:
    found, colour = model["paths"][path], charts.colour(report.colour(path))
    figures = [
        ("on clean images", percent(found["clean_accuracy"]), f"95%: {span(found['clean_interval'])}"),
    ]
    if model["attacks"]:
        figures.append(
            ("under the worst attack", percent(found["robust_accuracy"]), f"95%: {span(found['robust_interval'])}")
        )
    if speed is not None:
        faster = "" if speed.speedup is None else f"{speed.speedup:.2f}x the speed of {speed.against}"
        figures.append(("a call", latency(speed.median_ms), faster))
        figures.append(("graph and weights", size(speed.bytes), _macs(speed)))
    return tag(
        "div",
        tag("h4", report.path(path)),
        tag(
            "dl",
            *(
                tag("div", tag("dt", what), tag("dd", tag("span", value, class_="big"), tag("small", more)))
                for what, value, more in figures
            ),
        ),
        class_=f"card {colour}",
    )


def _macs(speed: Speed) -> str:
    return "" if speed.mac_ratio is None else f"{speed.against}'s MACs ÷ {speed.mac_ratio:.2f}"


def trade_off(report: Report, *, half: bool) -> Markup | None:
    """Return accuracy against robustness, with latency as a third mark where it is known."""
    if not any(model["attacks"] for model in report.models):
        return None
    several, found, timed = len(report.models) > 1, [], False
    for number, model in enumerate(report.models):
        speeds, _ = report.speeds(model)
        letter = _letter(number) if several else ""
        for path, row in model["paths"].items():
            speed = speeds.get(path)
            timed = timed or speed is not None
            time = "" if speed is None else latency(speed.median_ms)
            words = f"{report.name(model)}, {path}: {percent(row['clean_accuracy'])} clean, "
            words += f"{percent(row['robust_accuracy'])} under the worst attack"
            found.append(
                charts.Point(
                    x=row["robust_accuracy"],
                    y=row["clean_accuracy"],
                    x_interval=row["robust_interval"],
                    y_interval=row["clean_interval"],
                    size=None if speed is None else speed.median_ms,
                    label=" ".join(filter(None, (letter, time))),
                    title=words + (f", {time} a call" if time else ""),
                    colour=report.colour(path),
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
                x_title="accuracy under the worst attack, %",
                y_title="accuracy on clean images, %",
                label="; ".join(point.title for point in found),
            ),
            charts.key([(name_of(path), report.colour(path)) for path in report.paths]),
            tag(
                "figcaption",
                "Up and to the right is better. Lines are 95% intervals",
                "; the area of a mark is in proportion to the latency written beside it" if timed else None,
                ". The axes do not start at zero.",
                *(join(tag("br"), name_of(line)) for line in letters),
            ),
        ),
        _threats_differ(report),
        half=half,
    )


def _threats_differ(report: Report) -> Markup | None:
    """Return a warning where one model's attacker may do what another's may not."""
    if len({model["threat_model"] for model in report.models}) < 2:
        return None
    return tag(
        "p",
        "Not all models face the same attacker: compare figures under attack only within one of ",
        tag("a", "the threat models", href="#threats"),
        ".",
        class_="note",
    )


def _letter(number: int) -> str:
    return _LETTERS[number] if number < len(_LETTERS) else str(number + 1)


def results(report: Report) -> Markup:
    """Return the table with intervals."""
    names = list(dict.fromkeys(attack["name"] for model in report.models for attack in model["attacks"]))
    several = len(report.models) > 1
    worst = len(names) > 1
    counts = len({model["examples"] for model in report.models}) > 1
    columns: list[object] = ["path", *(["model"] if several else []), *(["images"] if counts else []), "clean", *names]
    rows: list[list[object]] = []
    for model in report.models:
        for path, found in model["paths"].items():
            colour = charts.colour(report.colour(path))
            cells: list[object] = [report.path(path)]
            precision = f" ({model['precision']}, {model['engine']})" if model.get("kind") == "bundle" else None
            cells += [join(name_of(report.name(model)), precision)] if several else []
            cells += [str(model["examples"])] if counts else []
            cells.append(accuracy(found["clean_accuracy"], found["clean_interval"], colour=colour))
            for name in names:
                one = found["attacks"].get(name)
                cells.append("" if one is None else accuracy(one["accuracy"], one["interval"], colour=colour))
            if worst:
                cells.append(accuracy(found["robust_accuracy"], found["robust_interval"], colour=colour))
            rows.append(cells)
    return section(
        "results",
        "Every attack",
        table(
            label="accuracy of each path under each attack",
            columns=[*columns, *(["worst of these"] if worst else [])],
            rows=rows,
            text_columns=2 if several else 1,
        ),
        note(
            "Accuracy with its 95% interval (Wilson 1927). An image counts under an attack if it is classified rightly "
            "before and after it",
            "; under the worst of these, if it withstands every one" if worst else None,
            ".",
        ),
        _threats_differ(report),
    )
