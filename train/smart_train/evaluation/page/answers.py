"""The page's first sections: what each path gives, in cards, in a drawing and in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from smart_train.evaluation.page import charts
from smart_train.evaluation.page.figures import barred, latency, percent, points, size, span
from smart_train.evaluation.page.html import Markup, join, name_of, note, section, table, tag
from smart_train.evaluation.page.included import Speed
from smart_train.evaluation.page.subject import Model, Report, suspect, tried_more, under_attack

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def gains(report: Report) -> Markup:
    """Return for each model a card a path, and what choosing one over the other gains and costs."""
    notes = [*report.told(_speeds_of(report)), *report.told(_under_attack_means), *report.told(_unchecked)]
    return section("answer", "What each path gives", *report.each(report.models, _model), *notes)


def _model(report: Report, model: Model) -> Markup:
    speeds, _ = report.speeds(model)
    doubt = tag("a", "Checks failed: accuracies under attack may be too high.", href="#checks", class_="wrong")
    doubted = any(suspect(model, path) for path in model["paths"])
    words = [*_sentence(model, speeds), *([" ", doubt] if doubted else [])]
    return join(
        tag("p", *words, class_="lead") if words else None,
        tag("div", *(_card(report, model, path, speeds.get(path)) for path in model["paths"]), class_="cards"),
    )


def _suspect() -> Markup:
    return join(" ", tag("a", "suspect", href="#checks", class_="flag wrong"))


def _sentence(model: Model, speeds: Mapping[str, Speed]) -> list[object]:
    """Return what the most robust path gains and costs against the most accurate one."""
    paths = model["paths"]
    if len(paths) < 2 or not model["attacks"]:
        return []
    clean = {path: found["clean_accuracy"] for path, found in paths.items()}
    attacked = {path: under_attack(model, path)[0] for path in paths}
    accurate, robust = max(clean, key=lambda path: clean[path]), max(attacked, key=lambda path: attacked[path])
    if accurate == robust:
        return [name_of(robust), " is at least as accurate as any other path, both on clean images and under attack."]
    time = ""
    if accurate in speeds and robust in speeds:
        ratio = speeds[robust].median_ms / speeds[accurate].median_ms
        time = f", and takes {ratio:.2f} times as long" if abs(ratio - 1) >= 0.1 else ", in about the same time"
    gained, lost = attacked[robust] - attacked[accurate], clean[accurate] - clean[robust]
    return [
        *("Choosing ", name_of(robust), " over ", name_of(accurate)),
        *(" gains ", tag("strong", points(gained)), " of accuracy under attack, costs "),
        *(tag("strong", points(lost)), f" on clean images{time}."),
    ]


def _card(report: Report, model: Model, path: str, speed: Speed | None) -> Markup:
    found = model["paths"][path]
    figures: list[tuple[str, object, list[str]]] = [
        ("on clean images", percent(found["clean_accuracy"]), [f"95%: {span(found['clean_interval'])}"]),
    ]
    if model["attacks"]:
        value, interval = under_attack(model, path)
        doubt = _suspect() if suspect(model, path) else None
        more = [f"95%: {span(interval)}"]
        if value != found["robust_accuracy"]:
            own = f"{percent(found['robust_accuracy'])} ({span(found['robust_interval'])})"
            more.append(f"attacks on this path alone: {own}")
        figures.append(("under attack", join(percent(value), doubt), more))
    if speed is not None:
        faster = "" if speed.speedup is None else f"{speed.speedup:.2f}x the speed of {speed.against}"
        macs = "" if speed.mac_ratio is None else f"{speed.against}'s MACs ÷ {speed.mac_ratio:.2f}"
        figures += [("a call", latency(speed.median_ms), [faster]), ("graph and weights", size(speed.bytes), [macs])]
    rows = (
        tag("div", tag("dt", what), tag("dd", tag("span", value, class_="big"), *(tag("small", line) for line in more)))
        for what, value, more in figures
    )
    return tag(
        "div", report.under(report.path(path)), tag("dl", *rows), class_=f"card {charts.colour(report.colour(path))}"
    )


def _under_attack_means(model: Model) -> str | None:
    if not model["attacks"]:
        return None
    if tried_more(model):
        return (
            "Under attack: an image counts if it withstands all that was tried on the path, which is the attacks "
            "listed, and images made on each of the paths and on their mean loss."
        )
    untried = " Images made on the other paths were not tried." if len(model["paths"]) > 1 else ""
    return f"Under attack: an image counts if it withstands every attack listed.{untried}"


def _unchecked(model: Model) -> str | None:
    if not model["attacks"] or model.get("checks"):
        return None
    return "Nothing checked whether the attacks failed for want of gradients; if they did, the accuracies are too high."


def _speeds_of(report: Report) -> Callable[[Model], str | None]:
    def told(model: Model) -> str | None:
        speeds, assumed = report.speeds(model)
        precisions = sorted({speed.precision or "unknown" for path, speed in speeds.items() if path in model["paths"]})
        if not precisions or model["kind"] == "bundle":
            return None
        sentence = f"Latencies and sizes are those of graphs made of the checkpoint ({', '.join(precisions)})."
        if assumed:
            sentence += (
                " --include names one bundle and this is the one model, so they were taken for each other; a result "
                "of smart-export --json beside it says for certain."
            )
        return sentence

    return told


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
        _threats_differ(report),
        half=half,
    )


def _threats_differ(report: Report) -> Markup | None:
    """Return a warning where one model's attacker may do what another's may not."""
    attackers = {
        (model["threat_model"], tried_more(model) or len(model["paths"]) == 1)
        for model in report.models
        if model["attacks"]
    }
    if len(attackers) < 2:
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
    worst, more = len(names) > 1, any(map(tried_more, report.models))
    counts = len({model["examples"] for model in report.models}) > 1
    columns: list[object] = ["path", *(["model"] if report.several else []), *(["images"] if counts else []), "clean"]
    columns += [*names, *(["worst of these"] if worst else []), *(["all that was tried"] if more else [])]
    rows: list[list[object]] = []
    for model in report.models:
        for path, found in model["paths"].items():
            colour = charts.colour(report.colour(path))
            figures: list[tuple[float, Sequence[float]] | None] = [(found["clean_accuracy"], found["clean_interval"])]
            for name in names:
                one = found["attacks"].get(name)
                figures.append(None if one is None else (one["accuracy"], one["interval"]))
            figures += [(found["robust_accuracy"], found["robust_interval"])] if worst else []
            figures += [under_attack(model, path) if tried_more(model) else None] if more else []
            doubt = _suspect() if suspect(model, path) else None
            cells: list[object] = [join(report.path(path), doubt)]
            precision = f" ({model['precision']}, {model['engine']})" if model["kind"] == "bundle" else None
            cells += [join(name_of(report.name(model)), precision)] if report.several else []
            cells += [str(model["examples"])] if counts else []
            rows.append([*cells, *("" if one is None else barred(*one, colour=colour) for one in figures)])
    counted = " An image counts under an attack if it is classified rightly before and after it"
    counted += "; under the worst of these, if it withstands every one." if worst else "."
    return section(
        "results",
        "Every attack" if names else "Accuracy",
        table(
            label="accuracy of each path under each attack",
            columns=columns,
            rows=rows,
            text_columns=1 + report.several,
        ),
        note("Accuracy with its 95% interval (Wilson 1927).", counted if names else None),
        _threats_differ(report),
    )
