"""What a bundle's graphs answered at export, to prove by on a device that what was built there computes the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.manifest import MAX_REFERENCE_IMAGES, Manifest
from smart_runtime.engines.engine import Batch, Engine, Scores
from smart_runtime.errors import BundleError
from smart_runtime.outputs import check_shape

INPUTS = "reference-inputs.npy"
"""The file of the images, in the bundle's own folder, where no path can have a file."""

SCORES = "reference-scores.npy"
"""The file of a graph's scores, in the folder of the graph."""

MAX_BYTES = 4 * 2**20
"""Of either file, unless two images, or the scores of two, take more."""

MIN_IMAGES = 2

TOLERANCES: Mapping[str, float] = MappingProxyType({"fp32": 1e-3, "fp16": 1e-2, "int8": 5e-2})
"""What the scores of another engine may differ by, as a fraction of the largest. Other kernels sum in another order,
and round to int8 on the other side of a half."""

MAX_TOLERANCE = 1e-2
"""What a deep network, which rounds more, may claim for itself in the manifest, as the export allows it."""

_HEADER_BYTES = 128
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(rb"(\{'descr': '<f4', 'fortran_order': False, 'shape': \(\d{1,10}(?:, \d{1,10})+\), \}) *\n")


ReadFile: TypeAlias = Callable[..., bytes]
"""`Bundle.read`, or `HeldGraph.read_file`."""


@dataclass(frozen=True)
class ParityResult:
    """How well two networks, or two engines, agree on the same images.

    Attributes:
        max_rel_diff: max|a-b| / max(1, max|a|) over all images and scores; NaN where a score is.
        argmax_agreement: fraction of the images with the same best class, among those whose two best scores differ by
            more than the tolerance; 1.0 if there are none.
        images: how many images were compared.
        tolerance: what ``max_rel_diff`` may be.
    """

    max_rel_diff: float
    argmax_agreement: float
    images: int
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the two compute the same, within rounding."""
        return self.max_rel_diff <= self.tolerance and self.argmax_agreement == 1.0


@dataclass(frozen=True, kw_only=True)
class StoredScores:
    """What one graph answered at export.

    Attributes:
        name: the path, or ``dense``.
        images: float32 (N, channels, height, width), values in [0, 1], N from 2 to 64; read only.
        scores: float32 (N, classes), of the reference engine; read only.
        tolerance: what another engine may differ by, by the precision of the graph.
    """

    name: str
    images: Batch = field(repr=False)
    scores: Scores = field(repr=False)
    tolerance: float


def stored_scores(bundle: Bundle, name: str, *, read: ReadFile | None = None) -> StoredScores | None:
    """Return what the graph ``name`` answered at export, read and checked now; None where the bundle does not say.

    ``read`` reads the files where the bundle's directory may be gone: `HeldGraph.read_file`.

    Raises:
        PathError: No graph is called that.
        BundleError: A file was changed or is gone, or is not what the manifest says.
        OSError: The system cannot read a file.
    """
    manifest, reference = bundle.manifest, bundle.manifest.reference
    manifest.graph(name)  # PathError, if there is none
    if reference is None or name not in reference.scores:
        return None
    read = bundle.read if read is None else read
    images = _array(read, reference.inputs, (reference.images, *manifest.input.shape))
    scores = _array(read, reference.scores[name], (reference.images, manifest.output.classes))
    if not np.all((images >= 0) & (images <= 1)):
        raise BundleError(f"expected values in [0, 1] in {reference.inputs!r}, got others; export the bundle again")
    if not np.isfinite(scores).all():
        raise BundleError(f"expected finite scores in {reference.scores[name]!r}, got others; export the bundle again")
    return StoredScores(name=name, images=images, scores=scores, tolerance=tolerance_of(manifest, name))


def tolerance_of(manifest: Manifest, name: str) -> float:
    """Return what another engine's scores of the graph ``name`` may be off by; a deep network may claim more in fp32.

    Raises:
        PathError: No graph is called that.
    """
    claimed = min(manifest.graph(name).tolerance or 0.0, MAX_TOLERANCE)
    return max(TOLERANCES.get(manifest.precision, 0.0), claimed)


def compare(engine: Engine, stored: StoredScores, *, tolerance: float | None = None) -> ParityResult:
    """Run an engine of the same graph on the stored images, all at once and the first one alone.

    Args:
        engine: What is to be proved.
        stored: What it must answer.
        tolerance: What ``max_rel_diff`` may be, if not what is usual for the graph's precision.

    Raises:
        EngineError: The engine fails, or gives scores of another shape.
    """
    found = []
    for images in (stored.images, stored.images[:1]):
        scores = engine.run(images)
        check_shape(scores, images=len(images), classes=stored.scores.shape[1], name=stored.name)
        found.append(scores)
    expected = np.concatenate([stored.scores, stored.scores[:1]])
    result = parity(expected, np.concatenate(found), tolerance=stored.tolerance if tolerance is None else tolerance)
    return replace(result, images=len(stored.images))


def parity(expected: Scores, got: Scores, *, tolerance: float | None) -> ParityResult:
    """Compare two scores (N, classes) of the same images.

    ``tolerance`` is also the margin under which a tie is a tie; None takes twice the difference that is found.
    """
    scale = max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(expected - got).max()) / scale
    if tolerance is None:
        tolerance = 2 * difference
    ranked = np.sort(expected, axis=1)
    clear = (ranked[:, -1] - ranked[:, -2]) / scale > tolerance
    same = expected.argmax(axis=1) == got.argmax(axis=1)
    return ParityResult(
        max_rel_diff=difference,
        argmax_agreement=float(same[clear].mean()) if clear.any() else 1.0,
        images=len(expected),
        tolerance=tolerance,
    )


def image_count(shape: tuple[int, int, int], *, classes: int) -> int:
    """Return how many images of ``shape`` are stored with their scores: as many as `MAX_BYTES` hold, 2 to 64."""
    most = (MAX_BYTES - _HEADER_BYTES) // (4 * max(classes, int(np.prod(shape))))
    return max(MIN_IMAGES, min(MAX_REFERENCE_IMAGES, most))


def npy_bytes(values: npt.NDArray[np.float32]) -> bytes:
    """Return a float32 array of two or more dimensions as the bytes of an .npy file, which ``numpy.load`` reads too."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {values.shape}, }}".encode("ascii")
    size = _HEADER_BYTES - len(_MAGIC) - 2
    return _MAGIC + size.to_bytes(2, "little") + text.ljust(size - 1) + b"\n" + values.astype("<f4").tobytes()


def _array(read: ReadFile, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return the array in the .npy file ``name``; what its header says is compared, and nothing is made by it."""
    size = 4 * int(np.prod(shape, dtype=np.int64))
    data = read(name, max_bytes=_HEADER_BYTES + max(MAX_BYTES, MIN_IMAGES * size // shape[0]))
    start = len(_MAGIC) + 2 + int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 2], "little")
    header = _HEADER.fullmatch(data[len(_MAGIC) + 2 : start]) if start <= _HEADER_BYTES else None
    expected = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode("ascii")
    if not data.startswith(_MAGIC) or header is None or header[1] != expected or len(data) != start + size:
        raise BundleError(
            f"expected float32 {shape} as an .npy file of version 1.0 in {name!r}, got something else; "
            "export the bundle again"
        )
    return np.frombuffer(data, "<f4", offset=start).astype(np.float32, copy=False).reshape(shape)
