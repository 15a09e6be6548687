"""Training methods: what one step does with a batch. Each is a file, and a row of ``METHODS``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from smart_common.lazy import load

if TYPE_CHECKING:
    from smart_train.methods.interface import Method

METHODS: Mapping[str, str] = {
    "smart": "smart_train.methods.smart:SMART",
    "dual-bn": "smart_train.methods.smart:DUAL_BN",
    "standard": "smart_train.methods.standard:STANDARD",
    "pgd-at": "smart_train.methods.pgd_at:PGD_AT",
    "pgd-at-mixed": "smart_train.methods.pgd_at_mixed:PGD_AT_MIXED",
    "fgsm-rs": "smart_train.methods.one_step:FGSM_RS",
    "n-fgsm": "smart_train.methods.one_step:N_FGSM",
    "trades": "smart_train.methods.trades:TRADES",
    "mart": "smart_train.methods.mart:MART",
    "part": "smart_train.methods.part:PART",
    "vfd": "smart_train.methods.vfd:VFD",
    "ar-at": "smart_train.methods.ar_at:AR_AT",
    "oat": "smart_train.methods.oat:OAT",
    "float": "smart_train.methods.float_noise:FLOAT",
}
"""Where the method of each name is, so that the names cost no import of torch."""


def load_method(name: str) -> Method:
    """Return a method by its name in ``METHODS``; raises KeyError for any other name."""
    method: Method = load(METHODS[name])
    return method


__all__ = ["METHODS", "load_method"]
