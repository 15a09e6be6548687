"""The table of functions against NVIDIA's own declarations, and NVIDIA's own binding on the driver without a device."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from ctypes import POINTER, c_char, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path

import pytest

from cuda.stand_in import StandInDriver, compile_c, headers
from smart_common.errors import MissingExtraError
from smart_runtime.engines.cuda import device, driver, resources
from smart_runtime.engines.cuda.driver import SIGNATURES, STICKY, CudaError, Driver, OutOfDeviceMemory, load_driver

# How each type of C is written for ctypes. An enum is an int, as is a CUdevice.
C_TYPES = {
    "int": c_int, "unsigned int": c_uint, "size_t": c_size_t, "CUdevice": c_int, "CUdeviceptr": c_uint64,
    "CUcontext": c_void_p, "CUstream": c_void_p, "CUevent": c_void_p, "CUresult": c_int,
    "CUdevice_attribute": c_int, "CUpointer_attribute": c_int,
    "int*": POINTER(c_int), "CUdevice*": POINTER(c_int), "size_t*": POINTER(c_size_t), "float*": POINTER(c_float),
    "char*": POINTER(c_char), "char**": POINTER(c_char_p), "CUuuid*": POINTER(c_char), "void*": c_void_p,
    "void**": POINTER(c_void_p), "CUcontext*": POINTER(c_void_p), "CUstream*": POINTER(c_void_p),
    "CUevent*": POINTER(c_void_p), "CUdeviceptr*": POINTER(c_uint64),
}  # fmt: skip


def declared(text: str) -> dict[str, tuple[str, ...]]:
    """The types of the arguments of every function in cuda.h or cydriver.pxd; of two of one name those of the first."""
    found: dict[str, tuple[str, ...]] = {}
    for name, arguments in re.findall(r"CUresult (?:CUDAAPI )?(cu\w+)\(([^)]*)\)", text):
        found.setdefault(name, tuple(map(c_type, arguments.split(","))))
    return found


def c_type(argument: str) -> str:
    words = re.sub(r"\bconst\b|\bstruct\b", "", argument).replace("*", " * ").split()
    stars = "*" * words.count("*")
    names = [word for word in words if word != "*"]
    return " ".join(names[:-1] if len(names) > 1 else names) + stars


def declarations() -> Iterator[Path]:
    yield headers() / "cuda.h"
    bindings = importlib.util.find_spec("cuda.bindings")
    if bindings is None or bindings.origin is None:
        pytest.skip("needs NVIDIA's binding: pip install cuda-bindings")
    yield Path(bindings.origin).with_name("cydriver.pxd")


def test_every_signature_is_that_of_nvidia() -> None:
    for file in declarations():
        known = declared(file.read_text(encoding="utf-8"))
        assert len(known) > 300, f"the reader above lost its way in {file}"
        for name, types in SIGNATURES.items():
            theirs = known.get(name) or known[name.removesuffix("_v2")]
            assert tuple(C_TYPES[one] for one in theirs) == types, f"{name} in {file}: {theirs}"


def test_names_are_those_that_a_program_in_c_calls() -> None:
    """cuda.h renames functions; whoever calls the old name gets one that takes other types."""
    renamed = dict(re.findall(r"#define (cu\w+) +(cu\w+)\n", (headers() / "cuda.h").read_text(encoding="utf-8")))
    for name in SIGNATURES:
        plain = name.removesuffix("_v2")
        # From CUDA 12.8 on cuda.h has a second version of this one, which takes the same and reports more errors.
        if plain in renamed and name != "cuEventElapsedTime":
            assert renamed[plain] == name


def test_numbers_are_those_of_cuda_h(tmp_path: Path) -> None:
    numbers = {
        "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT": device._MULTIPROCESSOR_COUNT,
        "CU_DEVICE_ATTRIBUTE_INTEGRATED": device._INTEGRATED,
        "CU_DEVICE_ATTRIBUTE_COMPUTE_MODE": device._COMPUTE_MODE,
        "CU_COMPUTEMODE_PROHIBITED": device._PROHIBITED,
        "CUDA_ERROR_NOT_INITIALIZED": device._NOT_INITIALIZED,
        "CUDA_ERROR_DEVICE_UNAVAILABLE": device._UNAVAILABLE,
        "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": device._CAPABILITY_MAJOR,
        "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": device._CAPABILITY_MINOR,
        "CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL": device._DEVICE_ORDINAL,
        "CUDA_ERROR_INVALID_VALUE": device._INVALID_VALUE,
        "CUDA_ERROR_OUT_OF_MEMORY": driver._OUT_OF_MEMORY,
        "CU_STREAM_NON_BLOCKING": resources._STREAM_NON_BLOCKING,
        "CU_EVENT_DEFAULT": resources._EVENT_DEFAULT,
        "CU_EVENT_DISABLE_TIMING": resources._EVENT_DISABLE_TIMING,
        "sizeof(CUuuid)": 16,
    }
    checks = "\n".join(f'_Static_assert({name} == {number}, "{name}");' for name, number in numbers.items())
    source = tmp_path / "numbers.c"
    source.write_text(f"#include <cuda.h>\n{checks}\n")
    compile_c(tmp_path / "numbers.o", "-c", source)


def test_what_cuda_h_calls_the_end_of_a_process_is_sticky() -> None:
    text = (headers() / "cuda.h").read_text(encoding="utf-8")
    codes = re.findall(r"/\*\*((?:(?!\*/).)*)\*/\s*(CUDA_ERROR_\w+)\s*= (\d+)", text, re.DOTALL)
    assert len(codes) > 80, "the reader above lost its way"
    ends = {int(code) for comment, _, code in codes if "terminated" in comment and "relaunched" in comment}
    assert {700, 719} <= ends <= STICKY
    names = {int(code): name for _, name, code in codes}
    assert {names[code] for code in STICKY - ends} == {
        "CUDA_ERROR_ECC_UNCORRECTABLE", "CUDA_ERROR_ASSERT", "CUDA_ERROR_CONTEXT_IS_DESTROYED", "CUDA_ERROR_UNKNOWN",
    }  # fmt: skip


def test_an_error_says_what_failed(stand_in: StandInDriver) -> None:
    loaded = load_driver()
    assert loaded is load_driver()
    with pytest.raises(CudaError, match=r"^cuCtxSetCurrent: CUDA_ERROR_NOT_INITIALIZED \(3\)$") as caught:
        loaded.call("cuCtxSetCurrent", None)
    assert (caught.value.function, caught.value.code, caught.value.sticky) == ("cuCtxSetCurrent", 3, False)
    for code, kind, sticky in [(2, OutOfDeviceMemory, False), (700, CudaError, True), (12345, CudaError, False)]:
        stand_in.fail(0, code)
        with pytest.raises(kind) as caught:
            loaded.call("cuInit", 0)
        assert (caught.value.code, caught.value.sticky) == (code, sticky)
    assert caught.value.name == "an error without a name"


def test_what_is_claimed_is_spent_once(stand_in: StandInDriver) -> None:
    loaded = load_driver()
    claim: list[object] = [0]
    assert loaded.call_once("cuInit", claim)
    assert not loaded.call_once("cuInit", claim)
    stand_in.fail(0, 1)
    claim = [0]
    with pytest.raises(CudaError, match="INVALID_VALUE"):
        loaded.call_once("cuInit", claim)
    assert claim == []
    assert stand_in.trace() == ["cuInit", "cuInit"]


def test_a_missing_driver_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver) -> None:
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-of-nobody.so.1")
    with pytest.raises(
        MissingExtraError, match=r"^no NVIDIA driver that works: libcuda-of-nobody.*smart-devices doctor"
    ):
        load_driver()
    with pytest.raises(MissingExtraError, match=r"too old: it has no cuInit; install one for CUDA 11\.4 or newer"):
        Driver(ctypes.CDLL(None))


BINDINGS = """
from cuda.bindings import driver as cu

