"""Training methods: what one step does with a batch. Each is a named value in ``METHODS``."""

from __future__ import annotations

from collections.abc import Mapping

from smart_train.methods.smart import smart_loss
from smart_train.methods.step import Method

METHODS: Mapping[str, Method] = {"smart": smart_loss}

__all__ = ["METHODS", "Method"]
