"""Methods that change another one, their base, which an option names."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from torch import nn

from smart_train.errors import ConfigError
from smart_train.methods import load_method
from smart_train.methods.interface import Setup, Training


def base_training(plain: nn.Module, setup: Setup) -> Training:
    """Return the training of ``plain`` by the method that ``setup.options.base`` names.

    Of its options it has those that ``setup.options`` has under the same name; the others are at their defaults.
    """
    base, options = load_method(setup.options.base), setup.options
    own = {one.name: getattr(options, one.name) for one in fields(base.options) if hasattr(options, one.name)}
    return base.build(plain, replace(setup, options=base.options(**own)))


def check_beta(options: Any) -> None:
    """Raise ConfigError if ``options`` set the ``beta`` of a ``base`` that has none."""
    has = [one.name for one in fields(load_method(options.base).options)]
    if "beta" not in has and options.beta != type(options).beta:
        raise ConfigError(f"base {options.base} has no beta, got {options.beta}; leave it out, or name another base")
