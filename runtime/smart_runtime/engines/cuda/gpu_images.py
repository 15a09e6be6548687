"""Images that a caller has on the GPU already, in an array of another library: found, checked, and read in order.

They are copied into the lane, from one place of the GPU to another, and not read where they lie. That is one pass over
the input at the speed of the GPU's memory, of the many that a network makes over its layers; without it TensorRT would
have to be told another address in each call, wants more alignment than arrays promise, and has no room for the images
by which a batch that is too small is filled up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smart_common.errors import shortened
from smart_runtime.bundle.manifest import InputSpec
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.cuda.dlpack import CUDA, CUDA_MANAGED, VERSION, ForeignArray, read_capsule
from smart_runtime.engines.cuda.lane import Lane
from smart_runtime.errors import InputError

_FLOAT_BYTES = 4
_INTERFACE_VERSIONS = (2, 3)  # numba.readthedocs.io, "CUDA Array Interface"; those before 2 say less


@dataclass(frozen=True)
class GpuBatch:
    """Images in the GPU's memory, float32 (``images``, channels, height, width), contiguous, from ``address`` on."""

    address: int
    images: int
    image_bytes: int

    @property
    def size(self) -> int:
        """How many values they are."""
        return self.nbytes // _FLOAT_BYTES

    @property
    def nbytes(self) -> int:
        """How many bytes they are."""
        return self.images * self.image_bytes

    def __len__(self) -> int:
        """Return how many there are."""
        return self.images

    def __getitem__(self, part: slice) -> GpuBatch:
        """Return the images of a slice without a step."""
        start, stop, _ = part.indices(self.images)
        return GpuBatch(self.address + start * self.image_bytes, stop - start, self.image_bytes)


class GpuImages:
    """A caller's array on a GPU, for one call; from `open` to `release` the producer keeps its memory.

    Attributes:
        count: How many images there are, once it was opened.
    """

    def __init__(self, source: object, *, spec: InputSpec, place: int | Mapping[str, Any]) -> None:
        """Use `gpu_images`; ``place`` is the GPU's number by DLPack, or else the ``__cuda_array_interface__``."""
        self._source = source
        self._spec = spec
        self._place = place
        self._capsule: object = None
        self.count = 0

    def __str__(self) -> str:
        """Return what it is and where."""
        return f"{type(self._source).__name__} on {f'GPU {self._place}' if isinstance(self._place, int) else 'a GPU'}"

    def open(self, device: Device, lane: Lane) -> GpuBatch:
        """Return the images, which ``lane``'s stream may read: it waits for the producer's work by itself.

        Inside of `Device.use`. If it fails the stream may have something to wait for, and nothing else.

        Raises:
            InputError: They are not what the network takes, or lie on another GPU.
            EngineError: The device refuses.
        """
        if isinstance(self._place, int):
            self._check_place(self._place, device)  # first: the producer of another GPU is not told of our stream
            self._capsule = self._exported(lane.stream.handle)
            array = self._from_capsule()
        else:
            array = self._from_interface(self._place, device)
        self._check_place(array.ordinal, device)
        self._check(array)
        if not isinstance(self._place, int):
            _wait_for_producer(self._place, lane)
        self.count = array.shape[0]
        return GpuBatch(array.address, array.shape[0], _FLOAT_BYTES * math.prod(self._spec.shape))

    def release(self) -> None:
        """Let the producer have its array back; the GPU must have read it."""
        self._capsule = None

    def _exported(self, stream: int) -> object:
        source: Any = self._source
        try:
            try:
                return source.__dlpack__(stream=stream, max_version=VERSION)
            except TypeError:  # a producer from before DLPack 1.0
                return source.__dlpack__(stream=stream)
        except Exception as error:  # whatever the producer raises
            raise InputError(
                f"{self} does not give its images by DLPack: {shortened(str(error))}; pass images.detach()"
            ) from error

    def _from_capsule(self) -> ForeignArray:
        try:
            array = read_capsule(self._capsule)
            if array.kind in {CUDA, CUDA_MANAGED}:
                return array
            why = f"they are on a device of type {array.kind}"
        except ValueError as error:
            why = str(error)
        # Not within the handler: the traceback of the other error would hold the capsule.
        raise InputError(f"{self} does not give its images by DLPack: {why}; update the library that it is of")

    def _from_interface(self, interface: Mapping[str, Any], device: Device) -> ForeignArray:
        try:
            version, dtype = interface["version"], interface["typestr"]
            address, shape = int(interface["data"][0] or 0), tuple(map(int, interface["shape"]))
            strides = interface.get("strides")
            steps = None if strides is None else tuple(map(int, strides))
            wrong = (
                version not in _INTERFACE_VERSIONS
                or interface.get("mask") is not None
                or _stream(interface) == 0
                or (steps is not None and len(steps) != len(shape))
            )
        except (TypeError, ValueError, KeyError, IndexError, AttributeError):
            wrong = True
        if wrong:
            raise InputError(
                f"expected the __cuda_array_interface__ of {self} as versions 2 and 3 have it, without a mask and "
                "with no stream 0, got something else; pass an array of CuPy, Numba or PyTorch"
            )
        ordinal = device.ordinal_of(address)
        if ordinal is None and 0 not in shape:
            raise InputError(
                f"expected images in the GPU's memory, got the address {address:#x} in {self}, which the driver does "
                "not know; pass the array before it is freed"
            )
        return ForeignArray(
            address=address,
            shape=shape,
            steps=steps,
            dtype="float32" if dtype == "<f4" else shortened(str(dtype)),
            kind=CUDA,
            ordinal=device.ordinal if ordinal is None else ordinal,
        )

    def _check_place(self, ordinal: int, device: Device) -> None:
        if ordinal != device.ordinal:
            raise InputError(
                f"expected images on {device}, got {type(self._source).__name__} on GPU {ordinal}; copy them, "
                f"images.to('cuda:{device.ordinal}'), or load the model with EngineOptions(device={ordinal})"
            )

    def _check(self, array: ForeignArray) -> None:
        if array.dtype != "float32":
            remedy = "(images / 255).float()" if array.dtype in {"uint8", "|u1"} else "images.float()"
            raise InputError(
                f"expected float32 images in [0, 1] on the GPU, got {array.dtype}; convert them there, {remedy}, or in "
                "CuPy by images.astype('float32')"
            )
        one = self._spec.shape
        if array.shape[1:] != one or array.shape[0] < 1:
            expected = ", ".join(map(str, one))
            remedy = "add the batch dimension, images[None]" if array.shape == one else "resize and permute them there"
            raise InputError(
                f"expected float32 images (N, channels, height, width) = (N, {expected}) on the GPU, N at least 1, "
                f"got {array.shape}; {remedy}"
            )
        if not _is_contiguous(array):
            raise InputError(
                f"expected contiguous images on the GPU, got strides of {array.steps} bytes for {array.shape}; pass "
                "images.contiguous(), or in CuPy cupy.ascontiguousarray(images)"
            )


