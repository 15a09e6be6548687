"""A network of the user's own, made by a factory that the user names: never by one that a file names.

A checkpoint of such a network says ``CUSTOM``, the factory's arguments and, to tell its reader, the name it had in
training; it holds no code, and nothing is imported by that name.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from smart_train.architectures.libraries import LibraryNetwork, library_network
from smart_train.choices import FACTORY_FORM, Argument, is_factory_name, is_factory_reference, is_library_name
from smart_train.errors import ConfigError

Factory: TypeAlias = Callable[..., nn.Module]
"""Takes ``num_classes`` and ``in_channels`` beside its own arguments, all by keyword, and returns a network."""

_MAX_REASON = 300  # characters of what the user's own code says
# What a checkpoint holds, so that opening one stays a matter of plain tensors.
_DTYPES = {torch.float32, torch.int64, torch.bool, torch.uint8}


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_MAX_REASON]}"


@contextmanager
def _looking_in(folder: str) -> Iterator[None]:
    """Look for modules in ``folder`` too, for as long as the block runs.

    It comes last: a folder may hold a download too, and a numpy.py of it must not stand for the installed one.
    """
    sys.path.append(folder)
    try:
        yield
    finally:
        del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]  # not the one that was there before


@dataclass(frozen=True)
class ImportedFactory:
    """A factory of the user's own that `import_factory` imported.

    Attributes:
        reference: its name, for a checkpoint to remember: ``package.module:factory`` or ``file.py:factory``, without
            the folders of this machine. None for a file's name that is no plain word.
    """

    reference: str | None
    _make: Factory
    _folder: str

    def __call__(self, **arguments: Any) -> nn.Module:
        """Return the network; what the factory imports when it is called is looked for where its module was found."""
        with _looking_in(self._folder):
            return self._make(**arguments)


def import_factory(name: str) -> ImportedFactory | LibraryNetwork:
    """Import what ``package.module:factory`` or ``path/to/file.py:factory`` names: this runs the module's code.

    ``torchvision:NAME`` and ``timm:NAME`` are networks of these libraries.

    After the installed packages, the current folder, or the file's, counts as a place to find it and what it imports,
    until the network is made and no longer.

    Raises:
        ConfigError: if the form is another, the import fails, or it is nothing to call.
    """
    if not is_factory_name(name):
        raise ConfigError(f"expected a network as {FACTORY_FORM}, got {name!a:.100}; write my_package.my_net:build")
    if is_library_name(name):
        return library_network(name)
    module, _, path = name.rpartition(":")
    file = Path(module) if module.endswith(".py") else None
    folder = str(Path.cwd() if file is None else file.resolve().parent)
    if file is not None and not file.is_file():
        raise ConfigError(f"no file {module!a} to import a network from; check the path")
    try:
        with _looking_in(folder):
            found: object = importlib.import_module(module) if file is None else _import_file(file)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (Exception, SystemExit) as error:  # it is the user's own code
        places = "it is looked for among installed packages and in the current folder"
        raise ConfigError(
            f"cannot import {name} ({_reason(error)}); {places if file is None else 'correct that file'}"
        ) from error
    if not callable(found):
        raise ConfigError(f"{name} is nothing to call but of type {type(found).__name__}; name a function or class")
    reference = name if file is None else f"{file.name}:{path}"
    return ImportedFactory(reference if is_factory_reference(reference) else None, found, folder)


def _import_file(file: Path) -> object:
    """Run a file as a module of a name that no package has, anew each time: two files may have one name."""
    spec = importlib.util.spec_from_file_location(f"_own_network_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


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
