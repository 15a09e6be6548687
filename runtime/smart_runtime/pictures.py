"""Bring pictures, camera frames and files, to the form that a bundle, or the image-folder data set, takes."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from smart_common.errors import MissingExtraError
from smart_runtime.bundle.manifest import Colour
from smart_runtime.errors import InputError
from smart_runtime.picture_scans import scanned
from smart_runtime.picture_tags import check_exif, check_tags

if TYPE_CHECKING:
    from PIL import Image


_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH = 0x0100

MAX_PIXELS = 2**26
"""A picture of more pixels is refused before it is decoded: a small file can claim any size."""

MAX_LENGTH = 2**16
"""Of a side: a picture of sixty million rows of one pixel takes a decoder half a minute."""

# What Pillow does with some forms takes far more for each pixel than with the others.
_MAX_WEBP_PIXELS = 2**25  # it keeps five copies of four bytes a pixel
_MAX_PLAIN_BYTES = 2**22  # of a PPM file written in digits, which are read in Python
_MAX_SCANNED = 2**30  # pixels times scans of a JPEG: each scan passes over all of them, and real ones have ten

# Only what needs no outside program (Pillow hands EPS to Ghostscript) and what cameras and data sets use.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp")
"""What files of these formats are called: in a folder, only files with one of these suffixes are pictures."""


def check_pillow(what: str = "reading pictures") -> None:
    """Raise MissingExtraError unless Pillow is installed, which ``what`` needs."""
    try:
        import PIL  # noqa: F401, PLC0415  # an optional library is imported where it is used
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs Pillow, which is not installed; pip install 'smart-edge[image]'"
        ) from error


def read_picture(
    source: str | os.PathLike[str] | BinaryIO, *, height: int, width: int, colour: Colour | None
) -> npt.NDArray[np.uint8]:
    """Return the picture in the file ``source``: uint8, (height, width, channels), 3 channels for RGB and 1 for L.

    It is turned upright as its EXIF data says, converted to ``colour`` (an alpha channel is dropped), scaled so that
    it just covers height x width (bilinear, over the area of each pixel), and its middle is cut out. A picture that
    already has the size keeps its pixels. Of an animation the first frame is read, of 16 bits the upper ones.

    Args:
        source: A PNG, JPEG, BMP, GIF, PPM, TIFF or WebP file: its name, or a binary file that can seek and stays open,
            such as ``io.BytesIO`` around bytes that came over the network.
        height: Height to return.
        width: Width to return.
        colour: ``RGB``, ``L`` (grey), or None, a bundle's word for "no pictures", which is refused here.

    Raises:
        InputError: No such file, not a picture, damaged, of more than `MAX_PIXELS` pixels or more than 16 bits a
            channel, or ``colour`` is None.
        MissingExtraError: Pillow is not installed.
    """
    check_pillow()
    from PIL import Image  # noqa: PLC0415  # an optional library is imported where it is used

    if colour is None:
        raise InputError(
            "expected a network for pictures (1 or 3 channels), got one for other arrays; pass it arrays from Python"
        )
    name = "the file given"
    if isinstance(source, str | os.PathLike):
        name = repr(str(Path(source)))
        if Path(source).is_dir():
            raise InputError(f"{name} is a folder; name the pictures in it")
        if not Path(source).is_file():
            raise InputError(f"no picture at {name}; check the name")
    try:
        with opened(source, name=name) as file:
            return fitted(file, height=height, width=width, colour=colour, name=name)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them trip over
        raise InputError(
            f"expected a picture ({', '.join(FORMATS)}) in {name}, got a file that cannot be decoded; "
            "check that it is whole"
        ) from error


def list_pictures(names: Iterable[str | os.PathLike[str]]) -> tuple[list[Path], dict[Path, str]]:
    """Return the files that ``names`` stand for: a file itself, a folder's pictures, or what a pattern matches.

    Folders are looked through to the bottom, hidden ones and hidden files left out, and their pictures told by their
    suffix; files that are named need none.

    Returns:
        The files, and of each folder without pictures and pattern without matches a sentence that says so.
    """
    found: list[Path] = []
    nothing: dict[Path, str] = {}
    for name in map(Path, names):
        if name.is_dir():
            here = sorted(path for path in name.rglob("*") if is_picture(path, within=name))
            if not here:
                nothing[name] = f"no pictures in {str(name)!r}; {', '.join(SUFFIXES)} are read"
        elif glob.has_magic(str(name)) and not name.exists():
            matches = glob.glob(str(name), recursive=True)  # noqa: PTH207  # Path.glob takes no absolute patterns
            here = sorted(path for path in map(Path, matches) if not path.is_dir())
            if not here:
                nothing[name] = f"nothing matches {str(name)!r}; check the pattern"
        else:
            here = [name]
        found += here
    return found, nothing


def is_picture(path: Path, *, within: Path) -> bool:
    """Whether ``path`` is a file with a picture's suffix that nothing hides: a dot before its name or a folder's."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(within).parts)
    return not hidden and path.suffix.lower() in SUFFIXES and path.is_file()


