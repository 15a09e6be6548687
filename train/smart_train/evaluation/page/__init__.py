"""The report page: one HTML file that needs nothing else, made from what smart-eval found."""

from smart_train.evaluation.page.included import Included, read_included
from smart_train.evaluation.page.page import render
from smart_train.evaluation.page.pictures import Pictures, make_pictures, shown_attack
from smart_train.evaluation.page.subject import Report

__all__ = ["Included", "Pictures", "Report", "make_pictures", "read_included", "render", "shown_attack"]
