"""A TensorRT that is none, in the dialects 8.6 to 11 and RTX, on the driver that stands in; ONNX Runtime computes.

    with installed("10.3") as trt:       # as ``tensorrt`` or ``tensorrt_rtx`` in sys.modules
        ...
    assert not UNDEFINED                 # nothing was done that NVIDIA calls undefined

Each dialect has those classes and members that were recorded of the real binding (``tests/trt/api``), no others, and
takes its arguments as that does. A child process gets one by `environment`. Another version is a recording made by
``tools/record_api.py`` and a row in `DIALECTS`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from trt.fake_tensorrt import bindings, building, parsing, running  # noqa: F401  # where the classes are made
from trt.fake_tensorrt.rules import UNDEFINED, Undefined

__all__ = ["DIALECTS", "UNDEFINED", "Undefined", "environment", "installed", "make_module", "recorded"]

DIALECTS = {
    "8.6": "tensorrt-8.6.1",
    "10.3": "tensorrt-10.3.0",
    "10.16": "tensorrt-10.16.1",
    "11.4": "tensorrt-11.4.0",
    "rtx-1.4": "tensorrt-rtx-1.4.0",
    "rtx-1.7": "tensorrt-rtx-1.7.1",
}
"""What can be had, and the file of what was recorded of it."""

VARIABLE = "SMART_EDGE_STAND_IN_TENSORRT"
"""Names the dialect in the environment of a child process."""

_HERE = Path(__file__).parent.parent
_TESTS = _HERE.parent
SUPERSET = (bindings.ILogger, bindings.IProgressMonitor, bindings.IHostMemory, *bindings.Bound.__subclasses__())
"""Every class, with what any version has of it."""


def recorded(dialect: str) -> Mapping[str, object]:
    """Return what was recorded of the real binding."""
    found: Mapping[str, object] = json.loads((_HERE / "api" / f"{DIALECTS[dialect]}.json").read_text("utf-8"))
    return found


def make_module(dialect: str) -> ModuleType:
    """Return a new module; ``_world`` in it says and sets what the real one would not."""
    facts = recorded(dialect)
    api: Mapping[str, Mapping[str, object]] = facts["classes"]  # type: ignore[assignment]
    module = ModuleType(str(facts["module"]))
    world = bindings.World(name=str(facts["module"]), version=str(facts["version"]), api=api, module=module)
    module.__dict__.update(__version__=world.version, _world=world)
    for name, members in api.items():
        if bindings.is_enumeration(members):
            values = [member for member, kind in members.items() if kind == "value"]
            setattr(module, name, bindings.enumeration(name, values))
    for found in SUPERSET:
        if found.__name__ in api:
            setattr(module, found.__name__, bindings.fitted(found, world))
    severities = bindings.enumeration("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])
    logger = vars(module)["ILogger"]
    logger.Severity = severities
    for name, value in severities.__members__.items():
        setattr(logger, name, value)
    return module


@contextmanager
def installed(dialect: str) -> Iterator[ModuleType]:
    """Let ``import tensorrt`` or ``import tensorrt_rtx`` give a new stand-in within the block."""
    module = make_module(dialect)
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        if before is None:
            sys.modules.pop(module.__name__, None)
        else:
            sys.modules[module.__name__] = before


def environment(dialect: str, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child process in which the stand-in can be imported."""
    found = dict(os.environ if base is None else base)
    path = [str(_HERE / "importable"), str(_TESTS), *filter(None, [found.get("PYTHONPATH")])]
    return found | {VARIABLE: dialect, "PYTHONPATH": os.pathsep.join(path)}
