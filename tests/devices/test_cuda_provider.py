"""Which of CUDA's libraries ONNX Runtime's provider lacks: read from a file that is linked to such names as theirs."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from devices.boards import BOARDS
from devices.test_doctor import on, python
from smart_devices import EngineStatus, engine_status
from smart_devices.shared_library import needed_libraries

NEEDED = ("libcublas.so.13", "libcurand.so.10", "libcuda.so.1")
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"


def tool(name: str) -> str:
    """The path of a program that compilers come with; the test is skipped without it."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}, which compilers come with")
    return found


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library without a function, linked to `NEEDED`."""
    folder = tmp_path_factory.mktemp("linked")
    link = [tool("gcc"), "-shared", "-x", "c", "/dev/null", "-x", "none", "-o"]
    for name in NEEDED:
        subprocess.run([*link, folder / name, f"-Wl,-soname,{name}"], check=True)
    provider = folder / "provider.so"
    subprocess.run([*link, provider, "-Wl,--no-as-needed", *(folder / name for name in NEEDED)], check=True)
    return provider


@pytest.fixture
def packages(linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Python packages with the provider; the system itself has none of its libraries."""
    monkeypatch.setattr("smart_devices.gpu_engines._loads", lambda _: False)
    (tmp_path / PROVIDER).parent.mkdir(parents=True)
    shutil.copy(linked, tmp_path / PROVIDER)
    return tmp_path


def status(packages: Path, board: str = "PC with a card") -> EngineStatus:
    here = python(modules={"onnxruntime": str(packages / "onnxruntime/__init__.py")})
    return engine_status("onnxruntime-cuda", around=on(BOARDS[board], packages / "root", here))


def install(packages: Path, folder: str, *names: str) -> None:
    (packages / "nvidia" / folder / "lib").mkdir(parents=True)
    for name in names:
        (packages / "nvidia" / folder / "lib" / name).touch()


def test_what_is_missing_is_named_with_the_remedy(packages: Path) -> None:
    assert status(packages) == EngineStatus(
        "onnxruntime-cuda",
        available=False,
        reason="libcublas.so.13, libcurand.so.10 and libcudnn.so.9 are missing, which its CUDA provider needs",
        install="pip install 'onnxruntime-gpu[cuda,cudnn]'",
    )
    install(packages, "cu13", "libcublas.so.13", "libcurand.so.10")
    assert str(status(packages).reason).startswith("libcudnn.so.9 is missing, which")
    assert status(packages, "Orin NX 16GB").install == "sudo apt install nvidia-jetpack"
    install(packages, "cudnn", "libcudnn.so.9")
    assert status(packages).available


@pytest.mark.parametrize(
    ("loads", "missing"), [(lambda _: True, None), (lambda name: name != "libcurand.so.10", "libcurand.so.10")]
)
def test_what_the_system_has_is_not_missing(
    packages: Path, monkeypatch: pytest.MonkeyPatch, loads: Callable[[str], bool], missing: str | None
) -> None:
    monkeypatch.setattr("smart_devices.gpu_engines._loads", loads)
    assert (status(packages).reason or "").partition(" is missing, which")[0] == (missing or "")


def test_the_file_is_read_as_the_linkers_own_tool_reads_it(linked: Path) -> None:
    listed = subprocess.run([tool("objdump"), "-p", linked], capture_output=True, text=True, check=True).stdout
    found = needed_libraries(linked)
    assert found == tuple(line.split()[1] for line in listed.splitlines() if line.split()[:1] == ["NEEDED"])
    assert set(NEEDED) <= set(found)


def test_no_file_is_too_strange_to_be_read(linked: Path, tmp_path: Path) -> None:
    whole = linked.read_bytes()
    strange, dice = tmp_path / "strange", random.Random(0)  # noqa: S311
    for content in (b"", whole[:50], whole[:200], whole[: len(whole) // 2]):
        strange.write_bytes(content)
        assert needed_libraries(strange) == ()
    for _ in range(200):
        changed = bytearray(whole)
        for _ in range(4):
            changed[dice.randrange(1000)] = dice.randrange(256)
        strange.write_bytes(changed)
        assert all(isinstance(name, str) for name in needed_libraries(strange))
    assert needed_libraries(tmp_path) == needed_libraries(tmp_path / "nothing") == ()
