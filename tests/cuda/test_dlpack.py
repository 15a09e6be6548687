"""What is read of DLPack's capsules: those of NumPy and PyTorch, and DLPack's own header."""

from __future__ import annotations

import ctypes
import importlib.util
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cuda.stand_in import compile_c
from smart_runtime.bundle.manifest import InputSpec
from smart_runtime.engines.cuda import dlpack
from smart_runtime.engines.cuda.dlpack import read_capsule
from smart_runtime.engines.cuda.gpu_images import gpu_images
from trt.gpu_arrays import rename

VERSIONS = pytest.mark.parametrize("version", [None, (1, 0)])
CPU = 1
KINDS = ("Int", "UInt", "Float", "OpaqueHandle", "Bfloat", "Complex", "Bool")
STRUCTS: tuple[type[ctypes.Structure], ...] = (
    dlpack.DLDevice, dlpack.DLDataType, dlpack.DLTensor, dlpack.DLManagedTensor, dlpack.DLManagedTensorVersioned,
)  # fmt: skip

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "contiguous": np.zeros((2, 3, 4, 5), np.float32),
    "a part": np.zeros((4, 3, 4, 5), np.float32)[1:3],
    "steps": np.zeros((2, 4, 5, 3), np.float64).transpose(0, 3, 1, 2)[..., ::2],
    "pixels": np.zeros((7,), np.uint8),
    "no dimensions": np.zeros((), np.int16),
    "none": np.zeros((0, 3), np.complex64),
    "flags": np.zeros((2,), bool),
}


@VERSIONS
@pytest.mark.parametrize("case", ARRAYS)
def test_numpys_own_capsules_are_read(case: str, version: Any) -> None:
    array = ARRAYS[case]
    read = read_capsule(array.__dlpack__(max_version=version))
    assert (read.address, read.shape, read.kind, read.ordinal) == (array.ctypes.data, array.shape, CPU, 0)
    assert read.steps in {array.strides, None}
    assert read.dtype == ("bool8" if array.dtype == bool else array.dtype.name)


@VERSIONS
def test_pytorchs_own_capsules_are_read(version: Any) -> None:
    torch = pytest.importorskip("torch", reason="needs torch, to read its capsules")
    for tensor in (torch.zeros(4, 3, 2, 2)[1:], torch.zeros(1, 3, 4, 4).to(memory_format=torch.channels_last)):
        read = read_capsule(tensor.__dlpack__(max_version=version))
        assert (read.address, read.shape, read.dtype) == (tensor.data_ptr(), tuple(tensor.shape), "float32")
        assert read.steps is not None
        for size, step, stride in zip(tensor.shape, read.steps, tensor.stride(), strict=True):
            assert size == 1 or step == 4 * stride
    spec = InputSpec(name="image", channels=3, height=2, width=2)
    for tensor in (torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2, device="meta")):
        assert gpu_images(tensor, spec=spec) is None


@VERSIONS
def test_an_array_stays_as_long_as_its_capsule_and_no_longer(version: Any) -> None:
    class Array(np.ndarray[Any, Any]):
        """One that can be referred to weakly."""

    array = np.zeros((2, 3), np.float32).view(Array)
    seen = weakref.ref(array)
    capsule: Any = array.__dlpack__(max_version=version)
    del array
    read_capsule(capsule)
    assert seen() is not None
    del capsule
    assert seen() is None


def test_what_is_no_capsule_or_was_consumed_is_refused() -> None:
    capsule = np.zeros(3).__dlpack__()
    assert rename(capsule, b"used_dltensor") == 0
    for wrong in (capsule, None, 5, object()):
        with pytest.raises(ValueError, match="no capsule with an array in it"):
            read_capsule(wrong)
    assert rename(capsule, b"dltensor") == 0  # so that NumPy frees it


def test_structs_are_those_of_dlpacks_header(tmp_path: Path) -> None:
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        pytest.skip("needs torch, which brings DLPack's header")
    header = Path(torch.origin).parent / "include" / "ATen" / "dlpack.h"
    numbers = {"kDLCUDA": dlpack.CUDA, "kDLCUDAManaged": dlpack.CUDA_MANAGED, "DLPACK_MAJOR_VERSION": dlpack.VERSION[0]}
    numbers |= {f"kDL{name}": code for code, name in enumerate(KINDS)}
    for struct in STRUCTS:
        numbers[f"sizeof({struct.__name__})"] = ctypes.sizeof(struct)
        for field, *_ in struct._fields_:
            theirs = {"major": "version.major", "minor": "version.minor"}.get(field, field)
            place: Any = getattr(struct, field)
            numbers[f"offsetof({struct.__name__}, {theirs})"] = place.offset
            numbers[f"sizeof((({struct.__name__} *)0)->{theirs})"] = place.size
    checks = [f'_Static_assert({name} == {number}, "{name}");' for name, number in numbers.items()]
    source = tmp_path / "layout.c"
    source.write_text("\n".join(["#include <stddef.h>", f'#include "{header}"', *checks]))
    compile_c(tmp_path / "layout.o", "-c", source)
