"""What the page's drawings show of a report."""

from __future__ import annotations

from smart_eval.page.figures import latency, percent
from smart_eval.page.plots import Line, Pair, Point
from smart_eval.page.subject import Model, Report, suspect, under_attack

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MOST_CLASSES = 20  # drawn; the table has all


def letter(number: int) -> str:
    """Return what stands for the model of that number in a drawing of several."""
    return _LETTERS[number] if number < len(_LETTERS) else str(number + 1)


def trade_off(report: Report) -> list[Point]:
    """Return accuracy and robustness of each path of each model, sized by latency where it is known."""
    found = []
    for number, model in enumerate(report.models):
        speeds, _ = report.speeds(model)
        for path, row in model["paths"].items():
            speed = speeds.get(path)
            time = "" if speed is None else latency(speed.median_ms)
            value, interval = under_attack(model, path)
            doubted = suspect(model, path)
            words = f"{report.name(model)}, {path}: {percent(row['clean_accuracy'])} clean, "
            words += f"{percent(value)} under attack{' (suspect)' if doubted else ''}"
            found.append(
                Point(
                    x=value,
                    y=row["clean_accuracy"],
                    x_interval=interval,
                    y_interval=row["clean_interval"],
                    size=None if speed is None else speed.median_ms,
                    label=" ".join(filter(None, (letter(number) if report.several else "", time))),
                    title=words + (f", {time} a call" if time else ""),
                    colour=report.colour(path),
                    hollow=doubted,
                )
            )
    return found


def over_eps(report: Report, model: Model) -> list[Line]:
    """Return the accuracy of each path over the attack's radius."""
    curve = model["eps_curve"]
    return [
        Line(
            name=path,
            points=list(zip(curve["eps"], found["accuracy"], strict=True)),
            intervals=found["interval"],
            colour=report.colour(path),
        )
        for path, found in curve["paths"].items()
    ]


def corrupted(report: Report, model: Model, kind: str) -> list[Line]:
    """Return the accuracy of each path over the severity of one kind of corruption, of which 0 is none."""
    rows = [row for row in model["corruptions"] if row["name"] == kind]
    severities = [0, *(row["severity"] for row in rows)]
    lines = []
    for path, found in model["paths"].items():
        figures = [row["paths"][path] for row in rows]
        accuracies = [found["clean_accuracy"], *(one["accuracy"] for one in figures)]
        lines.append(
            Line(
                name=path,
                points=list(zip(severities, accuracies, strict=True)),
                intervals=[found["clean_interval"], *(one["interval"] for one in figures)],
                colour=report.colour(path),
            )
        )
    return lines


def meanings(model: Model) -> list[str]:
    """Return what the parameter of each kind of corruption means."""
    return list(dict.fromkeys(f"{row['name']}: {row['parameter_meaning']}" for row in model["corruptions"]))


def classes(report: Report, model: Model) -> list[tuple[str, list[Pair]]]:
    """Return each class with the accuracies of each path on it; of many classes those that are hit most."""
    rows = model["classes"]
    hit_most = sorted(range(len(rows)), key=lambda i: (min(p["robust_accuracy"] for p in rows[i]["paths"].values()), i))
    return [
        (
            rows[i]["name"],
            [
                Pair(
                    clean=found["clean_accuracy"],
                    worst=found["robust_accuracy"] if model["attacks"] else None,
                    colour=report.colour(path),
                )
                for path, found in rows[i]["paths"].items()
            ],
        )
        for i in sorted(hit_most[:_MOST_CLASSES])
    ]
