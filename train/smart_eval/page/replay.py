"""What bundles make of the samples of the checkpoints that they came from."""

from __future__ import annotations

from smart_eval.page.figures import percent
from smart_eval.page.html import Markup, join, name_of, note, section, table, tag
from smart_eval.page.subject import Report


def replayed(report: Report) -> Markup | None:
    """Return what the graphs of bundles say of their checkpoints' samples, beside what the masked paths say."""
    found = [model for model in report.models if model.get("replay")]
    if not found:
        return None
    columns: list[object] = ["path"]
    columns += [f"{kind}, {who}" for kind in ("clean", "adversarial") for who in ("checkpoint", "graph")]
    columns += ["same class", "largest difference"]
    rows: list[list[object]] = [
        [
            join(report.path(path), tag("small", name_of(report.name(model)), f" ({model['precision']})")),
            *(percent(row[who][kind]["accuracy"]) for kind in ("clean", "adversarial") for who in ("source", "graph")),
            percent(row["same_class"]),
            f"{row['max_rel_diff']:.1e}",
        ]
        for model in found
        for path, row in model["replay"].items()
    ]
    return section(
        "replay",
        "The checkpoint and its graphs",
        table(
            label="accuracy of paths and their graphs on the checkpoint's samples",
            columns=columns,
            rows=rows,
        ),
        note(
            "On the samples that the checkpoint carries, clean and as they were attacked on its masked paths, the same "
            "images for both; the largest difference of any score is relative to the largest score."
        ),
    )
