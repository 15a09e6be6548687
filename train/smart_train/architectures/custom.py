"""A network of the user's own, made by a factory that the user names: never by one that a file names.

A checkpoint of such a network says ``CUSTOM`` and the factory's arguments, and holds no code.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from smart_train.choices import FACTORY_FORM, Argument, is_factory_name
from smart_train.errors import ConfigError

Factory: TypeAlias = Callable[..., nn.Module]
"""Takes ``num_classes`` and ``in_channels`` beside its own arguments, all by keyword, and returns a network."""

_MAX_REASON = 300  # characters of what the user's own code says
# What a checkpoint holds, so that opening one stays a matter of plain tensors.
_DTYPES = {torch.float32, torch.int64, torch.bool, torch.uint8}


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_MAX_REASON]}"


@contextmanager
def _current_folder() -> Iterator[None]:
    """Look for modules in the current folder too, as ``python -m`` does, but only for as long as the block runs."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def import_factory(name: str) -> Factory:
    """Import what ``package.module:factory`` names and return it: this runs the module's code.

    The current folder counts as a place to find it and what it imports, until the network is made and no longer.

    Raises:
        ConfigError: if the form is another, the import fails, or it is nothing to call.
    """
    if not is_factory_name(name):
        raise ConfigError(f"expected a network as {FACTORY_FORM}, got {name!a:.100}; write my_package.my_net:build")
    module, _, path = name.partition(":")
    try:
        with _current_folder():
            found: object = importlib.import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (Exception, SystemExit) as error:  # it is the user's own code
        raise ConfigError(
            f"cannot import {name} ({_reason(error)}); it is looked for among installed packages and in the current "
            f"folder"
        ) from error
    if not callable(found):
        raise ConfigError(f"{name} is nothing to call but of type {type(found).__name__}; name a function or class")
    factory: Factory = found

    def build(**arguments: Any) -> nn.Module:
        with _current_folder():  # a factory may import when it is called
            return factory(**arguments)

    return build


def call_factory(
    factory: Factory, *, num_classes: int, in_channels: int, arguments: Mapping[str, Argument], generator_seed: int
) -> nn.Module:
    """Build a network of the user's own; the global random state of the CPU is seeded for it and left as it was.

    Raises:
        ConfigError: if the factory fails, gives no module, or one with parameters or buffers of other types than
            float32, int64, bool and uint8.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_seed)
            network = factory(num_classes=num_classes, in_channels=in_channels, **arguments)
    except (Exception, SystemExit) as error:  # it is the user's own code
        given = ", ".join(f"{k}={v!r}" for k, v in arguments.items()) or "no arguments of its own"
        raise ConfigError(
            f"the factory failed, given num_classes={num_classes}, in_channels={in_channels} and {given:.200} "
            f"({_reason(error)}); the first two are given beside --model-arg"
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"expected a torch module from the factory, got {type(network).__name__}; return the network")
    for name, tensor in network.state_dict().items():
        if is_lazy(tensor):
            raise ConfigError(
                f"{name} belongs to a lazy layer, which does not know its size yet; give its input channels"
            )
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES:
            got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ConfigError(f"expected parameters and buffers of float32, int64, bool or uint8, got {got} in {name}")
    return network
