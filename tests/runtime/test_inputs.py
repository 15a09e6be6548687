from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.bundles import as_float, random_images
from smart_runtime.bundle.manifest import InputSpec
from smart_runtime.errors import InputError
from smart_runtime.inputs import prepare

SPEC = InputSpec(name="image", channels=3, height=6, width=4)


def test_all_256_values_become_exactly_their_255th() -> None:
    spec = InputSpec(name="image", channels=1, height=16, width=16)
    values = np.arange(256, dtype=np.uint8)
    expected = (np.arange(256, dtype=np.float32) / np.float32(255)).astype(np.float32)
    assert np.array_equal(prepare(values.reshape(1, 16, 16, 1), spec).ravel(), expected)


def test_uint8_becomes_what_training_makes_of_it() -> None:
    torch = pytest.importorskip("torch", reason="needs torch, to compare with training")
    pixels = np.arange(256, dtype=np.uint8).reshape(2, 8, 8, 2)
    spec = InputSpec(name="image", channels=2, height=8, width=8)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255).numpy()
    assert prepare(pixels, spec).tobytes() == np.ascontiguousarray(expected).tobytes()


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(6), st.just(4), st.just(3))))
def test_uint8_is_transposed_and_scaled(images: Any) -> None:
    before = images.copy()
    batch = prepare(images, SPEC)
    assert batch.flags.c_contiguous
    assert batch.dtype == np.float32
    assert np.array_equal(batch, as_float(images))
    assert np.array_equal(images, before)


def test_contiguous_float32_is_not_copied() -> None:
    images = as_float(random_images(2))
    assert prepare(images, SPEC) is images


@pytest.mark.parametrize("step", [-1, 2])
def test_strided_arrays_arrive_contiguous(step: int) -> None:
    images = random_images(5)[::step]
    floats = as_float(random_images(5))[::step]
    assert np.array_equal(prepare(images, SPEC), as_float(images))
    assert np.array_equal(prepare(floats, SPEC), floats)
    assert prepare(floats, SPEC).flags.c_contiguous


def test_the_ends_of_the_range_are_inside() -> None:
    images = np.zeros((1, 3, 6, 4), np.float32)
    images[0, 0] = 1
    images[0, 1] = -0.0
    prepare(images, SPEC)


@given(
    hnp.arrays(
        np.uint32,
        (1, 3, 6, 4),
        elements=st.one_of(
            st.integers(0, 2**32 - 1),
            st.sampled_from([0x3F800000, 0x3F800001, 0x3F7FFFFF, 0x80000000, 0x80000001, 0x7FC00000, 0xFFC00000]),
        ),
        fill=st.integers(0, 0x3F800000),
    ),
    st.booleans(),
)
def test_any_bits_are_in_range_or_refused(bits: Any, strided: bool) -> None:
    """The range is checked on the bits; here each value's own comparison says what must come out."""
    images = bits.view(np.float32)[:, :, ::-1] if strided else bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        valid = all(0 <= value <= 1 for value in images.ravel().tolist())
    if valid:
        assert np.array_equal(prepare(images, SPEC), images)
    else:
        with pytest.raises(InputError, match=r"expected float32 values in \[0, 1\]"):
            prepare(images, SPEC)


GOOD = np.full((2, 3, 6, 4), 0.5, np.float32)


def with_value(value: float) -> Any:
    images = GOOD.copy()
    images[1, 2, 3, 1] = value
    return images


WRONG: dict[str, tuple[Any, str]] = {
    "list": (GOOD.tolist(), "expected a NumPy array of images, got list"),
    "float64": (GOOD.astype(np.float64), r"got float64; .astype\(numpy.float32\)"),
    "other byte order": (GOOD.astype(">f4"), "got >f4"),
    "int64": (GOOD.astype(np.int64), "got int64; pass uint8"),
    "one image": (GOOD[0], r"got \(3, 6, 4\); add the batch dimension, images\[None\]"),
    "one uint8 image": (random_images(1)[0], r"got \(6, 4, 3\); add the batch dimension"),
    "no image": (GOOD[:0], "pass at least one image"),
    "NHWC float32": (GOOD.transpose(0, 2, 3, 1), r"transpose it, images.transpose\(0, 3, 1, 2\)"),
    "NCHW uint8": (random_images(2).transpose(0, 3, 1, 2), r"transpose it, images.transpose\(0, 2, 3, 1\)"),
    "other size": (np.zeros((1, 3, 8, 8), np.float32), r"= \(N, 3, 6, 4\), got \(1, 3, 8, 8\); resize"),
    "other channels": (np.zeros((1, 1, 6, 4), np.float32), "resize"),
    "scalar": (np.float32(0.5) + np.zeros((), np.float32), "expected"),
    "flat": (np.zeros(72, np.float32), r"got \(72,\)"),
    "NaN": (with_value(float("nan")), "got NaN"),
    "infinite": (with_value(float("inf")), r"got \[0.5, inf\]"),
    "negative": (with_value(-1e-6), "clip or rescale"),
    "above one": (with_value(1.0000001), "clip or rescale"),
    "0 to 255": (GOOD * 510, "divide by 255"),
}


@pytest.mark.parametrize(("images", "said"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_refused_with_a_remedy(images: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        prepare(images, SPEC)


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.uint8, np.int32, np.bool_]),
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6),
    )
)
def test_whatever_is_passed_the_engine_gets_valid_input(images: Any) -> None:
    try:
        batch = prepare(images, SPEC)
    except InputError:
        return
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    assert batch.shape[1:] == SPEC.shape
    assert 0 <= batch.min() <= batch.max() <= 1
