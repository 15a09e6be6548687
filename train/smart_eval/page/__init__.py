"""The report page: one HTML file that needs nothing else, made from what smart-eval found."""

from smart_eval.page.included import Included, read_included
from smart_eval.page.page import render
from smart_eval.page.pictures import Pictures, make_pictures, shown_attack
from smart_eval.page.subject import Report

__all__ = ["Included", "Pictures", "Report", "make_pictures", "read_included", "render", "shown_attack"]
