"""Arrays of another library on a GPU that is a stand-in, in plain ctypes: they give themselves by either protocol."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_int64, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.bundles import as_float, random_images
from smart_runtime import BatchRange, EngineOptions
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.cuda.dlpack import (
    CUDA,
    DLDataType,
    DLDevice,
    DLManagedTensor,
    DLManagedTensorVersioned,
    DLTensor,
)

IMAGES = as_float(random_images(17))
OPTIONS = EngineOptions(batch=BatchRange(3, 4, 8))
"""Of the model that is shown them: batches that are too small, that fit, and that come in pieces."""

NAME, VERSIONED_NAME = b"dltensor", b"dltensor_versioned"
FLOAT = DLDataType(2, 32, 1)

_api = ctypes.pythonapi
_Destructor = ctypes.PYFUNCTYPE(None, c_void_p)  # of a capsule without a reference to it: no py_object
_new = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, c_char_p, _Destructor)(("PyCapsule_New", _api))
_valid = ctypes.PYFUNCTYPE(c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", _api))
_pointer = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", _api))
rename = ctypes.PYFUNCTYPE(c_int, ctypes.py_object, c_char_p)(("PyCapsule_SetName", _api))

_alive: dict[int, tuple[Any, GpuArray]] = {}  # the struct that a capsule points to, and whose it is


def _destroy(capsule: int) -> None:
    """Call the deleter unless a consumer has renamed the capsule, as the array API standard has it."""
    for name in (NAME, VERSIONED_NAME):
        if _valid(capsule, name):
            _, array = _alive.pop(_pointer(capsule, name))
            array.delete()


_destructor = _Destructor(_destroy)


class GpuLibrary:
    """A library that works on a GPU, on a stream of its own."""

    def __init__(self, ordinal: int = 0) -> None:
        self.device = Device.shared(ordinal)
        self.stream, self.event = self.device.stream(), self.device.event()

    def array(self, content: npt.NDArray[Any], **attributes: Any) -> GpuArray:
        """A `GpuArray` of ``content``, which is there once the library's stream has come so far."""
        memory, staging = self.device.memory(content.nbytes + 256), self.device.pinned(max(content.nbytes, 1))
        one = GpuArray(self, memory, content.shape, **attributes)
        staging.array[: content.nbytes] = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
        with self.device.use():
            self.stream.copy_in(memory.address + one.byte_offset, staging.address, content.nbytes)
            self.event.record(self.stream)
        one.staging = staging
        return one

    def close(self) -> None:
        self.stream.release()
        self.event.release()


class GpuArray:
    """An array by DLPack. With ``frees`` its deleter frees its memory, as for one to which nobody refers any more."""

    def __init__(
        self,
        library: GpuLibrary,
        memory: Any,
        shape: tuple[int, ...],
        *,
        strides: tuple[int, ...] | None = None,
        dtype: DLDataType = FLOAT,
        byte_offset: int = 0,
        kind: int = CUDA,
        ordinal: int | None = None,
        major: int = 1,
        frees: bool = False,
        fails: bool = False,
    ) -> None:
        self.library, self.memory, self.byte_offset, self.dtype = library, memory, byte_offset, dtype
        self.major, self.frees, self.fails = major, frees, fails
        self.kind, self.ordinal = kind, library.device.ordinal if ordinal is None else ordinal
        self.shape = shape
        self._shape = (c_int64 * len(shape))(*shape)
        self._strides = None if strides is None else (c_int64 * len(strides))(*strides)
        self.given, self.deleted = 0, 0
        self.staging: Any = None

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.kind, self.ordinal)

    def __dlpack__(self, *, stream: int, max_version: tuple[int, int] | None = None) -> object:
        return self._give(stream, versioned=max_version is not None)

    def _give(self, stream: int, *, versioned: bool) -> object:
        if self.fails:
            raise BufferError("no tensor that requires grad")
        library = self.library
        library.event.record(library.stream)
        library.device.driver.call("cuStreamWaitEvent", stream, library.event.handle, 0)
        tensor = DLTensor(
            self.memory.address, DLDevice(self.kind, self.ordinal), len(self.shape), self.dtype, self._shape,
            self._strides, self.byte_offset,
        )  # fmt: skip
        managed = DLManagedTensorVersioned(self.major, 0, dl_tensor=tensor) if versioned else DLManagedTensor(tensor)
        address = ctypes.addressof(managed)
        _alive[address] = (managed, self)
        self.given += 1
        return _new(address, VERSIONED_NAME if versioned else NAME, _destructor)

    def delete(self) -> None:
        self.deleted += 1
        if self.frees:
            self.free()

    def release(self) -> None:
        """Free its memory once the library has done its work in it."""
        with self.library.device.use():
            self.library.stream.synchronize()
        self.free()

    def free(self) -> None:
        """Free its memory now."""
        self.memory.release()
        self.staging.release()


class OldGpuArray(GpuArray):
    """One of a library from before DLPack 1.0."""

    def __dlpack__(self, *, stream: int) -> object:  # type: ignore[override]
        return self._give(stream, versioned=False)


class InterfaceArray:
    """The same array by ``__cuda_array_interface__`` alone; ``entries`` take the place of what is right."""

    def __init__(self, array: GpuArray, **entries: Any) -> None:
        self._array = array
        self.shape = array.shape
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": "<f4",
            "data": (array.memory.address + array.byte_offset, True),
            "version": 3,
            "strides": None,
            "stream": array.library.stream.handle,
        } | entries


def old(array: GpuArray) -> GpuArray:
    """Let an array be one of an older library."""
    array.__class__ = OldGpuArray
    return array


def finished(array: GpuArray, **entries: Any) -> InterfaceArray:
    """The interface of an array whose stream has done its work, with ``entries`` of the test's."""
    with array.library.device.use():
        array.library.stream.synchronize()
    return InterfaceArray(array, **entries)


PROTOCOLS: dict[str, Callable[[GpuArray], Any]] = {
    "DLPack 1": lambda array: array,
    "DLPack before 1": old,
    "interface 3": InterfaceArray,
    "interface 3, no stream": lambda array: finished(array, stream=None),
    "interface 2": lambda array: finished(array, version=2),
}
