"""What each path gives: the page's first answer, in a sentence and in cards."""

from __future__ import annotations

from collections.abc import Mapping

from smart_eval.page.charts import colour
from smart_eval.page.figures import latency, percent, points, size, span
from smart_eval.page.html import Markup, join, name_of, section, tag
from smart_eval.page.included import Speed
from smart_eval.page.subject import Model, Report, tried_more, under_attack
from smart_eval.page.trust import flag, suspect


def gains(report: Report) -> Markup:
    """Return for each model a card a path, and what choosing one over the other gains and costs."""
    says = (lambda model: _speeds_of(report, model), _under_attack_means, _unchecked)
    notes = [line for sentence in says for line in report.told(sentence)]
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
        more = [f"95%: {span(interval)}"]
        if tried_more(model):
            own = f"{percent(found['robust_accuracy'])} ({span(found['robust_interval'])})"
            more.append(f"attacks on this path alone: {own}")
        figures.append(("under attack", join(percent(value), flag(model, path)), more))
    if speed is not None:
        faster = "" if speed.speedup is None else f"{speed.speedup:.2f}x the speed of {speed.against}"
        macs = "" if speed.mac_ratio is None else f"{speed.against}'s MACs ÷ {speed.mac_ratio:.2f}"
        figures += [("a call", latency(speed.median_ms), [faster]), ("graph and weights", size(speed.bytes), [macs])]
    rows = (
        tag("div", tag("dt", what), tag("dd", tag("span", value, class_="big"), *(tag("small", line) for line in more)))
        for what, value, more in figures
    )
    return tag("div", report.under(report.path(path)), tag("dl", *rows), class_=f"card {colour(report.colour(path))}")


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


def _speeds_of(report: Report, model: Model) -> str | None:
    speeds, assumed = report.speeds(model)
    precisions = sorted({speed.precision or "unknown" for path, speed in speeds.items() if path in model["paths"]})
    if not precisions or model["kind"] == "bundle":
        return None
    sentence = f"Latencies and sizes are those of graphs made of the checkpoint ({', '.join(precisions)})."
    if not assumed:
        return sentence
    return (
        f"{sentence} --include names one bundle and this is the one model, so they were taken for each other; a result "
        "of smart-export --json beside it says for certain."
    )
