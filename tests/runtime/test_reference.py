"""What a bundle's graphs answered at export: read as checked bytes, and compared with what an engine answers."""

from __future__ import annotations

import io
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from runtime.bundles import (
    CLASSES,
    REFERENCE_IMAGES,
    as_float,
    expected_scores,
    graph_files,
    ours,
    random_images,
    write_bundle,
)
from smart_runtime import Bundle
from smart_runtime.bundle.bundle import write_checksums
from smart_runtime.bundle.manifest import MAX_REFERENCE_IMAGES
from smart_runtime.engines import REFERENCE_ENGINE, Engine, create_engine
from smart_runtime.errors import BundleError, EngineError, PathError
from smart_runtime.reference import (
    INPUTS,
    MAX_BYTES,
    SCORES,
    TOLERANCES,
    StoredScores,
    compare,
    image_count,
    npy_bytes,
    parity,
    stored_scores,
)

Array = npt.NDArray[np.float32]

IMAGES = as_float(random_images(REFERENCE_IMAGES))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", reference=True)


def stored(root: Path, name: str = "clean") -> StoredScores:
    found = stored_scores(Bundle.open(root), name)
    assert found is not None
    return found


def engine_of(root: Path, name: str) -> Engine:
    bundle = Bundle.open(root)
    return create_engine(
        REFERENCE_ENGINE, bundle.graph_bytes(name), inputs=bundle.manifest.input, outputs=bundle.manifest.output
    )


@pytest.mark.parametrize("name", ["clean", "robust", "dense"])
def test_stored_scores_are_those_of_the_graph(root: Path, name: str) -> None:
    found = stored(root, name)
    np.testing.assert_array_equal(found.images, IMAGES)
    np.testing.assert_array_equal(found.scores, expected_scores(name, IMAGES).astype(np.float32))
    assert (found.name, found.tolerance) == (name, 1e-3)
    assert not found.images.flags.writeable
    engine = engine_of(root, name)
    result = compare(engine, found)
    engine.close()
    assert result.holds
    assert result.max_rel_diff < 1e-6
    assert (result.argmax_agreement, result.images) == (1.0, REFERENCE_IMAGES)


def test_the_files_are_plain_npy(root: Path) -> None:
    np.testing.assert_array_equal(np.load(root / INPUTS, allow_pickle=False), IMAGES)
    assert np.load(root / "clean" / SCORES, allow_pickle=False).shape == (REFERENCE_IMAGES, CLASSES)


def test_numpy_may_have_written_them(root: Path) -> None:
    file = io.BytesIO()
    np.save(file, IMAGES)
    (root / INPUTS).write_bytes(file.getvalue())
    write_checksums(root)
    np.testing.assert_array_equal(stored(root).images, IMAGES)


def test_another_graph_is_told(root: Path) -> None:
    engine = engine_of(root, "robust")
    result = compare(engine, stored(root, "clean"))
    engine.close()
    assert not result.holds
    assert result.max_rel_diff > 0.01


def test_a_bundle_of_before_has_none(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "old"))
    assert stored_scores(bundle, "clean") is None
    with pytest.raises(PathError):
        stored_scores(bundle, "fast")


def test_held_files_are_read_after_the_bundle_is_gone(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "held", reference=True))
    expected = stored(bundle.root)
    with bundle.hold("clean") as held:
        assert held.bytes == sum(map(len, graph_files("clean"))), "of the graph alone"
        shutil.rmtree(bundle.root)
        found = stored_scores(bundle, "clean", read=held.read_file)
        assert found is not None
        assert np.array_equal(found.images, expected.images)
        assert np.array_equal(found.scores, expected.scores)
        assert (held.read().model, held.read().weights) == graph_files("clean")
        with pytest.raises(BundleError, match="expected a file that SHA256SUMS names, got 'robust/reference-scores"):
            stored_scores(bundle, "robust", read=held.read_file)
        with pytest.raises(BundleError, match=f"{INPUTS}.*1 byte"):
            held.read_file(INPUTS, max_bytes=1)


class Fixed(Engine):
    """Answers what it was told, whatever it is shown."""

    def __init__(self, scores: Array) -> None:
        self.scores = scores

    @classmethod
    def create(cls, *_: Any, **__: Any) -> Engine:
        raise NotImplementedError

    def run(self, batch: Array) -> Array:
        return self.scores[: len(batch)]

    def close(self) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {}


def kept(scores: Array, tolerance: float) -> StoredScores:
    images = np.zeros((len(scores), 1, 1, 1), np.float32)
    return StoredScores(name="clean", images=images, scores=scores, tolerance=tolerance)


SCORES_OF_TWO = np.array([[10, 0, 0], [0, 4, 3.95]], np.float32)


