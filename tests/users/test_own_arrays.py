"""What users with arrays in an npz file reported: they were read as something else, or refused without a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from smart_train.data.load import load_data
from smart_train.errors import DataError

Array = npt.NDArray[Any]

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 9, 10, 3), dtype=np.uint8)
LABELS = np.arange(60) % 4


def save(path: Path, **changes: Any) -> str:
    content: dict[str, Any] = {
        "train_images": IMAGES,
        "train_labels": LABELS,
        "test_images": IMAGES[:8],
        "test_labels": LABELS[:8],
    }
    np.savez(path / "own.npz", **(content | changes))
    return f"npz:{path / 'own.npz'}"


def refusal(path: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_data(save(path, **changes))
    return str(caught.value)


def test_labels_from_1_to_k_are_not_a_class_more(tmp_path: Path) -> None:
    said = refusal(tmp_path, train_labels=LABELS + 1, test_labels=LABELS[:8] + 1)
    assert "start at 1" in said
    assert said.endswith("; save train_labels - 1 and test_labels - 1")
    named = refusal(tmp_path, train_labels=LABELS + 1, test_labels=LABELS[:8] + 1, class_names=np.array(list("abcd")))
    assert named == said


def test_a_class_that_nothing_is_trained_on_is_named(tmp_path: Path) -> None:
    gap = LABELS + (LABELS >= 2)
    said = refusal(tmp_path, train_labels=gap, test_labels=gap[:8])
    assert "no training image of class 2 in" in said
    remedy = said.partition("from 0: ")[2].partition(", and so on")[0]
    mended = eval(remedy, {"np": np, "train_labels": gap})  # noqa: S307  # what the message tells the user to type
    assert mended.tolist() == LABELS.tolist()
    said = refusal(tmp_path, class_names=np.array(["a", "b", "c", "d", "\u06cc\u200c\u06cc"]))
    assert "no training image of class \u06cc\u200c\u06cc in" in said
    assert said.endswith("; add some")


FORMS: dict[str, tuple[Array, int]] = {  # and by how much the mended images may differ
    "channels first": (IMAGES.transpose(0, 3, 1, 2), 0),
    "one channel first": (IMAGES[..., :1].transpose(0, 3, 1, 2), 0),
    "0 to 1": (IMAGES / 255, 0),
    "0 to 1 in half precision": ((IMAGES / 255).astype(np.float16), 1),
    "0 to 1 with channels first": ((IMAGES / 255).astype(np.float32).transpose(0, 3, 1, 2), 0),
    "0 to 255": (IMAGES.astype(np.float32), 0),
    "true and false": (IMAGES[..., :1].repeat(3, axis=-1) > 127, 255),
    "int64": (IMAGES.astype(np.int64), 0),
    "16 bits": (IMAGES.astype(np.uint16) * 257, 0),
    "normalised": ((IMAGES / 255 - 0.45) / 0.22, 0),
}


@pytest.mark.parametrize(("images", "difference"), FORMS.values(), ids=FORMS)
def test_the_message_says_how_numpy_mends_images_of_another_form(
    tmp_path: Path, images: Array, difference: int
) -> None:
    said = refusal(tmp_path, train_images=images, test_images=images[:8])
    assert "expected training images in" in said
    words = {"np": np, "train_images": images, "mean": 0.45, "std": 0.22}
    mended = eval(said.partition("save ")[2], words)  # noqa: S307  # what the message tells the user to type
    whole = IMAGES[..., : mended.shape[3]]
    assert mended.shape == whole.shape
    assert np.abs(mended.astype(int) - whole).max() <= difference
    load_data(save(tmp_path, train_images=mended, test_images=mended[:8]))
    assert "expected test images in" in refusal(tmp_path, train_images=mended, test_images=images[:8])


def test_images_that_are_no_numbers_have_no_such_remedy(tmp_path: Path) -> None:
    nowhere = np.full(IMAGES.shape, np.nan)
    assert "not finite" in refusal(tmp_path, train_images=nowhere)
    assert "convert them" in refusal(tmp_path, train_images=IMAGES.astype(str))


def test_grey_images_need_no_axis_for_their_channel(tmp_path: Path) -> None:
    grey = IMAGES[..., 0]
    flat = load_data(save(tmp_path, train_images=grey, test_images=grey[:8]))
    whole = load_data(save(tmp_path, train_images=grey[..., None], test_images=grey[:8, ..., None]))
    assert flat.shape == (1, 9, 10)
    assert flat.digest == whole.digest
