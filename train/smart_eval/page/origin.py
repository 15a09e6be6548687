"""How the page was made."""

from __future__ import annotations

from smart_eval.page.html import Markup, join, name_of, note, section, tag
from smart_eval.page.subject import Report


def made_by(report: Report) -> Markup:
    """Return the command, the versions and the files, so that anyone can make the page again."""
    facts: list[tuple[object, object]] = [*report.environment.items()]
    for model in report.models:
        which = f"chosen by seed {model['seed']}" if model["example_indices"] else "all of them"
        measured = f"measured on {model['examples']} test images, {which}; "
        measured += f"attacks seeded by {model['seed']}, {model['chunk']} images at a time"
        facts.append((name_of(model["model"]), f"SHA-256 {model['digest']}; {measured}"))
    return section(
        "made",
        "How this page was made",
        tag("pre", tag("code", report.command), tabindex="0"),
        tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in facts), class_="facts"),
        note("The same command on the same machine, versions and files makes this page again, byte for byte."),
    )
