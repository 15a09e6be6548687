"""The report page: one HTML file that needs nothing else, made from what smart-eval found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smart_common.lazy import lazy_attributes

if TYPE_CHECKING:
    from smart_eval.page.included import Included, read_included
    from smart_eval.page.page import render
    from smart_eval.page.pictures import Pictures, make_pictures, shown_attack
    from smart_eval.page.subject import Report

__all__ = ["Included", "Pictures", "Report", "make_pictures", "read_included", "render", "shown_attack"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Included": "smart_eval.page.included",
        "Pictures": "smart_eval.page.pictures",
        "Report": "smart_eval.page.subject",
        "make_pictures": "smart_eval.page.pictures",
        "read_included": "smart_eval.page.included",
        "render": "smart_eval.page.page",
        "shown_attack": "smart_eval.page.pictures",
    },
)
