"""Arrays of other libraries by DLPack: what a capsule says of the array in it.

A capsule is read and not consumed: while it is called ``dltensor`` its own destructor calls the deleter (Python array
API standard, "Data interchange mechanisms"), once and in the producer's code, when the last reference to it goes. So
whoever reads an array holds its capsule, and no Ctrl-C can come between taking the array over and letting go of it.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass
from typing import Any

CUDA, CUDA_MANAGED = 2, 13
"""Of DLDeviceType (dlpack.h): memory of a GPU, and memory that moves between it and the host."""

VERSION = (1, 0)
"""The newest version of DLPack that is read; what later ones of the same major version add stands behind it."""

_NAME, _VERSIONED_NAME = b"dltensor", b"dltensor_versioned"
_KINDS = ("int", "uint", "float", "opaque", "bfloat", "complex", "bool")  # DLDataTypeCode, from 0


# The structs of dlpack.h of DLPack 1.0, under their names there.
class DLDevice(Structure):
    """Where an array lies."""

    _fields_ = (("device_type", c_int32), ("device_id", c_int32))


class DLDataType(Structure):
    """What an array is made of."""

    _fields_ = (("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16))


class DLTensor(Structure):
    """An array; strides count elements."""

    _fields_ = (
        ("data", c_void_p),
        ("device", DLDevice),
        ("ndim", c_int32),
        ("dtype", DLDataType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class DLManagedTensor(Structure):
    """What a capsule called ``dltensor`` points to."""

    _fields_ = (("dl_tensor", DLTensor), ("manager_ctx", c_void_p), ("deleter", c_void_p))


class DLManagedTensorVersioned(Structure):
    """What a capsule called ``dltensor_versioned`` points to."""

    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("manager_ctx", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),  # such as that it may only be read, which is all that is done here
        ("dl_tensor", DLTensor),
    )


@dataclass(frozen=True)
class ForeignArray:
    """An array of another library.

    Attributes:
        address: Where its first element lies.
        shape: Its sizes.
        steps: Bytes from one element to the next along each of them; None if it is contiguous.
        dtype: What it is made of, such as ``float32``.
        kind: A DLDeviceType.
        ordinal: The number of the device.
    """

    address: int
    shape: tuple[int, ...]
    steps: tuple[int, ...] | None
    dtype: str
    kind: int
    ordinal: int


# Prototypes of our own: those of `ctypes.pythonapi` are everybody's.
_is_valid = ctypes.PYFUNCTYPE(c_int, ctypes.py_object, c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(c_void_p, ctypes.py_object, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))


def read_capsule(capsule: object) -> ForeignArray:
    """Return what ``capsule`` says of its array, which stays the producer's and there as long as the capsule.

    Raises:
        ValueError: It is no capsule of DLPack's, was consumed already, or is of a major version that is not known.
    """
    if _is_valid(capsule, _VERSIONED_NAME):
        managed = DLManagedTensorVersioned.from_address(_pointer(capsule, _VERSIONED_NAME))
        if managed.major != VERSION[0]:
            raise ValueError(f"it is of DLPack {managed.major}.{managed.minor}, and DLPack 1 was asked for")
        return _read(managed.dl_tensor)
    if _is_valid(capsule, _NAME):
        return _read(DLManagedTensor.from_address(_pointer(capsule, _NAME)).dl_tensor)
    raise ValueError("it is no capsule with an array in it")


def _read(tensor: Any) -> ForeignArray:
    dtype = tensor.dtype
    name = (
        f"{_KINDS[dtype.code]}{dtype.bits}" if dtype.code < len(_KINDS) else f"{dtype.bits} bits of type {dtype.code}"
    )
    item_bytes = -(-dtype.bits * dtype.lanes // 8)
    return ForeignArray(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[: tensor.ndim]),
        steps=tuple(item_bytes * stride for stride in tensor.strides[: tensor.ndim]) if tensor.strides else None,
        dtype=name if dtype.lanes == 1 else f"{name}x{dtype.lanes}",
        kind=tensor.device.device_type,
        ordinal=tensor.device.device_id,
    )
