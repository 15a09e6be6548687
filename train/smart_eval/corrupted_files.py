"""CIFAR-10-C, CIFAR-100-C and ImageNet-C as they are published (Hendrycks and Dietterich 2019, arXiv 1903.12261)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smart_common.errors import few, shortened
from smart_eval.corruptions import Kind
from smart_runtime.pictures import check_pillow, is_picture
from smart_train.data.images import Labels, Pixels
from smart_train.data.pictures import read_pictures
from smart_train.data.source import expanded, no_progress
from smart_train.errors import DataError

SEVERITIES = 5

KINDS = tuple(
    Kind(name, "severity of the published files", (1, 2, 3, 4, 5))
    for name in (
        *("gaussian_noise", "shot_noise", "impulse_noise"),
        *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
        *("snow", "frost", "fog", "brightness"),
        *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    )
)
"""The 15 that count on RobustBench (its CORRUPTIONS_DICT) for each of the three sets; four more are published with
them, for validation, and do not."""

_LABELS = "labels.npy"
_Indices = npt.NDArray[np.int64]
_Read = Callable[[Kind, int, _Indices], Pixels]
"""Of a kind, a severity and which images, returns these, uint8 (N, H, W, C)."""


@dataclass(frozen=True, eq=False)
class CorruptedFiles:
    """A published set, of which ``indices`` names the images that are measured."""

    name: str
    digest: str
    all_labels: Labels
    indices: _Indices
    read: _Read
    kinds: Sequence[Kind] = field(default=KINDS)

    @property
    def labels(self) -> Labels:
        """See `CorruptedImages`."""
        return self.all_labels[self.indices]

    @property
    def about(self) -> Mapping[str, Any]:
        """See `CorruptedImages`."""
        which = hashlib.blake2b(self.indices.tobytes(), digest_size=8).hexdigest()
        return {"set": self.name, "files": self.digest, "corrupted": which}

    def images(self, kind: Kind, where: slice, *, severity: int, seed: int) -> Pixels:
        """See `CorruptedImages`; nothing is random here."""
        del seed
        return self.read(kind, severity, self.indices[where])

    def some(self, indices: _Indices) -> CorruptedFiles:
        """Return the set with those images alone."""
        return replace(self, indices=self.indices[indices])


def corrupted_files(
    folder: str | os.PathLike[str], *, shape: tuple[int, int, int], class_names: Sequence[str]
) -> CorruptedFiles:
    """Return the published set that lies in ``folder``.

    CIFAR-10-C and CIFAR-100-C are ``labels.npy`` and one ``KIND.npy`` for each kind, uint8 (5 N, H, W, 3): the N test
    images at severity 1, then at 2, and so on. ImageNet-C is ``KIND/SEVERITY/CLASS/picture``.

    Args:
        folder: the unpacked set.
        shape: channels, height and width that the network takes; pictures of ImageNet-C are scaled and cut to it.
        class_names: of the network, in the order of its labels. Folders of classes that are named otherwise are taken
            in alphabetical order.

    Raises:
        DataError: a file is missing or of another shape or type, or there are other classes than the network has.
        MissingExtraError: pictures need Pillow, which is not installed.
    """
    root = expanded(os.fspath(folder))
    if not root.is_dir():
        raise DataError(
            f"no folder {shortened(str(folder))} of corrupted images; give that of CIFAR-10-C or ImageNet-C"
        )
    if (root / _LABELS).exists():
        return _arrays(root, shape=shape, classes=len(class_names))
    if any((root / kind.name).is_dir() for kind in KINDS):
        return _pictures(root, shape=shape, class_names=class_names)
    raise DataError(
        f"neither labels.npy of CIFAR-10-C nor folders such as {KINDS[0].name} of ImageNet-C in "
        f"{shortened(str(root))}; give the folder that the archive unpacks to"
    )


def _arrays(root: Path, *, shape: tuple[int, int, int], classes: int) -> CorruptedFiles:
    channels, height, width = shape
    files = {kind.name: root / f"{kind.name}.npy" for kind in KINDS}
    missing = [file.name for file in files.values() if not file.is_file()]
    if missing:
        raise DataError(f"no {few(missing)} in {shortened(str(root))}; unpack the whole archive")
    labels = _array(root / _LABELS)
    blocks = (
        labels.reshape(SEVERITIES, -1) if labels.ndim == 1 and labels.size and labels.size % SEVERITIES == 0 else None
    )
    if labels.dtype.kind not in "iu" or blocks is None or (blocks != blocks[0]).any():
        raise DataError(
            f"expected the labels of the test images {SEVERITIES} times over in {shortened(str(root / _LABELS))}, got "
            f"{labels.dtype} of shape {labels.shape}; unpack the archive again"
        )
    once = blocks[0].astype(np.int64)
    if once.min() != 0 or once.max() != classes - 1:
        raise DataError(
            f"expected labels of the network's {classes} classes in {shortened(str(root / _LABELS))}, got "
            f"{once.min()} to {once.max()}; give the set that goes with the data the network was trained on"
        )
    arrays = {name: _array(file) for name, file in files.items()}
    wanted = (len(labels), height, width, channels)
    for name, array in arrays.items():
        if array.dtype != np.uint8 or array.shape != wanted:
            raise DataError(
                f"expected uint8 of shape {wanted} in {shortened(str(files[name]))}, for the network's images at "
                f"{SEVERITIES} severities, got {array.dtype} of shape {array.shape}; unpack the archive again, or give "
                "the set that goes with the network"
            )

    def read(kind: Kind, severity: int, indices: _Indices) -> Pixels:
        found: Pixels = np.ascontiguousarray(arrays[kind.name][(severity - 1) * len(once) + indices])
        return found

    states = [file.stat() for file in (root / _LABELS, *files.values())]
    digest = _digest([f"{state.st_size} {state.st_mtime_ns}" for state in states])
    return CorruptedFiles(f"CIFAR-{classes}-C", digest, once, np.arange(len(once)), read)


def _array(file: Path) -> npt.NDArray[Any]:
    try:
        # Mapped, since all of them take 2.3 GB; an object array would be a pickle, which can run code.
        found: npt.NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header raises whatever it makes NumPy trip over
        raise DataError(f"{shortened(str(file))} is damaged or no .npy of plain numbers; unpack it again") from error
    return found


def _pictures(root: Path, *, shape: tuple[int, int, int], class_names: Sequence[str]) -> CorruptedFiles:
    check_pillow("ImageNet-C")
    parts = [Path(kind.name, str(severity)) for kind in KINDS for severity in range(1, SEVERITIES + 1)]
    missing = [str(part) for part in parts if not (root / part).is_dir()]
    if missing:
        raise DataError(f"no folder {few(missing)} in {shortened(str(root))}; unpack all archives into one folder")
    first = root / parts[0]
    found = sorted(folder.name for folder in first.iterdir() if folder.is_dir())
    names = list(class_names) if set(found) == set(class_names) else found
    if len(names) != len(class_names):
        raise DataError(
            f"expected {len(class_names)} folders of classes, as many as the network has, in {shortened(str(first))}, "
            f"got {len(names)}; give the set that goes with the data the network was trained on"
        )
    pictures = [
        (Path(name, picture.name), label)
        for label, name in enumerate(names)
        for picture in sorted((first / name).iterdir())
        if is_picture(picture, within=root)
    ]
    if not pictures:
        raise DataError(f"no picture in {shortened(str(first))}; unpack the archive again")
    torn = [str(root / part / name) for part in parts for name in names if not (root / part / name).is_dir()]
    if torn:
        raise DataError(f"no folder {few(torn)}, which other corruptions have; unpack all archives again")
    channels, height, width = shape

    def read(kind: Kind, severity: int, indices: _Indices) -> Pixels:
        folder = root / kind.name / str(severity)
        images, _ = read_pictures(
            [folder / pictures[i][0] for i in indices], progress=no_progress, size=(height, width)
        )
        grey_or_colour = images if images.shape[3] == channels else np.repeat(images, channels, axis=3)
        if grey_or_colour.shape[3] != channels:
            raise DataError(
                f"colour pictures in {shortened(str(folder))}, and the network takes grey ones; give its own set"
            )
        return grey_or_colour

    labels = np.array([label for _, label in pictures], dtype=np.int64)
    times = [f"{part} {(root / part).stat().st_mtime_ns}" for part in parts]
    digest = _digest([*times, *(str(name) for name, _ in pictures)])
    return CorruptedFiles("ImageNet-C", digest, labels, np.arange(len(labels)), read)


def _digest(lines: Sequence[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
