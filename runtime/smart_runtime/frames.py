"""Bring what people have, camera frames, Pillow images and files, to the form that a bundle's graphs take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol, TypeAlias, Union, cast

import numpy as np
import numpy.typing as npt

from smart_runtime.bundle.manifest import Manifest
from smart_runtime.errors import InputError
from smart_runtime.pictures import check_pillow, fitted, read_picture

if TYPE_CHECKING:
    from PIL import Image


ChannelOrder: TypeAlias = Literal["RGB", "BGR"]
Picture: TypeAlias = Union[str, "os.PathLike[str]", BinaryIO, npt.NDArray[np.uint8], "Image.Image"]


class HasManifest(Protocol):
    """A `Bundle` or a `SmartModel`."""

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        ...


def preprocess(
    images: Picture | Sequence[Picture], bundle: HasManifest, *, channel_order: ChannelOrder = "RGB"
) -> npt.NDArray[np.uint8]:
    """Return one or more pictures as the bundle's network takes them: uint8 (N, height, width, channels).

    Each is turned upright as its EXIF data says, converted to the bundle's colours, scaled so that it just covers
    height x width and cut to its middle: what an image folder went through before training. A frame that already has
    the size and the colours keeps its pixels, and needs no Pillow.

    Args:
        images: A frame, uint8 (H, W, 3), (H, W, 4) with alpha, or (H, W) grey, of any size; several of one size as
            uint8 (N, H, W, 3); a Pillow image; a file's name, or ``io.BytesIO`` around a file's bytes; or a list
            of these.
        bundle: What is to take them: a `Bundle` or a `SmartModel`.
        channel_order: ``BGR`` for arrays as OpenCV reads them; files and Pillow images say their own.

    Raises:
        InputError: None of these, an unreadable file, or a network that does not take pictures.
        MissingExtraError: Pillow is needed and not installed.

    Example::

        scores = model(preprocess(frame, model, channel_order="BGR"))  # frame as cv2.VideoCapture.read() gives it
    """
    if channel_order not in ("RGB", "BGR"):
        raise InputError(f"unknown channel order {channel_order!r:.40}; there are RGB and BGR")
    several = isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)
    listed = cast("Sequence[Picture]", images if several else [images])
    if len(listed) == 0:
        raise InputError("expected one or more pictures, got none")
    return np.stack([_one(image, bundle.manifest, channel_order) for image in listed])


def _one(image: Picture, manifest: Manifest, channel_order: ChannelOrder) -> npt.NDArray[np.uint8]:
    spec, colour = manifest.input, manifest.preprocessing.colour
    if isinstance(image, str | os.PathLike) or hasattr(image, "read"):
        return read_picture(cast("str | BinaryIO", image), height=spec.height, width=spec.width, colour=colour)
    if isinstance(image, np.ndarray):
        frame = _frame(image, channel_order, channels=spec.channels)
        if frame.shape == (spec.height, spec.width, spec.channels):
            return frame
    if colour is None:
        raise InputError(
            f"expected arrays uint8 ({spec.height}, {spec.width}, {spec.channels}) for a network that takes no "
            f"pictures, got {_said(image)}"
        )
    check_pillow()
    from PIL import Image  # noqa: PLC0415  # an optional library is imported where it is used

    if isinstance(image, np.ndarray):
        image = Image.fromarray(frame.squeeze(2) if frame.shape[2] == 1 else frame)
    if not isinstance(image, Image.Image):
        raise InputError(f"expected a frame (H, W, 3) of uint8, a Pillow image or a file's name, got {_said(image)}")
    if 0 in image.size:
        raise InputError(f"expected a picture with pixels, got one of {image.width}x{image.height}")
    try:
        return fitted(image, height=spec.height, width=spec.width, colour=colour, name="the picture given")
    except (OSError, SyntaxError, ValueError) as error:  # of one that was opened and not decoded yet
        raise InputError("the picture given cannot be decoded; check that its file is whole") from error


def _frame(array: npt.NDArray[np.uint8], channel_order: ChannelOrder, *, channels: int) -> npt.NDArray[np.uint8]:
    """Return an array as uint8 (H, W, channels) in RGB order."""
    frame = array[..., None] if array.ndim == 2 else array
    if array.dtype != np.uint8 or frame.ndim != 3 or 0 in frame.shape:
        raise InputError(f"expected a frame (H, W, 3) or (H, W) of uint8, got {_said(array)}; convert it first")
    if frame.shape[2] not in {1, 3, 4, channels}:
        first = ", whose channels come first; transpose it to (H, W, 3)" if frame.shape[0] in {1, 3} else ""
        raise InputError(f"expected a frame (H, W, 3), (H, W, 4) or (H, W), got {_said(array)}{first}")
    if channel_order == "BGR" and frame.shape[2] >= 3:
        frame = np.concatenate([frame[..., 2::-1], frame[..., 3:]], axis=2)
    return frame


def _said(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__
