"""What a reader hands on: the four arrays of a data set, and where they are to be read from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smart_train.data.progress import Progress

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Arrays:
    """A data set as its files hold it, before anything is checked across them or split off.

    Attributes:
        train_images: uint8 (N, H, W, C).
        train_labels: integers (N,), 0 to classes - 1.
        test_images: uint8 (M, H, W, C).
        test_labels: integers (M,).
        class_names: one a class in the order of the labels; None for the numbers themselves.
    """

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """Files that were found but not read yet.

    Attributes:
        kind: the data set's kind, such as ``cifar10``.
        where: for messages, the file or folder as the user named it.
        root: the folder or archive that holds it.
        files: every file that the arrays come from.
        decoder: what else the arrays depend on, such as a library's version.
        read: read them all; raises DataError.
    """

    kind: str
    where: str
    root: Path
    files: tuple[Path, ...]
    read: Callable[[Progress], Arrays]
    decoder: str = ""
