from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smart_common.errors import MissingExtraError
from smart_runtime.bundle.manifest import Colour
from smart_runtime.errors import InputError
from smart_runtime.pictures import MAX_PIXELS, read_picture

ORIENTATION = 0x0112


def pixels(height: int, width: int, channels: int = 3) -> Any:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def saved(path: Path, array: Any, **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tiff"])
@pytest.mark.parametrize(("channels", "colour"), [(3, "RGB"), (1, "L")])
def test_a_picture_of_the_right_size_keeps_its_pixels(
    tmp_path: Path, suffix: str, channels: int, colour: Colour
) -> None:
    array = pixels(8, 6, channels)
    read = read_picture(saved(tmp_path / f"p{suffix}", array), height=8, width=6, colour=colour)
    assert read.dtype == np.uint8
    assert np.array_equal(read, array.reshape(8, 6, channels))


@pytest.mark.parametrize(
    ("size", "target", "offset"),
    [((12, 8), (8, 8), (2, 0)), ((8, 13), (8, 8), (0, 2)), ((8, 10), (8, 6), (0, 2)), ((9, 6), (8, 6), (0, 0))],
)
def test_where_one_side_fits_the_middle_is_cut(
    tmp_path: Path, size: tuple[int, int], target: tuple[int, int], offset: tuple[int, int]
) -> None:
    array = pixels(*size)
    read = read_picture(saved(tmp_path / "p.png", array), height=target[0], width=target[1], colour="RGB")
    top, left = offset
    assert np.array_equal(read, array[top : top + target[0], left : left + target[1]])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 40), (100, 7)])
def test_any_size_gives_the_size_asked_for(tmp_path: Path, height: int, width: int) -> None:
    file = saved(tmp_path / "p.png", pixels(57, 91))
    assert read_picture(file, height=height, width=width, colour="RGB").shape == (height, width, 3)


def test_scaling_down_averages(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200  # plain bilinear sampling would hit stripes; the mean is 100
    read = read_picture(saved(tmp_path / "p.png", stripes), height=8, width=8, colour="L")
    assert np.abs(read[1:-1, 1:-1].astype(int) - 100).max() <= 2


def test_upright_as_exif_says(tmp_path: Path) -> None:
    array = pixels(6, 8)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # taken with the camera turned: rotate by 90 degrees clockwise to show
    file = saved(tmp_path / "p.png", array, exif=exif)
    assert np.array_equal(read_picture(file, height=8, width=6, colour="RGB"), np.rot90(array, k=-1))


def test_colours_are_converted(tmp_path: Path) -> None:
    grey = saved(tmp_path / "grey.png", pixels(4, 4, 1))
    assert read_picture(grey, height=4, width=4, colour="RGB").shape == (4, 4, 3)
    alpha = saved(tmp_path / "alpha.png", pixels(4, 4, 4))
    assert np.array_equal(read_picture(alpha, height=4, width=4, colour="RGB"), pixels(4, 4, 4)[:, :, :3])
    assert read_picture(alpha, height=4, width=4, colour="L").shape == (4, 4, 1)


def floating_point(path: Path) -> None:
    Image.fromarray(np.zeros((8, 6), np.float32)).save(path, "TIFF")


def truncated(path: Path) -> None:
    saved(path, pixels(32, 32))
    path.write_bytes(path.read_bytes()[:-200])


def text(path: Path) -> None:
    path.write_text("not a picture", encoding="utf-8")


def postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n")


def bomb(path: Path) -> None:
    # 8-bit grey BMP headers are trusted for the size: a few bytes that claim 10000 x 10000 pixels
    saved(path, pixels(4, 4), format="BMP")
    data = bytearray(path.read_bytes())
    data[18:26] = (10_000).to_bytes(4, "little") * 2
    path.write_bytes(data)


def huge_bomb(path: Path) -> None:
    bomb(path)
    data = bytearray(path.read_bytes())
    data[18:26] = (100_000).to_bytes(4, "little") * 2
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "no picture at"),
        (lambda path: path.mkdir(), "is a folder; name the pictures in it"),
        (text, "cannot be decoded"),
        (truncated, "cannot be decoded"),
        (postscript, "cannot be decoded"),
        (floating_point, "expected 8 or 16 bits a channel"),
        (bomb, f"at most {MAX_PIXELS} pixels"),
        (huge_bomb, f"at most {MAX_PIXELS} pixels"),
    ],
    ids=["missing", "directory", "text", "truncated", "postscript", "floating point", "bomb", "huge bomb"],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, make: Any, said: str) -> None:
    make(tmp_path / "p.png")
    with pytest.raises(InputError, match=said) as caught:
        read_picture(tmp_path / "p.png", height=4, width=4, colour="RGB")
    assert "p.png" in str(caught.value)


def test_bytes_are_read_like_the_file_they_came_from(tmp_path: Path) -> None:
    path = saved(tmp_path / "p.png", pixels(13, 9))
    file = io.BytesIO(path.read_bytes())
    expected = read_picture(path, height=8, width=8, colour="RGB")
    assert np.array_equal(read_picture(file, height=8, width=8, colour="RGB"), expected)
    assert not file.closed


def nothing(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (nothing, "cannot be decoded"),
        (text, "cannot be decoded"),
        (truncated, "cannot be decoded"),
        (postscript, "cannot be decoded"),
        (floating_point, "expected 8 or 16 bits a channel"),
        (bomb, f"at most {MAX_PIXELS} pixels"),
    ],
    ids=["nothing", "text", "truncated", "postscript", "floating point", "bomb"],
)
def test_bytes_that_are_no_picture_are_refused(tmp_path: Path, make: Any, said: str) -> None:
    make(tmp_path / "p.png")
    with pytest.raises(InputError, match=said) as caught:
        read_picture(io.BytesIO((tmp_path / "p.png").read_bytes()), height=4, width=4, colour="RGB")
    assert "the file given" in str(caught.value)


def test_any_damage_to_bytes_gives_a_picture_or_our_own_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpg", "gif", "bmp", "tiff", "webp", "ppm"):
        whole = saved(tmp_path / f"p.{suffix}", pixels(16, 16)).read_bytes()
        for _ in range(40):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(damaged), 4):
                damaged[place] = rng.integers(0, 256)
            try:
                read = read_picture(io.BytesIO(damaged), height=8, width=8, colour="RGB")
            except InputError:
                continue
            assert read.shape == (8, 8, 3)


def test_a_network_that_is_not_for_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 or 3 channels"):
        read_picture(saved(tmp_path / "p.png", pixels(4, 4)), height=4, width=4, colour=None)


def test_missing_pillow_names_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'smart-edge\[image\]'"):
        read_picture(tmp_path / "p.png", height=4, width=4, colour="RGB")
