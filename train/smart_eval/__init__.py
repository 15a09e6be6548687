"""The robustness of checkpoints and bundles: attacks, checks, threats, corruptions and the page that shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smart_common.lazy import lazy_attributes

if TYPE_CHECKING:
    from smart_eval.evaluation import evaluate
    from smart_eval.subjects import EvalOptions

__all__ = ["EvalOptions", "evaluate"]

__getattr__ = lazy_attributes(__name__, {"EvalOptions": "smart_eval.subjects", "evaluate": "smart_eval.evaluation"})
