"""Record what a TensorRT binding offers: classes, members and the names of parameters, no prose.

    pip install --no-deps --target /tmp/trt tensorrt-cu12-bindings==10.3.0
    python tools/record_api.py tensorrt_bindings tests/trt/api/tensorrt-10.3.0.json --folder /tmp/trt --stub

NVIDIA's binding wheels are small and real, but link to libraries of gigabytes. With ``--stub`` those are replaced by
empty ones that gcc makes on the spot: they define the C symbols that the binding names, each of which returns 0, so
that it can be imported and looked at. Nothing of it can be called.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

# What a runtime, a builder or a parser could touch. Layers, plug-ins, calibrators and allocators are left out.
_CLASSES = re.compile(
    r"Builder|BuilderFlag|IBuilderConfig|INetworkDefinition|NetworkDefinitionCreationFlag|ITensor|IOptimizationProfile"
    r"|OnnxParser|OnnxParserFlag|ParserError|ErrorCode|ErrorCodeTRT|ILogger|Logger|IProgressMonitor|ITimingCache"
    r"|IHostMemory|Runtime|ICudaEngine|IExecutionContext|ExecutionContextAllocationStrategy|IRuntimeConfig"
    r"|RuntimeConfig|I?RuntimeCache|CudaGraphStrategy|DynamicShapesKernelSpecializationStrategy|ComputeCapability"
    r"|EngineValidity|EngineInvalidityDiagnostics|EngineInspector|LayerInformationFormat|MemoryPoolType"
    r"|ProfilingVerbosity|TensorIOMode|TensorLocation|TensorFormat|DataType|HardwareCompatibilityLevel|EngineCapability"
    r"|EngineStat|Dims|PreviewFeature"
)
_MADE_OF_LAYERS = re.compile(r"add_|mark_|unmark_")  # members of a network that a parser uses, not we
_SKIPPED = {"INetworkDefinition": _MADE_OF_LAYERS}
_SYSTEM = re.compile(r"Py|_Py|_ITM_|_ZGT|__gmon|__pthread|__cxa|_ZNSt|_ZSt")


def main() -> int:
    """Read the command line, record and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("module", help="tensorrt_bindings, tensorrt_rtx, ...")
    parser.add_argument("output", type=Path, help="the JSON file to write")
    parser.add_argument("--folder", type=Path, action="append", default=[], help="where it is installed; repeatable")
    parser.add_argument("--stub", action="store_true", help="stand in for the libraries that it links to")
    arguments = parser.parse_args()
    sys.path[:0] = map(str, arguments.folder)
    with tempfile.TemporaryDirectory() as made:
        if arguments.stub:
            for binding in (file for folder in arguments.folder for file in folder.glob(f"{arguments.module}/*.so")):
                load_stubs(binding, Path(made))
        module = importlib.import_module(arguments.module)
    arguments.output.write_text(as_text(surface(module)), encoding="utf-8")
    return 0


def as_text(found: dict[str, Any]) -> str:
    """Return JSON with a line for each member, so that two versions can be compared line by line."""

    def line(name: str, value: Any) -> str:
        return f"{json.dumps(name)}: {json.dumps(value)}"

    classes = [
        f"{json.dumps(name)}: {{\n{','.join(f'{chr(10)}{line(*item)}' for item in members_.items()).lstrip()}\n}}"
        for name, members_ in found["classes"].items()
    ]
    head = [line(name, found[name]) for name in ("module", "version")]
    return "{\n" + ",\n".join([*head, '"classes": {\n' + ",\n".join(classes) + "\n}"]) + "\n}\n"


def load_stubs(binding: Path, folder: Path) -> None:
    """Make and load a library without contents for each of NVIDIA's that ``binding`` links to.

    Args:
        binding: The extension module.
        folder: Where the libraries are made.

    Raises:
        subprocess.CalledProcessError: A tool of binutils or gcc failed.
    """
    needed = re.findall(r"NEEDED.*\[(lib(?:nv|tensorrt)[^]]*)\]", _output("readelf", "--dynamic", str(binding)))
    symbols = re.findall(r" U (\w+)$", _output("nm", "--dynamic", "--undefined-only", str(binding)), re.MULTILINE)
    wanted = [name for name in symbols if not _SYSTEM.match(name)]
    source = folder / "stub.c"
    for number, name in enumerate(needed):
        lines = [f"void *{symbol}(void) {{ return 0; }}" for symbol in wanted] if number == 0 else []
        source.write_text("\n".join(lines))
        _output("gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source))
        # The dynamic linker takes a library that is loaded already for any of the same soname.
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def surface(module: ModuleType) -> dict[str, Any]:
    """Return the module's name, version and classes; of a member, the names that each overload calls its parameters.

    ``{"classes": {"Builder": {"create_network": [["self", "flags"]], "platform_has_tf32": "property"}}, ...}``; what
    stands for a value of an enumeration is ``"value"``, for a nested class ``"class"``. A class whose ``__init__`` has
    no overloads cannot be made by calling it.
    """
    classes = {
        name: members(found, _SKIPPED.get(name))
        for name, found in sorted(vars(module).items())
        if isinstance(found, type) and _CLASSES.fullmatch(name)
    }
    name = module.__name__.removesuffix("_bindings")
    return {"module": name, "version": module.__version__, "classes": classes}


def members(found: type, skipped: re.Pattern[str] | None = None) -> dict[str, Any]:
    """Return the public members of a class and how it is made (``__init__``), inherited ones included."""
    names = [name for name in dir(found) if not name.startswith("_") or name == "__init__"]
    return {
        name: _member(found, name)
        for name in names
        if not (skipped and skipped.match(name)) and not (name == "__init__" and found.__init__ is object.__init__)  # type: ignore[misc]
    }


def _member(owner: type, name: str) -> Any:
    member = getattr(owner, name)
    if isinstance(member, property):
        return "property"
    if isinstance(member, type):
        return "class"
    if not callable(member):
        return "value"
    return signatures(name, member.__doc__ or "")


def signatures(name: str, text: str) -> list[list[str]]:
    """Return the parameters' names of each signature in a docstring of pybind11's: ``name(self: T, a: int)``."""
    found = re.findall(rf"^(?:\d+\. )?{name}\((.*)\)(?: -> .*)?$", text, re.MULTILINE)
    overloads = [_parameters(inner) for inner in found]
    return [names for names in overloads if names != ["*args", "**kwargs"]] or overloads


def _parameters(inner: str) -> list[str]:
    """Split at the commas outside of brackets, and drop types and defaults."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(inner):
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            parts.append(inner[start:place])
            start = place + 1
    parts.append(inner[start:])
    return [re.split(r"[:=]", part, maxsplit=1)[0].strip() for part in parts if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