@pytest.mark.parametrize(
    ("change", "tolerance", "difference", "agreement"),
    [
        ([[0, 0, 0], [0, 0, 0]], 1e-3, 0.0, 1.0),
        ([[0.009, 0, 0], [0, 0, 0]], 1e-3, 0.0009, 1.0),
        ([[0.011, 0, 0], [0, 0, 0]], 1e-3, 0.0011, 1.0),
        ([[0, 0, 0], [0, 0, 0.1]], 1e-3, 0.01, 2 / 3),  # of two images and the first once more
        ([[0, 0, 0], [0, 0, 0.1]], 1.1e-2, 0.01, 1.0),  # a tie within the tolerance
    ],
)
def test_the_tolerance_is_of_the_largest_score(
    change: list[list[float]], tolerance: float, difference: float, agreement: float
) -> None:
    got = SCORES_OF_TWO + np.array(change, np.float32)
    result = compare(Fixed(got), kept(SCORES_OF_TWO, tolerance))
    assert result.max_rel_diff == pytest.approx(difference, rel=1e-4, abs=1e-7)
    assert result.argmax_agreement == pytest.approx(agreement)
    assert result.holds == (difference <= tolerance and agreement == 1)


def test_nan_never_holds() -> None:
    got = SCORES_OF_TWO.copy()
    got[1, 0] = np.nan
    result = compare(Fixed(got), kept(SCORES_OF_TWO, 1e9))
    assert not result.holds
    assert np.isnan(result.max_rel_diff)


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(EngineError, match=r"gave scores of shape \(2, 2\) for 2 images of 3 classes"):
        compare(Fixed(SCORES_OF_TWO[:, :2]), kept(SCORES_OF_TWO, 1.0))


def test_a_tolerance_of_ones_own() -> None:
    assert compare(Fixed(SCORES_OF_TWO + np.float32(0.5)), kept(SCORES_OF_TWO, 1e-3), tolerance=0.06).holds


def test_without_a_tolerance_parity_takes_twice_what_it_finds() -> None:
    found = parity(SCORES_OF_TWO, SCORES_OF_TWO + np.float32(0.5), tolerance=None)
    assert found.tolerance == 2 * found.max_rel_diff == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("precision", "claimed", "allowed"),
    [
        ("fp32", 1e-4, TOLERANCES["fp32"]),
        ("fp32", 4e-3, 4e-3),  # a deep network
        ("fp32", 1e9, 1e-2),
        ("fp32", None, TOLERANCES["fp32"]),
        ("fp16", 2e-2, TOLERANCES["fp16"]),
        ("int8", 0.7, TOLERANCES["int8"]),
        ("fp8", None, 0.0),
    ],
)
def test_what_a_manifest_claims_is_bounded(
    tmp_path: Path, precision: str, claimed: float | None, allowed: float
) -> None:
    def change(document: dict[str, Any]) -> None:
        ours(document)["precision"] = precision
        ours(document)["paths"]["clean"]["tolerance"] = claimed
        ours(document)["reference"]["tolerance"] = 1e9

    assert stored(write_bundle(tmp_path / "bundle", reference=True, change=change)).tolerance == allowed


def header(text: str, *, version: bytes = b"\x01\x00", size: int | None = None) -> bytes:
    padded = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + (len(padded) if size is None else size).to_bytes(2, "little") + padded


def saved(values: npt.NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


TRUE_SHAPE = "'shape': (5, 3, 6, 4), "
PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 3, 6, 4), }"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        npy_bytes(IMAGES)[:-1],
        npy_bytes(IMAGES) + b"\0",
        npy_bytes(IMAGES[:4]),
        npy_bytes(IMAGES[:, :, :, :2]),
        saved(IMAGES.astype(np.float64)),
        saved(IMAGES.astype(">f4")),
        saved(np.asfortranarray(IMAGES)),
        saved(np.full((5, 3, 6, 4), None), allow_pickle=True),
        pickle.dumps(IMAGES),
        header(PLAIN.replace("(5,", "(9999999999,")) + IMAGES.tobytes(),
        header(PLAIN.replace("(5, 3, 6, 4)", "(5, -3, -6, 4)")) + IMAGES.tobytes(),
        header(PLAIN.replace("'<f4'", "__import__('os').abort()")) + IMAGES.tobytes(),
        header(PLAIN, version=b"\x02\x00") + IMAGES.tobytes(),
        header(PLAIN, size=65535) + IMAGES.tobytes(),
        header(PLAIN, size=0) + IMAGES.tobytes(),
        header(PLAIN.replace(", }", ", 'shape': (1,), }")) + IMAGES.tobytes(),
        header("(" * 100) + IMAGES.tobytes(),
    ],
    ids=range(19),
)
def test_anything_but_the_expected_array_is_refused(root: Path, data: bytes) -> None:
    (root / INPUTS).write_bytes(data)
    write_checksums(root)
    bundle = Bundle.open(root)
    bundle.verify()
    said = rf"expected float32 \(5, 3, 6, 4\) as an .npy file of version 1.0 in '{INPUTS}'"
    with pytest.raises(BundleError, match=said):
        stored_scores(bundle, "clean")


