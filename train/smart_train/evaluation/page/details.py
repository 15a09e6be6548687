"""What lies behind the figures: classes, pictures, threat models, and how the page was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smart_train.evaluation.page import charts
from smart_train.evaluation.page.figures import percent, span
from smart_train.evaluation.page.html import Markup, join, name_of, note, section, side_by_side, table, tag
from smart_train.evaluation.page.pictures import Picture, Pictures
from smart_train.evaluation.page.png import data_uri
from smart_train.evaluation.page.subject import Report

_MOST_CLASSES = 20  # drawn; the table has all


def classes(report: Report, *, half: bool) -> Markup | None:
    """Return the figures of each class."""
    found = [model for model in report.models if model.get("classes")]
    if not found:
        return None
    return section("classes", "Class by class", side_by_side([_classes(report, model) for model in found]), half=half)


def _classes(report: Report, model: Mapping[str, Any]) -> Markup:
    rows: Sequence[Mapping[str, Any]] = model["classes"]
    shown = sorted(range(len(rows)), key=lambda i: (min(p["robust_accuracy"] for p in rows[i]["paths"].values()), i))
    drawn = sorted(shown[:_MOST_CLASSES])
    paths = list(model["paths"])
    columns: list[object] = ["class", "images"]
    columns += [join(name_of(path), ", ", kind) for path in paths for kind in ("clean", "worst attack")]
    cells: list[list[object]] = [
        [
            name_of(row["name"]),
            str(row["examples"]),
            *(
                join(
                    tag("span", percent(row["paths"][path][f"{kind}_accuracy"]), class_="figure"),
                    tag("span", span(row["paths"][path][f"{kind}_interval"]), class_="interval"),
                )
                for path in paths
                for kind in ("clean", "robust")
            ),
        ]
        for row in rows
    ]
    return join(
        tag("h3", name_of(report.name(model))) if len(report.models) > 1 else None,
        tag(
            "figure",
            charts.pairs(
                [
                    (
                        rows[i]["name"],
                        [
                            charts.Pair(
                                clean=rows[i]["paths"][path]["clean_accuracy"],
                                worst=rows[i]["paths"][path]["robust_accuracy"],
                                colour=report.colour(path),
                            )
                            for path in paths
                        ],
                    )
                    for i in drawn
                ],
                x_title="accuracy, %",
                label="accuracy of each class on clean images and under the worst attack; the table below has all",
            ),
            charts.key([(name_of(path), report.colour(path)) for path in paths]),
            tag(
                "figcaption",
                "Full marks: clean images. Hollow marks: the worst attack.",
                f" Of {len(rows)} classes, the {len(drawn)} hit most." if len(drawn) < len(rows) else None,
            ),
        ),
        tag(
            "details",
            tag("summary", "All figures with 95% intervals"),
            table(label="accuracy of each class", columns=columns, rows=cells),
        ),
    )


def pictures(report: Report) -> Markup | None:
    """Return some test images, what attacks made of them and what each path says."""
    found = [(model, shown) for model, shown in zip(report.models, report.pictures, strict=True) if shown is not None]
    if not found:
        return None
    return section("pictures", "What an attack looks like", *(_pictures(report, model, one) for model, one in found))


def _pictures(report: Report, model: Mapping[str, Any], shown: Pictures) -> Markup:
    names = shown.class_names
    if not shown.eps:
        scale = "The radius is 0, so nothing changes."
    else:
        scale = (
            f"Perturbations are scaled {0.5 / shown.eps:.3g} times and laid on grey, so that black and "
            "white are the most that a pixel may change."
        )
    return join(
        tag("h3", name_of(report.name(model))) if len(report.models) > 1 else None,
        tag("div", *(_picture(report, picture, names) for picture in shown.pictures), class_="pictures"),
        note(
            "The first test images of different classes that every path gets right, where there are such; no outcome "
            f"of an attack chose them. They were attacked again for this page, by {shown.attack} within eps "
            f"{radius(shown.eps)}, on each path in turn, and every path then looked at what came out. {scale}"
        ),
    )


def _picture(report: Report, picture: Picture, names: Sequence[str]) -> Markup:
    label = names[picture.label]
    rows = [
        tag(
            "div",
            tag("figure", _image(picture.pixels, f"a test image of class {label}"), tag("figcaption", "original")),
            tag(
                "p",
                "It is ",
                tag("strong", name_of(label)),
                _says(report, picture.says, picture.label, names),
            ),
            class_="looks",
        )
    ]
    for path, found in picture.attacked.items():
        rows.append(
            tag(
                "div",
                tag("figure", _image(found.perturbation, "the perturbation"), tag("figcaption", "change")),
                tag("figure", _image(found.pixels, "the image with the perturbation"), tag("figcaption", "attacked")),
                tag(
                    "p",
                    "Made on ",
                    name_of(path),
                    _says(report, found.says, picture.label, names),
                ),
                class_="looks",
            )
        )
    return tag("article", *rows, class_="picture")


def _image(pixels: Any, words: str) -> Markup:
    small = max(pixels.shape[:2]) < 96
    height, width = pixels.shape[:2]
    return tag(
        "img", src=data_uri(pixels), alt=words, width=width, height=height, class_="pixelated" if small else None
    )


def _says(report: Report, says: Mapping[str, int], label: int, names: Sequence[str]) -> Markup:
    return join(
        *(
            tag(
                "span",
                report.path(path),
                ": ",
                tag("b", name_of(names[said])),
                _verdict(right=said == label),
                class_="says",
            )
            for path, said in says.items()
        )
    )


def _verdict(*, right: bool) -> Markup:
    sign, word = ("✓", "right") if right else ("✗", "wrong")
    return tag("span", f" {sign}", tag("span", f" {word}", class_="spoken"), class_=word)


def radius(eps: float) -> str:
    """Return eps as people write it: ``8/255`` where it is a whole number of levels, else ``0.3``."""
    levels = round(eps * 255)
    return f"{levels}/255" if levels and abs(eps * 255 - levels) < 1e-6 and levels != 255 else f"{eps:.4g}"


def threat_models(report: Report) -> Markup:
    """Return in words what the attacker of each figure may do, and what each attack does."""
    sentences: dict[str, list[str]] = {}
    for model in report.models:
        sentences.setdefault(model["threat_model"], []).append(report.name(model))
    attacks = {str(_attack(attack)): attack["name"] for model in report.models for attack in model["attacks"]}
    return section(
        "threats",
        "Who the attacker is",
        *(
            tag("p", tag("b", name_of(", ".join(names)), ": ") if len(sentences) > 1 else None, sentence)
            for sentence, names in sentences.items()
        ),
        tag("dl", *(join(tag("dt", name), tag("dd", words)) for words, name in attacks.items()), class_="facts")
        if attacks
        else None,
    )


def _attack(attack: Mapping[str, Any]) -> str:
    eps = f"within eps {radius(attack['eps'])} of each pixel" if "eps" in attack else ""
    source = ", made on the checkpoint that the bundle was exported from" if "made_on" in attack else ""
    if "steps" in attack:
        step = f" of {attack['step_size']:.4g}" if attack.get("step_size") is not None else ""
        strength = f"{attack['steps']} steps{step}, {attack['restarts']} random start(s)"
        return f"projected gradient descent, {eps}: {strength}{source}"
    if "parts" in attack:
        return f"of AutoAttack, {eps}: {', '.join(attack['parts'])}{source}"
    more = (f"{key.replace('_', ' ')} {value}" for key, value in attack.items() if key not in {"name", "eps"})
    return ", ".join(filter(None, (eps, *more)))


def made_by(report: Report) -> Markup:
    """Return the command, the versions and the files, so that anyone can make the page again."""
    facts: list[tuple[object, object]] = [*report.environment.items()]
    for model in report.models:
        which = (
            f"test images, chosen by seed {model['seed']}" if model["example_indices"] else "test images, all of them"
        )
        facts.append((name_of(model["model"]), f"SHA-256 {model['digest']}"))
        facts.append(("measured on", f"{model['examples']} {which}; attacks seeded by {model['seed']}"))
    return section(
        "made",
        "How this page was made",
        tag("pre", tag("code", report.command), tabindex="0"),
        tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in facts), class_="facts"),
        note("The same command on the same machine, versions and files makes this page again, byte for byte."),
    )
