"""The page as HTML, from templates: whatever they are given is escaped, so no name from a file can become markup."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from smart_common.units import si
from smart_eval.page import plots
from smart_eval.page.figures import data_uri, latency, percent, points, radius, span
from smart_eval.page.subject import Report, suspect, tried_more, under_attack

_UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # no HTML text may hold these


def render(report: Report) -> str:
    """Return the page as HTML; equal reports give equal pages, and what the models lack is left out."""
    return ENVIRONMENT.get_template("page.html").render(report=report)


def _source(name: str) -> tuple[str, str, None]:
    """Return a template; the lines of HTML and their indentation are for its readers, and no space on the page."""
    text = resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")
    return re.sub(r"\n\s*", "", text) if name.endswith(".html") else text, name, None


def _shown(value: Any) -> Any:
    return value if isinstance(value, Markup) else _UNSHOWN.sub("\ufffd", str(value))


ENVIRONMENT = Environment(
    loader=FunctionLoader(_source),
    autoescape=True,
    finalize=_shown,
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)
"""Where the page's templates are, with what they call."""
ENVIRONMENT.filters.update(
    data_uri=data_uri,
    g="{:g}".format,
    latency=latency,
    percent=percent,
    points=points,
    radius=radius,
    si=si,
    span=span,
)
ENVIRONMENT.globals.update(plots=plots, suspect=suspect, tried_more=tried_more, under_attack=under_attack)
