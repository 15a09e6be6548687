from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from reference.corruptions import gaussian_blur
from smart_common.errors import MissingExtraError
from smart_eval import corruptions
from smart_eval.cli import main as smart_eval
from smart_eval.corruptions import CORRUPTIONS, SET, Corruption, OwnCorruptions, measure_corruptions, steps
from smart_eval.measure import Run, chunk_seed
from smart_train import load_checkpoint
from smart_train.accuracy import to_tensor
from smart_train.data.load import load_data
from train.networks import image_set

Pixels = npt.NDArray[np.uint8]
KINDS = {corruption.name: corruption for corruption in CORRUPTIONS}
SEVERITIES = range(1, 6)

pictures = npst.arrays(
    np.uint8,
    st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2, 3, 4])),
)
kinds = pytest.mark.parametrize("corruption", CORRUPTIONS, ids=list(KINDS))


def levels(first: Pixels, second: Pixels) -> npt.NDArray[np.int64]:
    """By how many of 255 levels two images differ, pixel by pixel."""
    return np.abs(first.astype(np.int64) - second.astype(np.int64))


@kinds
@given(images=pictures, severity=st.sampled_from(SEVERITIES), seed=st.integers(0, 2**56))
def test_what_comes_out_is_an_image_like_what_went_in(
    corruption: Corruption, images: Pixels, severity: int, seed: int
) -> None:
    before = images.copy()
    found = corruption(images, severity=severity, seed=seed)
    assert found.shape == images.shape
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(corruption(images, severity=severity, seed=seed), found)


@pytest.mark.parametrize("name", ["gaussian-noise", "brightness"])
@given(images=pictures, seed=st.integers(0, 2**56))
def test_no_pixel_comes_back_at_a_higher_severity(name: str, images: Pixels, seed: int) -> None:
    moved = [levels(images, KINDS[name](images, severity=severity, seed=seed)) for severity in SEVERITIES]
    for less, more in pairwise(moved):
        assert (less <= more).all()


@given(images=pictures)
def test_a_wider_blur_is_further_away(images: Pixels) -> None:
    """By the cosine transform: each frequency is damped more; but for rounding, half a level a pixel on either side."""
    moved = [levels(images, KINDS["gaussian-blur"](images, severity=severity, seed=0)) for severity in SEVERITIES]
    norms = [float(np.sqrt((one**2).sum())) for one in moved]
    for less, more in pairwise(norms):
        assert less <= more + np.sqrt(images.size)


@kinds
def test_each_severity_moves_real_images_further(corruption: Corruption) -> None:
    images = load_data("digits").test.images[:64]
    moved = [float((levels(images, corruption(images, severity=s, seed=0)) ** 2).mean()) for s in SEVERITIES]
    assert moved[0] > 0
    assert all(1.2 * less < more for less, more in pairwise(moved)), moved


@given(images=pictures, severity=st.sampled_from(SEVERITIES))
def test_blur_is_the_sampled_gaussian(images: Pixels, severity: int) -> None:
    blur = KINDS["gaussian-blur"]
    expected = 255 * gaussian_blur(images / 255, blur.strengths[severity - 1])
    found = blur(images, severity=severity, seed=0)
    assert np.abs(found - expected).max() <= 0.5 + 1e-3, "rounded to a level, after sums in float32"


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_deviation_that_is_said(severity: int) -> None:
    noise = KINDS["gaussian-noise"]
    std, grey = noise.strengths[severity - 1], np.full((1, 200, 200, 1), 0.5, np.float32)
    found = noise.change(grey, std, np.random.default_rng(0)) - grey
    assert found.std() == pytest.approx(std, rel=0.02), "40,000 draws: the error is 0.4%"
    assert abs(found.mean()) < 0.02 * std


def test_noise_differs_by_seed_alone() -> None:
    images = image_set().test.images
    noise = KINDS["gaussian-noise"]
    assert (noise(images, severity=3, seed=0) != noise(images, severity=3, seed=1)).any()


def test_without_pillow_it_names_the_extra(monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"smart-edge\[image\]"):
        KINDS["jpeg"](image_set().test.images, severity=1, seed=0)
    done = run(str(trained), "--corruptions")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1


def test_each_chunk_has_random_numbers_of_its_own(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def change(images: npt.NDArray[np.float32], _: float, generator: np.random.Generator) -> npt.NDArray[np.float32]:
        drawn.append(int(generator.integers(2**60)))
        return images

    kind = Corruption("noted", "nothing", (1, 2, 3, 4, 5), change)
    monkeypatch.setattr(corruptions, "CORRUPTIONS", (kind,))
    split = image_set().test
    measure_corruptions(load_checkpoint(trained).net, OwnCorruptions(split), run=Run(seed=4, chunk=8))
    chunks = range(-(-len(split) // 8))
    assert drawn == [int(np.random.default_rng(chunk_seed(4, "noted", i)).integers(2**60)) for i in chunks] * 5


def test_a_path_is_judged_on_the_corrupted_images(trained: Path) -> None:
    net, split = load_checkpoint(trained).net, image_set().test
    found = measure_corruptions(net, OwnCorruptions(split), run=Run(chunk=8))
    assert [(one.corruption.name, one.severity) for one in found] == [(name, s) for name in KINDS for s in SEVERITIES]
    brightest = next(one for one in found if (one.corruption.name, one.severity) == ("brightness", 5))
    white = KINDS["brightness"](split.images, severity=5, seed=0)
    for path in net.path_names:
        model = net.path(path).eval()
        with torch.no_grad():
            scores = model(to_tensor(torch.from_numpy(white)))
        assert (scores.argmax(dim=1).numpy() == split.labels).sum() == brightest.accuracy(path).correct


def run(*arguments: str) -> Result:
    return CliRunner().invoke(smart_eval, arguments)


def test_the_document_has_every_kind_severity_and_path(trained: Path, data: str, tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    options = [str(trained), "--data", data, "--attack", "clean", "--corruptions", "--chunk", "8"]
    done = run(*options, "-o", str(output), "--json")
    assert done.exit_code == 0, done.output
    model: dict[str, Any] = json.loads(done.stdout)["models"][0]
    assert len(model["corruptions"]) == steps(OwnCorruptions(image_set().test)) == 20
    for row in model["corruptions"]:
        assert row["set"] == SET
        assert row["parameter"] == KINDS[row["name"]].strengths[row["severity"] - 1]
        assert row["paths"].keys() == model["paths"].keys()
        for figures in row["paths"].values():
            low, high = figures["interval"]
            assert low <= figures["accuracy"] <= high
            assert figures["accuracy"] == figures["correct"] / model["examples"]
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[::2]))
    again = run(*options, "-o", str(output), "--resume", "--json")
    assert json.loads(again.stdout)["models"] == [model]
    assert sorted(output.read_text().splitlines(keepends=True)) == sorted(lines)
    table = run(*options)
    for words in (SET, "gaussian-blur", "jpeg"):
        assert words in table.stdout
