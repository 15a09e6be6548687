"""Read a picture as the array that a bundle, or the image-folder data set, takes; and say what a bundle makes of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from smart_common.errors import MissingExtraError
from smart_runtime.bundle.manifest import Colour
from smart_runtime.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from smart_runtime.model import SmartModel

MAX_PIXELS = 2**26
"""A picture of more pixels is refused before it is decoded: a small file can claim any size."""

# Only what needs no outside program (Pillow hands EPS to Ghostscript) and what cameras and data sets use.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")


def read_picture(
    source: str | os.PathLike[str] | BinaryIO, *, height: int, width: int, colour: Colour | None
) -> npt.NDArray[np.uint8]:
    """Return the picture in the file ``source``: uint8, (height, width, channels), 3 channels for RGB and 1 for L.

    It is turned upright as its EXIF data says, converted to ``colour`` (an alpha channel is dropped), scaled so that
    it just covers height x width (bilinear, over the area of each pixel), and its middle is cut out. A picture that
    already has the size keeps its pixels. Of an animation the first frame is read.

    Args:
        source: A PNG, JPEG, BMP, GIF, PPM, TIFF or WebP file: its name, or a binary file that can seek and stays open,
            such as ``io.BytesIO`` around bytes that came over the network.
        height: Height to return.
        width: Width to return.
        colour: ``RGB``, ``L`` (grey), or None, a bundle's word for "no pictures", which is refused here.

    Raises:
        InputError: No such file, not a picture, damaged, of more than `MAX_PIXELS` pixels or more than 8 bits a
            channel, or ``colour`` is None.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image  # noqa: PLC0415  # an optional library is imported where it is used
    except ImportError as error:
        raise MissingExtraError(
            "reading pictures needs Pillow, which is not installed; pip install 'smart-edge[image]'"
        ) from error
    if colour is None:
        raise InputError(
            "expected a network for pictures (1 or 3 channels), got one for other arrays; pass it arrays from Python"
        )
    name = "the file given"
    if isinstance(source, str | os.PathLike):
        name = repr(str(Path(source)))
        if not Path(source).is_file():
            raise InputError(f"no picture at {name}; check the name")
    try:
        with Image.open(source, formats=FORMATS) as file:
            upright = _decoded(file, name=name, colour=colour)
        picture = _cut(upright, height=height, width=width, resample=Image.Resampling.BILINEAR)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them trip over
        raise InputError(
            f"expected a picture ({', '.join(FORMATS)}) in {name}, got a file that cannot be decoded; "
            "check that it is whole"
        ) from error
    pixels = np.array(picture, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def classify(model: SmartModel, picture: Path, *, top: int) -> dict[str, Any]:
    """Return the ``top`` classes of one picture, best first and of equals the earlier one, as ``--json`` prints them.

    Raises:
        InputError: The file is no picture.
        EngineError: The engine failed.
    """
    spec = model.manifest.input
    image = read_picture(picture, height=spec.height, width=spec.width, colour=model.manifest.preprocessing.colour)
    result = model.run(image[None])
    scores = result.scores[0]
    exponents = np.exp(scores.astype(np.float64) - scores.max())  # softmax; the shift keeps exp from overflowing
    probabilities = exponents / exponents.sum()
    predictions = [
        {
            "class": model.class_names[index],
            "index": int(index),
            "score": float(scores[index]),
            "probability": float(probabilities[index]),
        }
        for index in np.argsort(-scores, kind="stable")[:top]
    ]
    return {"picture": str(picture), "predictions": predictions, "latency_ms": result.latency_ms}


def _decoded(file: Image.Image, *, name: str, colour: Colour) -> Image.Image:
    """Decode an opened picture, upright and in ``colour``."""
    from PIL import ImageOps  # noqa: PLC0415  # an optional library is imported where it is used

    if file.width * file.height > MAX_PIXELS:
        raise _too_large(name)
    if file.mode.startswith(("I", "F")):  # Pillow would clip, not scale, these to 8 bits
        raise InputError(
            f"expected 8 bits a channel in {name}, got Pillow's mode {file.mode!r}; convert it to 8 bits first"
        )
    return ImageOps.exif_transpose(file).convert(colour)


def _cut(picture: Image.Image, *, height: int, width: int, resample: Image.Resampling) -> Image.Image:
    """Scale so that the picture covers height x width with one side exact, then cut out the middle."""
    scale = max(height / picture.height, width / picture.width)
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    if picture.size != size:
        picture = picture.resize(size, resample)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    if picture.size == (width, height):
        return picture
    return picture.crop((left, top, left + width, top + height))


def _too_large(name: str) -> InputError:
    return InputError(f"expected a picture of at most {MAX_PIXELS} pixels, got more in {name}; scale it down first")