def fitted(picture: Image.Image, *, height: int, width: int, colour: Colour, name: str) -> npt.NDArray[np.uint8]:
    """Return an opened ``picture``, which messages call ``name``, as `read_picture` returns a file's."""
    pixels = np.array(_cut(_decoded(picture, name=name, colour=colour), height=height, width=width), dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


@contextmanager
def opened(source: str | os.PathLike[str] | BinaryIO, *, name: str) -> Iterator[Image.Image]:
    """Open a picture of `FORMATS`, whose header alone is read; what its tags claim is bounded before Pillow reads it.

    Raises:
        InputError: The tags claim more than the file has. Pillow and the system raise their own errors.
    """
    from PIL import Image  # noqa: PLC0415  # an optional library is imported where it is used

    with Path(source).open("rb") if isinstance(source, str | os.PathLike) else nullcontext(source) as given:
        file = given if given.seekable() else io.BytesIO(given.read())
        check_tags(file, name=name)
        with Image.open(file, formats=FORMATS) as picture:
            yield picture


def upright_size(picture: Image.Image, *, name: str) -> tuple[int, int]:
    """Return (height, width) that an opened picture has once it is turned upright; `check_size` comes first."""
    tags = getattr(picture, "tag_v2", {})  # of a TIFF file, whose sides Pillow may have exchanged already
    if _orientation(picture, name=name) >= 5 and tags.get(_TIFF_WIDTH, picture.width) == picture.width:
        return picture.width, picture.height
    return picture.height, picture.width


def _orientation(picture: Image.Image, *, name: str) -> int:
    """Return how an opened picture lies, 1 to 8 as EXIF counts: from 5 on its sides are exchanged.

    Ask `check_size` first: to look for EXIF data behind the pixels of a PNG, Pillow decodes them.
    """
    if picture.format == "PNG" and "exif" not in picture.info:
        picture.load()
    block, profile = picture.info.get("exif"), picture.info.get("Raw profile type exif")
    if block is None and profile is not None:  # as ImageMagick writes it, in a PNG's text
        block = bytes.fromhex("".join(profile.split("\n")[3:]))
    if block is not None:
        check_exif(block, name=name)
    found: int = picture.getexif().get(_EXIF_ORIENTATION, 1)
    return found


def is_grey(picture: Image.Image) -> bool:
    """Whether an opened picture has no colours; its pixels are not decoded."""
    return picture.mode in {"1", "L", "LA"} or _has_16_bits(picture)


def check_size(picture: Image.Image, *, name: str) -> None:
    """Raise InputError if to decode an opened ``picture``, which messages call ``name``, would take too much."""
    pixels = picture.width * picture.height
    most = _MAX_WEBP_PIXELS if picture.format == "WEBP" else MAX_PIXELS
    if pixels > most:
        raise _too_large(name, most=most)
    if max(picture.size) > MAX_LENGTH:
        raise InputError(f"expected a picture of at most {MAX_LENGTH} pixels a side, got more in {name}; cut it first")
    tiles = getattr(picture, "tile", ())  # none once it is decoded
    if any(tile[0] == "ppm_plain" for tile in tiles) and _size_of(picture) > _MAX_PLAIN_BYTES:
        raise InputError(
            f"{name} is a PPM file of more than {_MAX_PLAIN_BYTES} bytes in digits; save it in binary form"
        )
    if tiles and scanned(picture, enough=_MAX_SCANNED) > _MAX_SCANNED:
        raise InputError(f"{name} has too many scans of JPEG for its size; save it again with one scan")


def _size_of(picture: Image.Image) -> int:
    file, place = picture.fp, picture.fp.tell()  # type: ignore[attr-defined]  # of an opened one
    size: int = file.seek(0, os.SEEK_END)
    file.seek(place)
    return size


def _has_16_bits(picture: Image.Image) -> bool:
    return picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")  # the latter: Pillow 10


def _decoded(file: Image.Image, *, name: str, colour: Colour) -> Image.Image:
    """Decode an opened picture, upright and in ``colour``."""
    from PIL import Image, ImageOps  # noqa: PLC0415  # an optional library is imported where it is used

    check_size(file, name=name)
    turned = _orientation(file, name=name) != 1
    upright = ImageOps.exif_transpose(file) if turned else file  # which would be a copy of all pixels
    if _has_16_bits(file):  # Pillow would clip them to 8 bits; white is 65535 here and 255 there
        upright = Image.fromarray(((np.asarray(upright).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif file.mode.startswith(("I", "F")):  # these have no white
        raise InputError(
            f"expected 8 or 16 bits a channel in {name}, got Pillow's mode {file.mode!r}; convert it to 8 bits first"
        )
    elif "transparency" in upright.info:  # from a palette straight to RGB Pillow warns of it
        upright = upright.convert("RGBA")
    return upright if upright.mode == colour else upright.convert(colour)


def _cut(picture: Image.Image, *, height: int, width: int) -> Image.Image:
    """Scale so that the picture covers height x width with one side exact, and return the middle of that.

    Only the part of the picture that the middle shows is scaled: all of a very long one would need gigabytes.
    """
    from PIL import Image  # noqa: PLC0415  # an optional library is imported where it is used

    scale = max(height / picture.height, width / picture.width)
    covering = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    if picture.size == covering:
        return picture.crop((left, top, left + width, top + height))
    across, down = picture.width / covering[0], picture.height / covering[1]  # pixels of the picture to one of ours
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    return picture.resize((width, height), Image.Resampling.BILINEAR, box=box)


def _too_large(name: str, *, most: int = MAX_PIXELS) -> InputError:
    return InputError(f"expected a picture of at most {most} pixels, got more in {name}; scale it down first")