def gpu_images(images: object, *, spec: InputSpec) -> GpuImages | None:
    """Return ``images`` for one call of an engine on a GPU; None if they are no array that lies on one.

    Args:
        images: What has ``__dlpack__`` and ``__dlpack_device__``, or else ``__cuda_array_interface__``.
        spec: What the bundle's graphs take.
    """
    try:
        if hasattr(images, "__dlpack_device__"):
            kind, ordinal = images.__dlpack_device__()
            on_gpu = int(kind) in {CUDA, CUDA_MANAGED}
            return GpuImages(images, spec=spec, place=int(ordinal)) if on_gpu else None
        interface = getattr(images, "__cuda_array_interface__", None)
    except Exception:  # whatever the library raises: it has no array on a GPU to give
        return None
    return GpuImages(images, spec=spec, place=interface) if isinstance(interface, Mapping) else None


def _stream(interface: Mapping[str, Any]) -> int | None:
    """Return the stream on which the producer works, 0 for one that is forbidden; None if it need not be waited for."""
    stream = interface.get("stream") if interface["version"] == 3 else None
    return None if stream is None else max(0, int(stream))


def _wait_for_producer(interface: Mapping[str, Any], lane: Lane) -> None:
    stream = _stream(interface)
    if stream is not None:
        lane.start.record(stream)  # 1 and 2 are the driver's own names of the default streams
        lane.stream.wait(lane.start)


def _is_contiguous(array: ForeignArray) -> bool:
    if array.steps is None:
        return True
    expected = _FLOAT_BYTES
    for size, step in zip(reversed(array.shape), reversed(array.steps), strict=True):
        if size != 1 and step != expected:  # along a size of 1 there is no next one
            return False
        expected *= size
    return True
