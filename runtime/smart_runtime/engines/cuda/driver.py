"""The functions of NVIDIA's driver that the runtime calls, by ctypes.

The driver API keeps its binary interface from one CUDA to the next: one table serves CUDA 11.4 (JetPack 5) to 13.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, c_char, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from smart_common.errors import MissingExtraError, shortened

LIBRARY = "libcuda.so.1"

# CUdeviceptr is c_uint64; CUcontext, CUstream, CUevent and addresses of the host are c_void_p. A name with _v2 is the
# one that cuda.h puts in place of the plain name; the plain one is an older function that takes 32-bit sizes.
SIGNATURES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "cuInit": (c_uint,),
        "cuDriverGetVersion": (POINTER(c_int),),
        "cuGetErrorName": (c_int, POINTER(c_char_p)),
        "cuDeviceGetCount": (POINTER(c_int),),
        "cuDeviceGet": (POINTER(c_int), c_int),
        "cuDeviceGetName": (POINTER(c_char), c_int, c_int),
        "cuDeviceGetUuid_v2": (POINTER(c_char), c_int),  # 16 bytes
        "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
        "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
        "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
        "cuCtxGetCurrent": (POINTER(c_void_p),),
        "cuCtxSetCurrent": (c_void_p,),
        "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
        "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
        "cuMemFree_v2": (c_uint64,),
        "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
        "cuMemFreeHost": (c_void_p,),
        "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
        "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
        "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
        "cuPointerGetAttribute": (c_void_p, c_int, c_uint64),
        "cuStreamCreate": (POINTER(c_void_p), c_uint),
        "cuStreamSynchronize": (c_void_p,),
        "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
        "cuStreamDestroy_v2": (c_void_p,),
        "cuEventCreate": (POINTER(c_void_p), c_uint),
        "cuEventRecord": (c_void_p, c_void_p),
        "cuEventSynchronize": (c_void_p,),
        "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
        "cuEventDestroy_v2": (c_void_p,),
    }
)
"""The types of the arguments of each function; all of them return a CUresult, an int."""

_OUT_OF_MEMORY = 2
# cuda.h says of these that the process "must be terminated and relaunched", or (214, 709, 999) leaves no way on.
STICKY = frozenset({214, 226, 700, 702, 709, 710, *range(714, 720), 721, 810, 911, 999})


class CudaError(Exception):
    """A function of the driver failed; it leaves no public function of the runtime.

    Attributes:
        function: Its name.
        code: The CUresult.
        name: The name of that, such as ``CUDA_ERROR_ILLEGAL_ADDRESS``.
        sticky: Whether every later call of this process fails as well (CUDA driver API, CUresult).
    """

    def __init__(self, function: str, code: int, name: str) -> None:
        super().__init__(f"{function}: {name} ({code})")
        self.function = function
        self.code = code
        self.name = name
        self.sticky = code in STICKY


class OutOfDeviceMemory(CudaError):  # noqa: N818  # a shortage
    """The driver has no memory left, on the device or of the host's that can be pinned."""


class Driver:
    """NVIDIA's driver library with the types of `SIGNATURES`.

    Raises:
        MissingExtraError: The library lacks one of the functions.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions: dict[str, Any] = {}
        for name, types in SIGNATURES.items():
            try:
                function = getattr(library, name)
            except AttributeError:
                raise MissingExtraError(
                    f"this NVIDIA driver is too old: it has no {name}; install one for CUDA 11.4 or newer"
                ) from None
            function.argtypes, function.restype = types, c_int
            self._functions[name] = function

    def call(self, function: str, *args: Any) -> None:
        """Call one of `SIGNATURES`.

        Raises:
            CudaError: It failed.
        """
        code = self._functions[function](*args)
        if code:
            raise self._error(function, code)

    def call_once(self, function: str, claim: list[Any]) -> bool:
        """Call ``function`` with the one item of ``claim`` and empty it; say False if another call was first.

        Taking the item and the call are one step of the interpreter: no second thread gets the item, and no Ctrl-C
        comes between the two.

        Raises:
            CudaError: It failed.
        """
        try:
            code = next(map(self._functions[function], map(claim.pop, (0,))))
        except IndexError:
            return False
        if code:
            raise self._error(function, code)
        return True

    def _error(self, function: str, code: int) -> CudaError:
        name = c_char_p()
        self._functions["cuGetErrorName"](code, ctypes.byref(name))
        text = (name.value or b"an error without a name").decode(errors="replace")
        return (OutOfDeviceMemory if code == _OUT_OF_MEMORY else CudaError)(function, code, text)


@lru_cache(maxsize=1)
def load_driver() -> Driver:
    """Return the driver of this machine, which is loaded once.

    Raises:
        MissingExtraError: It is not there, does not load, or is too old.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise MissingExtraError(
            f"no NVIDIA driver that works: {shortened(str(error))}; `smart-devices doctor` says what is missing"
        ) from None
    return Driver(library)
