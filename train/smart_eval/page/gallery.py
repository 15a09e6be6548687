"""Some test images, what attacks made of them and what each path says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from smart_eval.page.figures import radius
from smart_eval.page.html import Markup, join, name_of, section, tag
from smart_eval.page.pictures import Picture
from smart_eval.page.png import data_uri
from smart_eval.page.subject import Model, Report
from smart_train.data.images import Pixels


def gallery(report: Report) -> Markup | None:
    """Return the pictures of every model that has some."""
    found = [model for model in report.models if report.shown(model) is not None]
    if not found:
        return None
    notes = report.told(lambda model: _about(report, model))
    return section("pictures", "What an attack looks like", *report.each(found, _pictures, folded=True), *notes)


def _pictures(report: Report, model: Model) -> Markup:
    shown = report.shown(model)
    assert shown is not None
    return tag("div", *(_picture(report, one, shown.class_names) for one in shown.pictures), class_="pictures")


def _about(report: Report, model: Model) -> str | None:
    shown = report.shown(model)
    if shown is None:
        return None
    scale = (
        f"Perturbations are scaled {0.5 / shown.eps:.3g} times and laid on grey, so that black and white are the most "
        "that a pixel may change."
        if shown.eps
        else "The radius is 0, so nothing changes."
    )
    return (
        "The first test images of different classes that every path gets right, where there are such; no outcome of "
        f"an attack chose them. They were attacked again for this page, by {shown.attack} within eps "
        f"{radius(shown.eps)}, on each path in turn, and every path then looked at what came out. {scale}"
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


def _image(pixels: Pixels, words: str) -> Markup:
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
