"""The page's drawings of mixes and of calibration: what of a report they show; charts.html draws them."""

from __future__ import annotations

from smart_eval.page.figures import percent
from smart_eval.page.plots import Line, Point
from smart_eval.page.subject import Model, Report, suspect, under_attack


def points(report: Report, model: Model) -> list[Point]:
    """Return the mixes of one model with the paths that they lie between, from the clean path to the robust one."""
    mixes = model["mixes"]
    shares = {name: mix["share"] for name, mix in mixes.items()}
    for first, second in (mix["paths"] for mix in mixes.values()):
        shares |= {first: 0.0, second: 1.0}
    found = []
    for path in sorted(shares, key=lambda path: shares[path]):
        row = model["paths"][path]
        value, interval = under_attack(model, path)
        words = f"{path}: {percent(row['clean_accuracy'])} clean, {percent(value)} under attack"
        found.append(
            Point(
                x=value,
                y=row["clean_accuracy"],
                x_interval=interval,
                y_interval=row["clean_interval"],
                size=None,
                label=path,
                title=words,
                colour=report.colour(path),
                hollow=suspect(model, path),
            )
        )
    return found


def reliability(report: Report, model: Model) -> list[Line]:
    """Return, of each path, how often the named class is right over its calibrated probability."""
    return [
        Line(
            name=path,
            points=[(one["confidence"], one["accuracy"]) for one in found["bins"]],
            intervals=[one["interval"] for one in found["bins"]],
            colour=report.colour(path),
        )
        for path, found in model["calibration"].items()
        if path not in model.get("mixes", {})
    ]
