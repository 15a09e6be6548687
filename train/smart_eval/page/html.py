"""Markup from pure functions: whatever is not markup already is escaped, so no name from a file can become any."""

from __future__ import annotations

import html
import re

_UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # no HTML text may hold these
_VOID = frozenset({"img", "meta", "br"})
_CAMEL = frozenset({"viewBox", "preserveAspectRatio"})  # as SVG spells them


class Markup(str):
    """Text that is HTML or SVG already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Return ``value`` as text for an element or a quoted attribute; `Markup` as it is."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(_UNSHOWN.sub("\ufffd", str(value)), quote=True))


def tag(element: str, /, *children: object, **attributes: object) -> Markup:
    """Return an element.

    Args:
        element: its name, ours and never a file's.
        children: text or markup, one after the other; None is left out.
        attributes: values are escaped, None leaves one out, True gives it no value. A trailing ``_`` of a name is
            dropped (``class_``), others become hyphens (``stroke_width``), as HTML and SVG spell them.
    """
    parts = [element]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        spelled = key if key in _CAMEL else key.rstrip("_").replace("_", "-")
        parts.append(spelled if value is True else f'{spelled}="{text(value)}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening if element in _VOID else f"{opening}{join(*children)}</{element}>")


def join(*parts: object) -> Markup:
    """Return text and markup, one after the other; None is left out."""
    return Markup("".join(text(part) for part in parts if part is not None))


def name_of(value: object) -> Markup:
    """Return a name that came from a file: the direction of its letters does not turn what stands around it."""
    return tag("bdi", value)


def scrolling(what: Markup, *, label: str) -> Markup:
    """Return something wide in a box that scrolls by itself, with the keyboard too."""
    return tag("div", what, class_="scroll", tabindex="0", role="region", aria_label=label)


def table(*, label: str, columns: list[object], rows: list[list[object]], text_columns: int = 1) -> Markup:
    """Return a table; the first ``text_columns`` are text, the first of them heads its row, the others are numbers."""
    head = tag("tr", *(tag("th", cell, scope="col", class_=_kind(i, text_columns)) for i, cell in enumerate(columns)))
    body = (
        tag(
            "tr",
            *(
                tag("th", cell, scope="row") if i == 0 else tag("td", cell, class_=_kind(i, text_columns))
                for i, cell in enumerate(row)
            ),
        )
        for row in rows
    )
    return scrolling(tag("table", tag("thead", head), tag("tbody", *body)), label=label)


def _kind(column: int, text_columns: int) -> str | None:
    return None if column < text_columns else "number"


def section(anchor: str, title: str, *children: object, half: bool = False, style: str | None = None) -> Markup:
    """Return a section with its heading; of ``half`` ones, two stand beside each other where there is room."""
    return tag("section", tag("h2", title), *children, id=anchor, class_="half" if half else style)


def note(*children: object) -> Markup:
    """Return a paragraph that explains."""
    return tag("p", *children, class_="note")
