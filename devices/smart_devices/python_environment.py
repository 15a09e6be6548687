"""The Python that runs this, and what it can import, found without importing any of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import util
from importlib.machinery import ModuleSpec
from pathlib import Path


@dataclass(frozen=True)
class PythonEnvironment:
    """A Python and its packages.

    Attributes:
        version: Its minor version, as in ``3.10``.
        prefix: Where it or its virtual environment is.
        virtual: Whether that is a virtual environment.
        system_packages: Whether it sees the packages of the system's own Python, where JetPack puts TensorRT.
        find: Gives the file of a module's code by the module's name, None when it cannot be imported.
        version_of: Gives the version of an installed distribution by its name, None when it is not installed.
    """

    version: str
    prefix: str
    virtual: bool
    system_packages: bool
    find: Callable[[str], str | None]
    version_of: Callable[[str], str | None]

    def first_version_of(self, *distributions: str) -> str | None:
        """Return the version of the first of these that is installed, None when none is."""
        return next((version for name in distributions if (version := self.version_of(name))), None)


def this_python() -> PythonEnvironment:
    """Return the Python that runs this."""
    virtual = sys.prefix != sys.base_prefix
    return PythonEnvironment(
        version=f"{sys.version_info.major}.{sys.version_info.minor}",
        prefix=sys.prefix,
        virtual=virtual,
        system_packages=sys.base_prefix == "/usr" and (not virtual or _lets_system_packages_in(Path(sys.prefix))),
        find=find_module,
        version_of=version_of,
    )


def find_module(name: str) -> str | None:
    """Return the file of a module's code, None when there is none; nothing is imported.

    A folder that merely has the name (what an interrupted uninstall leaves) is found too, but has no code.
    """
    try:
        spec = util.find_spec(name) if name in sys.modules or "." in name else _spec_without_lock(name)
    except (ImportError, ValueError):  # ValueError: something imported it in a way that left no trace of its origin
        return None
    return None if spec is None else spec.origin


def _spec_without_lock(name: str) -> ModuleSpec | None:
    """Look for a module that is not imported as `importlib.util.find_spec` does, without Python's import lock.

    Every load looks, and an exception thrown into its thread could leave the lock locked for good.
    """
    for finder in list(sys.meta_path):
        find = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = None if find is None else find(name, None)
        if spec is not None:
            return spec
    return None


def version_of(distribution: str) -> str | None:
    """Return the version of an installed distribution, None when it is not installed."""
    from importlib import metadata  # noqa: PLC0415  # a fifth of the time that importing smart_runtime takes

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def is_older(version: str, oldest: tuple[int, int]) -> bool:
    """Say whether a version such as ``1.23.1+cu12`` is older than ``oldest``; one that has no numbers is not."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) < oldest


def _lets_system_packages_in(environment: Path) -> bool:
    """Read the key that ``python -m venv --system-site-packages`` sets (Python documentation, venv)."""
    try:
        lines = (environment / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    settings = {key.strip().lower(): value.strip().lower() for key, _, value in (line.partition("=") for line in lines)}
    return settings.get("include-system-site-packages") == "true"
