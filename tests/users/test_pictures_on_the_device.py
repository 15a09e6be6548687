"""What users with pictures, folders and cameras reported of the device side: each failed before it was mended."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import smart_runtime
from runtime.bundles import CLASS_NAMES, HEIGHT, WIDTH, as_float, expected_scores, random_images, write_bundle
from smart_runtime import Bundle, EngineOptions, InputError, SmartModel, preprocess
from smart_runtime.bundle.manifest import InputSpec
from smart_runtime.inputs import prepare
from smart_runtime.pictures import read_picture

FRAME = random_images(1, seed=3)[0]


def smart_run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "smart_runtime.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "holiday"
    for name in ("b.png", "a.png", "day 2/c.JPG", ".thumbs/d.png", "__MACOSX/e.png", "._f.png", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(FRAME).save(root / name, "PNG")
    return root


@pytest.mark.parametrize("size", [(10_000, 1), (60_000, 1), (1, 60_000)])
def test_a_very_long_picture_costs_no_gigabytes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "long.png")
    code = (
        "import resource, sys; from smart_runtime.pictures import read_picture\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "pixels = read_picture(sys.argv[1], height=224, width=224, colour='RGB')\n"
        "assert (pixels == (10, 200, 30)).all()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "long.png")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100 * 1024  # KiB; it was 2 GiB for the first of them


@pytest.mark.parametrize("size", [(91, 57), (57, 91), (640, 480), (33, 32), (20, 300), (5, 3)])
@pytest.mark.parametrize("target", [(32, 32), (24, 40), (100, 7)])
def test_cutting_first_gives_what_scaling_first_gave(
    tmp_path: Path, size: tuple[int, int], target: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    height, width = target
    scale = max(height / size[1], width / size[0])
    covering = (max(width, round(size[0] * scale)), max(height, round(size[1] * scale)))
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    whole = picture.resize(covering, Image.Resampling.BILINEAR)
    expected = np.asarray(whole.crop((left, top, left + width, top + height))).astype(int)
    picture.save(tmp_path / "p.png")
    got = read_picture(tmp_path / "p.png", height=height, width=width, colour="RGB").astype(int)
    assert np.abs(got - expected).max() <= 1


def test_a_picture_of_16_bits_is_read_as_its_upper_8(tmp_path: Path) -> None:
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 0, 257, ..., 65535: exactly 0 to 255
    Image.fromarray(levels).save(tmp_path / "deep.png")
    read = read_picture(tmp_path / "deep.png", height=16, width=16, colour="L")
    assert np.array_equal(read.ravel(), np.arange(256))


def test_a_palette_with_transparency_warns_of_nothing(tmp_path: Path) -> None:
    Image.fromarray(FRAME).convert("P").save(tmp_path / "p.png", transparency=bytes(range(256)))
    code = "import sys; from smart_runtime.pictures import read_picture; "
    code += f"read_picture(sys.argv[1], height={HEIGHT}, width={WIDTH}, colour='RGB')"
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path / "p.png")], check=True)


def test_infer_takes_folders_patterns_and_files(bundle: Path, folder: Path) -> None:
    done = smart_run("infer", bundle, folder, f"{folder}/*.png", folder / "a.png", "--json")
    names = [Path(result["picture"]).name for result in json.loads(done.stdout)["results"]]
    assert names == ["a.png", "b.png", "c.JPG", "a.png", "b.png", "a.png"]


def test_one_bad_picture_does_not_throw_away_the_other_answers(bundle: Path, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG no")
    done = smart_run("infer", bundle, folder, "nowhere.png", "--json", code=1)
    answer = json.loads(done.stdout)
    assert [Path(result["picture"]).name for result in answer["results"]] == ["a.png", "b.png", "c.JPG"]
    assert [Path(failed["picture"]).name for failed in answer["failed"]] == ["broken.png", "nowhere.png"]
    for errors in (done.stderr, smart_run("infer", bundle, folder, "nowhere.png", "--quiet", code=1).stderr):
        assert "broken.png" in errors
        assert "no picture at 'nowhere.png'" in errors


def test_a_folder_or_pattern_without_pictures_does_not_throw_away_the_other_answers(
    bundle: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    asked = (tmp_path / "empty", folder / "a.png", f"{tmp_path}/no*.jpg", folder / "b.png")
    done = smart_run("infer", bundle, *asked, "--json", code=1)
    answer = json.loads(done.stdout)
    assert [Path(result["picture"]).name for result in answer["results"]] == ["a.png", "b.png"]
    assert [Path(failed["picture"]).name for failed in answer["failed"]] == ["empty", "no*.jpg"]
    table = smart_run("infer", bundle, *asked, code=1)
    assert "a.png" in table.stdout
    listed = table.stderr.splitlines()[-2:]
    assert listed[0].startswith("error: no pictures in ")
    assert listed[1].startswith("error: nothing matches ")


def test_a_folder_is_not_called_a_missing_file(folder: Path, tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(InputError, match="is a folder; name the pictures in it"):
        read_picture(folder, height=6, width=4, colour="RGB")
    (tmp_path / "empty").mkdir()
    assert "no pictures in" in smart_run("infer", bundle, tmp_path / "empty", code=1).stderr
    assert "nothing matches" in smart_run("infer", bundle, tmp_path / "*.jpg", code=1).stderr


def test_a_picture_is_classified_in_one_line_of_python(bundle: Path, folder: Path) -> None:
    scores = expected_scores("clean", as_float(FRAME[None]))[0]
    with SmartModel.load(bundle) as model:
        for image in (folder / "a.png", str(folder / "a.png"), FRAME, Image.fromarray(FRAME)):
            found = model.classify(image, top=3)
            assert [one.name for one in found] == [CLASS_NAMES[i] for i in np.argsort(-scores)[:3]]
            shares = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose([one.probability for one in found], np.sort(shares)[::-1][:3], atol=1e-6)
        with pytest.raises(InputError, match="expected one picture, got 2"):
            model.classify(np.stack([FRAME, FRAME]))
        with pytest.raises(InputError, match="top of 1 or more"):
            model.classify(FRAME, top=0)


def test_camera_frames_of_any_size_and_order_are_taken(bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle)
    large = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "large.png")
    file = preprocess(tmp_path / "large.png", opened)
    assert file.shape == (1, HEIGHT, WIDTH, 3)
    assert np.array_equal(preprocess(large, opened), file)
    assert np.array_equal(preprocess(large[..., ::-1], opened, channel_order="BGR"), file)
    assert np.array_equal(preprocess(io.BytesIO((tmp_path / "large.png").read_bytes()), opened), file)
    assert np.array_equal(preprocess([large, tmp_path / "large.png"], opened), np.concatenate([file, file]))
    assert np.array_equal(preprocess(np.stack([large, large]), opened), np.concatenate([file, file]))
    assert np.array_equal(preprocess(FRAME, opened), FRAME[None])
    grey = preprocess(large[..., 0], opened)
    assert np.array_equal(grey[..., 0], grey[..., 2])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "expected one or more pictures, got none"),
        (np.zeros((3, 8, 8), np.float32), "got float32 of shape"),
        (np.zeros((8,), np.uint8), r"got uint8 of shape \(8,\)"),
        (7, "got int"),
    ],
)
def test_what_is_no_picture_is_said_in_a_sentence(bundle: Path, images: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        preprocess(images, Bundle.open(bundle))


def test_an_unknown_channel_order_names_those_that_there_are(bundle: Path) -> None:
    with pytest.raises(InputError, match="there are RGB and BGR"):
        preprocess(FRAME, Bundle.open(bundle), channel_order="GBR")  # type: ignore[arg-type]


def test_grey_images_need_no_channel_axis() -> None:
    spec = InputSpec(name="image", channels=1, height=6, width=4)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    expected = prepare(pixels[..., None], spec)
    assert np.array_equal(prepare(pixels, spec), expected)
    assert np.array_equal(prepare(as_float(pixels[..., None])[:, 0], spec), expected)


def test_a_value_just_above_1_is_shown_as_it_is(bundle: Path) -> None:
    images = as_float(FRAME[None])
    images[0, 0, 0, 0] = np.nextafter(np.float32(1), np.float32(2))
    with SmartModel.load(bundle) as model, pytest.raises(InputError, match=r"got \[0(\.\d+)?, 1\.00000012\]; clip"):
        model(images)


def test_numpy_s_integers_are_numbers_of_threads() -> None:
    assert EngineOptions(threads=np.int64(1)).threads == 1  # type: ignore[arg-type]
    for wrong in ("2", 1.5, True):
        with pytest.raises(smart_runtime.EngineError, match="expected threads as a whole number"):
            EngineOptions(threads=wrong)  # type: ignore[arg-type]


def test_objects_print_one_useful_line(bundle: Path) -> None:
    with SmartModel.load(bundle) as model:
        result = model.run(FRAME[None])
        assert repr(model).startswith("SmartModel(")
        for word in ("clean, robust", "onnxruntime", "path clean"):
            assert word in repr(model)
    assert "closed" in repr(model)
    assert repr(result).startswith("Result(scores of shape (1, 5), path 'clean', ")
    assert "paths clean, robust" in repr(Bundle.open(bundle))
    for value in (model, result, Bundle.open(bundle)):
        assert "\n" not in repr(value)
        assert len(repr(value)) < 200


def test_a_result_pickles_and_a_model_says_why_not(bundle: Path) -> None:
    with SmartModel.load(bundle) as model:
        result = model.run(FRAME[None])
        with pytest.raises(InputError, match="cannot be pickled or copied"):
            pickle.dumps(model)
    again = pickle.loads(pickle.dumps(result))  # noqa: S301  # our own bytes
    assert again.path == result.path
    assert np.array_equal(again.scores, result.scores)


@pytest.mark.parametrize("package", ["smart_devices", "smart_runtime", "smart_train", "smart_eval", "smart_export"])
def test_every_package_has_a_version(package: str) -> None:
    assert importlib.import_module(package).__version__ == importlib.metadata.version("smart-edge")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((3, 20, 20), np.uint8), r"whose channels come first; transpose it to \(H, W, 3\)"),
        (np.zeros((20, 20, 5), np.uint8), r"got uint8 of shape \(20, 20, 5\)"),
        (Image.new("RGB", (0, 5)), "expected a picture with pixels, got one of 0x5"),
    ],
)
def test_frames_of_another_form_are_refused_in_a_sentence(bundle: Path, image: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        preprocess(image, Bundle.open(bundle))
