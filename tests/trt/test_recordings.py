"""What was recorded of the real bindings, the tool that records it, and that the stand-in has nothing more."""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from smart_runtime.engines.trt import library
from trt.fake_tensorrt import DIALECTS, SUPERSET, make_module, recorded

ROOT = Path(__file__).resolve().parents[2]
RECORDED: dict[str, dict[str, dict[str, Any]]] = {name: recorded(name)["classes"] for name in DIALECTS}  # type: ignore[misc]

# Members that our code uses and not every version has, with the versions that do; `Library` asks for each by hasattr,
# or for one that comes and goes with it.
DIFFERING = {
    "ComputeCapability": "rtx-1.4 rtx-1.7",
    "CURRENT": "rtx-1.4 rtx-1.7",
    "num_compute_capabilities": "rtx-1.4 rtx-1.7",
    "set_compute_capability": "rtx-1.4 rtx-1.7",
    "create_runtime_cache": "rtx-1.4 rtx-1.7",
    "set_runtime_cache": "rtx-1.4 rtx-1.7",
    "deserialize": "rtx-1.4 rtx-1.7",
    "create_runtime_config": "10.16 11.4 rtx-1.4 rtx-1.7",
    "set_execution_context_allocation_strategy": "10.16 11.4 rtx-1.4 rtx-1.7",
    "ExecutionContextAllocationStrategy": "10.3 10.16 11.4 rtx-1.4 rtx-1.7",
    "USER_MANAGED": "10.3 10.16 11.4 rtx-1.4 rtx-1.7",
    "IProgressMonitor": "10.3 10.16 11.4 rtx-1.4 rtx-1.7",
    "progress_monitor": "10.3 10.16 11.4 rtx-1.4 rtx-1.7",
    "set_device_memory": "10.3 10.16 11.4 rtx-1.4 rtx-1.7",
    "device_memory_size_v2": "10.3 10.16 11.4 rtx-1.4 rtx-1.7",
    "device_memory_size": "8.6 10.3 10.16",
    "create_execution_context_without_device_memory": "8.6 10.3 10.16",
    "STRONGLY_TYPED": "10.3 10.16 11.4 rtx-1.4 rtx-1.7",
    "EXPLICIT_BATCH": "8.6 10.3 10.16 rtx-1.4",
    "FP16": "8.6 10.3 10.16 rtx-1.4",
    "node_operator": "10.3 10.16 11.4 rtx-1.4 rtx-1.7",
    "node_name": "10.3 10.16 11.4 rtx-1.4 rtx-1.7",
    "PROFILE_SHARING_0806": "8.6 10.3 10.16 rtx-1.4",
    "STRIP_PLAN": "10.3 10.16 11.4 rtx-1.4 rtx-1.7",
}
NOT_THEIRS = {"name", "value", "parse", "log", "version", "reset", "module", "logger", "engine", "get_flag", "flags"}


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_api", ROOT / "tools/record_api.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


TOOL = load_tool()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_stand_in_has_nothing_that_the_real_one_lacks(dialect: str) -> None:
    module = make_module(dialect)
    assert set(public(module)) <= set(RECORDED[dialect])
    for name in public(module):
        allowed = set(RECORDED[dialect][name]) | set(dir(bytes if name == "IHostMemory" else object))
        assert set(public(getattr(module, name))) <= allowed, name


def public(held: Any) -> list[str]:
    return [name for name in vars(held) if not name.startswith("_")]


@pytest.mark.parametrize("found", SUPERSET, ids=lambda found: found.__name__)
def test_the_stand_in_names_its_parameters_as_the_real_one_does(found: type) -> None:
    versions = [classes[found.__name__] for classes in RECORDED.values() if found.__name__ in classes]
    assert versions, "no version has such a class"
    for name, member in vars(found).items():
        if name.startswith("_"):
            continue
        kept = [members[name] for members in versions if name in members]
        assert kept, f"no version has {found.__name__}.{name}"
        if inspect.isfunction(member):
            known = {parameter for overloads in kept for names in overloads for parameter in names}
            assert set(inspect.signature(member).parameters) <= known, name


