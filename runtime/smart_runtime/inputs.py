"""Check what a user passes to the model and give the engine what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from smart_runtime.bundle.manifest import InputSpec
from smart_runtime.engines.engine import Batch
from smart_runtime.errors import InputError

NumpyImages: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.uint8]


class _GpuArray(Protocol):
    @property
    def shape(self) -> Any:
        """The sizes; policies may look at them, a call takes what the protocol says."""


class DlpackArray(_GpuArray, Protocol):
    """An array on a GPU, as PyTorch and CuPy have it (Python array API standard, "Data interchange mechanisms")."""

    def __dlpack__(self, *, stream: Any) -> Any:
        """Return a capsule with the array, which ``stream`` may read from then on."""

    def __dlpack_device__(self) -> tuple[Any, Any]:
        """Return the type and the number of its device."""


class CudaArray(_GpuArray, Protocol):
    """An array on a GPU, as Numba has it (Numba, "CUDA Array Interface", versions 2 and 3)."""

    @property
    def __cuda_array_interface__(self) -> Mapping[str, Any]:
        """Where it lies, and what it is."""


Images: TypeAlias = NumpyImages | DlpackArray | CudaArray

_FLOAT32 = np.dtype(np.float32)
_UINT8 = np.dtype(np.uint8)
_FULL_SCALE = np.float32(255)
_BITS = np.dtype(np.uint32)
_BITS_OF_ONE = int(np.float32(1).view(np.uint32))


def prepare(images: NumpyImages, spec: InputSpec) -> Batch:
    """Return ``images`` as an engine takes them: float32, (N, channels, height, width), C-contiguous, in [0, 1].

    Args:
        images: float32 (N, channels, height, width) in [0, 1], or uint8 (N, height, width, channels), which is
            divided by 255. N is at least 1. Where there is one channel, (N, height, width) will do for both.
        spec: What the bundle's graphs take.

    Returns:
        For float32 that is already contiguous the caller's own array, else a new one.

    Raises:
        InputError: Another type, dtype, shape or range, or a value that is not a number.
    """
    if not isinstance(images, np.ndarray):
        raise InputError(
            f"expected a NumPy array of images, got {type(images).__name__}; convert it, with numpy.asarray for one"
        )
    if images.ndim == 3 and spec.channels == 1 and images.shape[1:] == (spec.height, spec.width):
        images = images[:, None] if images.dtype == _FLOAT32 else images[..., None]
    if images.dtype == _FLOAT32:
        _check_shape(images, spec.shape, spec)
        _check_range(images)
        return np.ascontiguousarray(images)
    if images.dtype == _UINT8:
        channels, height, width = spec.shape
        _check_shape(images, (height, width, channels), spec)
        # Transposed as bytes, then divided in one contiguous pass: the cheapest way of a dozen that were timed, by a
        # fifth. A division as in training, since the product with 1 / 255 differs in the last bit.
        planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        batch: Batch = np.divide(planes, _FULL_SCALE, dtype=np.float32)
        return batch
    remedy = ".astype(numpy.float32)" if images.dtype.kind == "f" else "pass uint8 pixels or float32 in [0, 1]"
    raise InputError(f"expected images of dtype float32 or uint8, got {images.dtype}; {remedy}")


def _check_shape(images: NumpyImages, one: tuple[int, int, int], spec: InputSpec) -> None:
    if images.shape[1:] == one and images.shape[0] >= 1:
        return
    channels, height, width = spec.shape
    layouts = {
        "(N, channels, height, width)": (channels, height, width),
        "(N, height, width, channels)": (height, width, channels),
    }
    wanted, other = layouts if images.dtype == _FLOAT32 else reversed(layouts)
    if images.shape == one:
        remedy = "add the batch dimension, images[None]"
    elif images.shape[1:] == one:
        remedy = "pass at least one image"
    elif images.shape[1:] == layouts[other]:
        order = (0, 3, 1, 2) if images.dtype == _FLOAT32 else (0, 2, 3, 1)
        remedy = f"transpose it, images.transpose{order}"
    else:
        remedy = "resize and crop the images, as smart_runtime.pictures.read_picture does"
    expected = ", ".join(str(size) for size in one)
    raise InputError(f"expected {images.dtype} images {wanted} = (N, {expected}), got {images.shape}; {remedy}")


def _check_range(images: NumpyImages) -> None:
    """Raise InputError unless every value is in [0, 1].

    This stands before every call, which may take 50 us only. Read as unsigned integers, the values from 0 to 1 are
    those up to the bits of 1, in order, while larger ones, NaN and all with a sign lie above (IEEE 754, binary32): one
    reduction of integers, half the time of the smallest and the largest float.
    """
    values = images.reshape(-1) if images.flags.c_contiguous else images
    if np.maximum.reduce(values.view(_BITS), axis=None) <= _BITS_OF_ONE:
        return
    # Something is wrong, or there is a -0.0. Both are NaN if any value is, and no comparison holds for a NaN.
    low, high = np.minimum.reduce(values, axis=None), np.maximum.reduce(values, axis=None)
    if not (low >= 0 and high <= 1):
        raise _range_error(float(low), float(high))


def _range_error(low: float, high: float) -> InputError:
    if np.isnan(low) or np.isnan(high):
        return InputError("expected float32 values in [0, 1], got NaN; look where the images come from")
    remedy = "divide by 255 or pass uint8 pixels" if high > 2 and low >= 0 else "clip or rescale them"
    return InputError(
        f"expected float32 values in [0, 1] (normalisation is inside the graph), got [{low:.9g}, {high:.9g}]; {remedy}"
    )
