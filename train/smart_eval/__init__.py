"""The robustness of checkpoints and bundles: attacks, checks, threats, corruptions and the page that shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smart_common.lazy import lazy_attributes

if TYPE_CHECKING:
    from smart_eval.evaluation import EvalOptions, evaluate

__all__ = ["EvalOptions", "evaluate"]

__getattr__ = lazy_attributes(__name__, {"EvalOptions": "smart_eval.evaluation", "evaluate": "smart_eval.evaluation"})