def ok(result):
    assert result[0] == cu.CUresult.CUDA_SUCCESS, result
    return result[1] if len(result) == 2 else result[1:]

ok(cu.cuInit(0))
assert ok(cu.cuDriverGetVersion()) == 12060
device = ok(cu.cuDeviceGet(0))
assert ok(cu.cuDeviceGetName(64, device)).startswith(b"Stand-in")
context = ok(cu.cuDevicePrimaryCtxRetain(device))
assert cu.cuMemAlloc(16)[0] == cu.CUresult.CUDA_ERROR_INVALID_CONTEXT
ok(cu.cuCtxSetCurrent(context))
memory, stream = ok(cu.cuMemAlloc(1000)), ok(cu.cuStreamCreate(0))
start, end = ok(cu.cuEventCreate(0)), ok(cu.cuEventCreate(0))
there, back = bytearray(b"ab" * 500), bytearray(1000)
ok(cu.cuEventRecord(start, stream))
import ctypes
address = lambda one: ctypes.addressof(ctypes.c_char.from_buffer(one))
ok(cu.cuMemcpyHtoDAsync(memory, address(there), 1000, stream))
ok(cu.cuMemcpyDtoHAsync(address(back), memory, 1000, stream))
ok(cu.cuEventRecord(end, stream))
ok(cu.cuStreamSynchronize(stream))
assert back == there and ok(cu.cuEventElapsedTime(start, end)) >= 0
free, total = ok(cu.cuMemGetInfo())
assert total - free == 1000
for result in (cu.cuEventDestroy(start), cu.cuEventDestroy(end), cu.cuStreamDestroy(stream), cu.cuMemFree(memory)):
    ok(result)
assert cu.cuMemFree(memory)[0] == cu.CUresult.CUDA_ERROR_INVALID_VALUE
ok(cu.cuDevicePrimaryCtxRelease(device))
print("ran")
"""


def test_nvidias_own_binding_runs_on_the_driver_without_a_device(stand_in: StandInDriver) -> None:
    if importlib.util.find_spec("cuda.bindings") is None:
        pytest.skip("needs NVIDIA's binding: pip install cuda-bindings")
    done = subprocess.run(
        [sys.executable, "-c", BINDINGS], env=stand_in.environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
