"""The architecture as tests: what an import may load, who may import what, and that the pins cover the extras."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "smart_common": ROOT / "devices/smart_common",
    "smart_devices": ROOT / "devices/smart_devices",
    "smart_runtime": ROOT / "runtime/smart_runtime",
    "smart_train": ROOT / "train/smart_train",
    "smart_eval": ROOT / "train/smart_eval",
    "smart_export": ROOT / "export/smart_export",
}
ENGINES = {"tensorrt", "tensorrt_rtx", "onnxruntime", "cuda"}
SCREEN = {"click", "rich"}
# What importing a package must not load. The device side starts without anything heavy; the others need torch or onnx,
# but no engine and no screen.
FORBIDDEN = {
    "smart_common": ENGINES | SCREEN | {"torch", "onnx", "onnxscript", "onnx_ir", "numpy", "PIL", "matplotlib"},
    "smart_devices": ENGINES | SCREEN | {"torch", "onnx", "onnxscript", "onnx_ir", "numpy", "PIL", "matplotlib"},
    "smart_runtime": ENGINES | SCREEN | {"torch", "onnx", "onnxscript", "onnx_ir", "PIL", "matplotlib"},
    "smart_train": ENGINES | SCREEN,
    "smart_eval": ENGINES | SCREEN,
    "smart_export": ENGINES | SCREEN,
}
MODULES = [(package, path) for package, folder in PACKAGES.items() for path in sorted(folder.rglob("*.py"))]
# Tested on machines of their own, so no version of them is pinned: both need an NVIDIA GPU.
UNPINNED = {"onnxruntime-gpu", "tensorrt-cu12"}


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_nothing_it_must_not(package: str) -> None:
    code = f"import sys; import {package}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert package in loaded
    assert not loaded & FORBIDDEN[package]


def test_the_device_side_needs_no_package_at_all_but_numpy() -> None:
    for package, allowed in {
        "smart_common": set[str](),
        "smart_devices": {"smart_common"},
        "smart_runtime": {"numpy", "smart_common", "smart_devices"},
    }.items():
        for path in sorted(PACKAGES[package].rglob("*.py")):
            if path.name == "cli.py":
                continue
            outside = {
                name
                for name, at_use in imports(path)
                if not at_use and name not in sys.stdlib_module_names and name not in {package, *allowed}
            }
            assert not outside, f"{path.relative_to(ROOT)} imports {', '.join(sorted(outside))} at module level"


@pytest.mark.parametrize(
    ("package", "path"), MODULES, ids=lambda value: value.name if isinstance(value, Path) else value
)
def test_only_cli_modules_import_click_and_rich(package: str, path: Path) -> None:
    if path.name != "cli.py":
        found = {name for name, _ in imports(path)} & SCREEN
        assert not found, f"{path.relative_to(ROOT)} imports {', '.join(sorted(found))}; only cli.py modules may"


@pytest.mark.parametrize(
    ("package", "path"), MODULES, ids=lambda value: value.name if isinstance(value, Path) else value
)
def test_no_module_imports_an_engine_at_module_level(package: str, path: Path) -> None:
    found = {name for name, at_use in imports(path) if not at_use} & ENGINES
    assert not found, f"{path.relative_to(ROOT)} imports {', '.join(sorted(found))} at module level; import it at use"


def test_no_file_is_over_400_lines() -> None:
    long = {
        str(path.relative_to(ROOT)): lines for _, path in MODULES if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long, "split what has two concerns"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_files_of_a_package_share_a_name(package: str) -> None:
    names = Counter(path.name for owner, path in MODULES if owner == package)
    assert [name for name, count in names.items() if count > 1 and name not in {"cli.py", "__init__.py"}] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Late imports and those for types alone count too: whoever reads one of the two must read the other."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    while leaves := {module for module, found in imports.items() if not found & imports.keys()}:
        imports = {module: found for module, found in imports.items() if module not in leaves}
    roots = set(imports)
    while tops := {module for module in roots if not any(module in imports[other] for other in roots)}:
        roots -= tops
    assert sorted(roots) == [], "these import each other"


def test_the_import_reader_sees_what_it_must(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "import os.path, click.core\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "try:\n    import tensorrt\nexcept ImportError:\n    pass\n"
        "class A:\n    import cuda\n"
        "def f() -> None:\n    from rich.table import Table\n"
        "from . import sibling\n"
    )
    assert sorted(imports(source)) == [
        ("__future__", False),
        ("click", False),
        ("cuda", False),
        ("os", False),
        ("rich", True),
        ("tensorrt", False),
        ("typing", False),
    ]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the top-level package of each import in a file and whether it runs only when something is called.

    What stands under ``if TYPE_CHECKING:`` never runs and is left out; relative imports stay in the package.
    """

    def walk(node: ast.AST, *, at_use: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], at_use) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], at_use
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for otherwise in node.orelse:
                yield from walk(otherwise, at_use=at_use)
        else:
            inside = at_use or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                yield from walk(child, at_use=inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), at_use=False)


def pins() -> dict[str, list[str]]:
    """The lines of constraints.txt by the distribution they pin."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            found.setdefault(normalised(line.partition("==")[0]), []).append(line)
    return found


def normalised(name: str) -> str:
    """A distribution's name as PyPA compares it: Torch_Pruning is torch-pruning."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> set[str]:
    """The distributions that pyproject.toml names directly, in whatever extra.

    Python 3.10 has no tomllib, so the two tables are read as what they are: lists of quoted requirements.
    """
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    start, end = text.index("dependencies = ["), text.index("[project.scripts]")
    lines = (line.partition("#")[0] for line in text[start:end].splitlines())
    quoted = (item for line in lines for item in re.findall(r'"([^"]+)"', line))
    names = (match[0] for match in (re.match(r"[A-Za-z0-9._-]+", item) for item in quoted) if match)
    return {normalised(name) for name in names} - {"smart-edge"}


def test_every_direct_dependency_is_pinned() -> None:
    required = requirements()
    assert {"numpy", "torch", "onnxruntime", "vermin"} <= required, "the reader above lost its way"
    assert required - set(pins()) == UNPINNED


def test_every_pin_is_exact_and_each_python_finds_one() -> None:
    for name, lines in pins().items():
        shapes = [
            re.fullmatch(r'[a-z0-9-]+==[0-9][0-9a-z.]*(; python_version (>=|<) "3\.11")?', line) for line in lines
        ]
        assert all(shapes), f"{name}: expected name==version with a marker at most, got {lines}"
        markers = sorted(shape[2] or "" for shape in shapes if shape)
        # A lone "<" is what only Python 3.10 needs, such as tomli.
        assert markers in ([""], ["<"], ["<", ">="]), f"{name}: {lines}"
