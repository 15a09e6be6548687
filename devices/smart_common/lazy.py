"""Names that are imported when they are first used, so that `--help` and a light import wait for no heavy library.

A table whose values take long to import holds ``"module:attribute"`` in their place, which `load` turns into the value.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from smart_common.errors import SmartError
from smart_common.version import version


def load(place: str) -> Any:
    """Return the attribute that ``place``, ``"module:attribute"``, names; its module is imported for that.

    Raises:
        SmartError: There is no such module, or it has no such attribute: whoever wrote the row must mend it.
    """
    module, _, attribute = place.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if isinstance(error, AttributeError) and error.obj is not sys.modules.get(module):
            raise  # raised by the module's own code
        if isinstance(error, ImportError) and not f"{module}.".startswith(f"{error.name}."):
            raise  # a library that the module needs
        raise SmartError(f"{place} cannot be loaded: {error}; mend the row of the table that names it") from error


def lazy_attributes(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` (PEP 562) for ``package`` that imports names from their modules in ``homes`` when used.

    A name whose module is itself is a module of the package. ``__version__`` is the distribution's.
    """

    def attribute(name: str) -> Any:
        if name == "__version__":
            return version()
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        return import_module(home) if home == f"{package}.{name}" else load(f"{home}:{name}")

    return attribute