def test_the_refused_headers_differ_from_a_good_one_by_what_they_say(root: Path) -> None:
    (root / INPUTS).write_bytes(header(PLAIN) + IMAGES.tobytes())
    write_checksums(root)
    np.testing.assert_array_equal(stored(root).images, IMAGES)


def test_a_huge_file_is_refused_before_it_is_read(root: Path) -> None:
    with (root / INPUTS).open("r+b") as file:
        file.truncate(2**30)  # sparse
    bundle = Bundle.open(root)
    with pytest.raises(BundleError, match=f"expected '{INPUTS}' of at most {MAX_BYTES + 128} bytes, got {2**30}"):
        stored_scores(bundle, "clean")


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        (INPUTS, np.where(IMAGES.max() == IMAGES, 1.5, IMAGES), r"values in \[0, 1\]"),
        (INPUTS, np.where(IMAGES.max() == IMAGES, np.nan, IMAGES), r"values in \[0, 1\]"),
        (f"clean/{SCORES}", np.full((REFERENCE_IMAGES, CLASSES), np.inf), "finite scores"),
    ],
    ids=["above", "NaN", "infinite"],
)
def test_values_that_are_none_are_refused(root: Path, name: str, values: Array, said: str) -> None:
    (root / name).write_bytes(npy_bytes(values.astype(np.float32)))
    write_checksums(root)
    with pytest.raises(BundleError, match=f"expected {said}"):
        stored(root)


def test_a_changed_file_is_refused(root: Path) -> None:
    bundle = Bundle.open(root)
    (root / f"clean/{SCORES}").write_bytes(npy_bytes(np.zeros((REFERENCE_IMAGES, CLASSES), np.float32)))
    with pytest.raises(BundleError, match="as it was exported"):
        stored_scores(bundle, "clean")
    with pytest.raises(BundleError, match="as it was exported"):
        bundle.verify()


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        ours(document)["reference"][name] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("images", 1), "a whole number, 2 to 64, at .*images, got 1"),
        (put("images", MAX_REFERENCE_IMAGES + 1), "a whole number, 2 to 64, at .*images, got 65"),
        (put("images", "5"), "a whole number"),
        (put("inputs", "../inputs.npy"), "a file inside the bundle"),
        (put("inputs", None), "a printable text"),
        (put("scores", {"fast": "fast/s.npy"}), "expected only clean, robust, dense at .*scores"),
        (put("scores", {"clean": "/etc/passwd"}), "a file inside the bundle"),
        (put("scores", None), "an object"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    with pytest.raises(BundleError, match=said):
        Bundle.open(write_bundle(tmp_path / "bundle", reference=True, change=change))


def test_a_file_that_no_checksum_names_is_refused(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", reference=True, change=put("inputs", "other.npy")))
    with pytest.raises(BundleError, match=r"expected a file that SHA256SUMS names, got 'other.npy'"):
        stored_scores(bundle, "clean")


def test_a_graph_may_have_no_scores(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle", reference=True, change=put("scores", {"clean": f"clean/{SCORES}"}))
    assert stored(root, "clean").name == "clean"
    assert stored_scores(Bundle.open(root), "robust") is None


@pytest.mark.parametrize(
    ("shape", "classes", "count"),
    [
        ((1, 8, 8), 10, 64),
        ((3, 32, 32), 10, 64),
        ((3, 224, 224), 1000, 6),
        ((3, 591, 591), 10, 2),
        ((3, 4096, 4096), 10, 2),
        ((1, 8, 8), 2**20, 2),
        ((1, 8, 8), 2**17, 7),
    ],
)
def test_how_many_images_are_stored(shape: tuple[int, int, int], classes: int, count: int) -> None:
    assert image_count(shape, classes=classes) == count
    sizes = [128 + 4 * count * size for size in (int(np.prod(shape)), classes)]
    assert count == 2 or max(sizes) <= MAX_BYTES


def test_a_model_does_not_look_at_them(root: Path) -> None:
    code = (
        "import sys; from smart_runtime import SmartModel\n"
        f"SmartModel.load({str(root)!r}).close()\n"
        "assert 'smart_runtime.reference' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