def test_what_our_code_touches_exists_in_each_version_or_is_asked_for() -> None:
    """Attributes are found in the source, so that no branch is missed; what is spelled as text, for hasattr, too."""
    used: set[str] = set()
    for file in Path(library.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                used.add(node.value)
    having: dict[str, list[str]] = {}
    for version, classes in RECORDED.items():
        for name in {*classes, *(member for members in classes.values() for member in members)}:
            having.setdefault(name, []).append(version)
    theirs = used & set(having) - NOT_THEIRS
    assert {"execute_async_v3", "SPARSE_WEIGHTS", "deserialize_cuda_engine"} & theirs, "this looks at the wrong files"
    found = {name: " ".join(having[name]) for name in theirs if len(having[name]) < len(RECORDED)}
    assert {name: DIFFERING.get(name) for name in found} == found


@pytest.mark.parametrize("name", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_what_an_engine_will_call_has_one_form_in_all_versions(name: str) -> None:
    forms = {json.dumps(classes["IExecutionContext"][name][0]) for classes in RECORDED.values()}
    assert len(forms) == 1


def test_the_recording_is_that_of_the_installed_library() -> None:
    real = pytest.importorskip("tensorrt_rtx", reason="the TensorRT-RTX library (extra tensorrt-rtx) is not installed")
    kept = recorded("rtx-1.7")
    if real.__version__ != kept["version"]:
        pytest.skip(f"{real.__version__} is installed, and {kept['version']} was recorded")
    assert TOOL.surface(real) == kept


def test_a_recording_is_written_as_it_is_read() -> None:
    for dialect, file in DIALECTS.items():
        text = (Path(__file__).parent / f"api/{file}.json").read_text(encoding="utf-8")
        assert TOOL.as_text(recorded(dialect)) == text
        assert len(text) < 20_000
        assert not re.search(r"/|\bat 0x", text), "names only"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f(self: a.B, x: int = 3, y: Dict[str, int] = {}) -> None\n\n  f(not this)", [["self", "x", "y"]]),
        ("f(*args, **kwargs)\n\n1. f(self: B) -> int\n\n2. f(self: B, a: c) -> int\n", [["self"], ["self", "a"]]),
        ("f(self: B, s: S = <S.STATIC: 0>) -> C", [["self", "s"]]),
        ("f() -> C", [[]]),
        ("prose", []),
    ],
    ids=["defaults", "overloads", "an enumeration", "no parameters", "no signature"],
)
def test_signatures_are_read_from_docstrings(text: str, expected: list[list[str]]) -> None:
    assert TOOL.signatures("f", text) == expected


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_binding_loads_without_the_library_that_it_links_to(tmp_path: Path) -> None:
    def compile_c(name: str, source: str, *options: str) -> Path:
        file = tmp_path / name
        file.with_suffix(".c").write_text(source)
        command = ["gcc", "-shared", "-fPIC", "-o", str(file), str(file.with_suffix(".c")), *options]
        subprocess.run(command, check=True)
        return file

    needed = compile_c("libnvthing.so.9", "void *createThing(void) { return 0; }", "-Wl,-soname,libnvthing.so.9")
    source = "void *createThing(void); void *use(void) { return createThing(); }"
    binding = compile_c("binding.so", source, f"-L{tmp_path}", "-l:libnvthing.so.9")
    needed.unlink()
    with pytest.raises(OSError, match=r"libnvthing\.so\.9"):
        ctypes.CDLL(str(binding))
    made = tmp_path / "made"
    made.mkdir()
    TOOL.load_stubs(binding, made)
    loaded = ctypes.CDLL(str(binding))
    loaded.use.restype = ctypes.c_void_p
    assert loaded.use() is None
