"""What readers of data share: what they hand on, how they show how far they are, and the ``~`` in paths."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from smart_train.errors import DataError

Array = npt.NDArray[np.generic]


class Advance(Protocol):
    """Moves a progress bar on."""

    def __call__(self, status: str = "", count: int = 1) -> None:
        """``count`` units are done; ``status`` is a few words on how things stand."""


class Progress(Protocol):
    """Shows a bar while work goes on: `smart_common.console.cli.progress` is one."""

    def __call__(self, description: str, *, total: int) -> AbstractContextManager[Advance]:
        """Give a context whose value moves the bar towards ``total`` units."""


def _nothing(status: str = "", count: int = 1) -> None:
    del status, count


@contextmanager
def no_progress(description: str, *, total: int) -> Iterator[Advance]:
    """Show nothing: the default where nobody watches."""
    del description, total
    yield _nothing


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` with ``~`` or ``~user`` in front replaced by that home directory.

    Raises:
        DataError: if there is no such user, or nothing says where the home directory is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"no home directory for the ~ of {path}; write the path out in full") from error


def check_fits(size: int, *, what: str) -> None:
    """Raise DataError if ``what`` takes more than the machine's memory, of which a small file may claim any amount.

    Where the system promises more memory than it has, nothing else would be said before the process is ended.
    """
    if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise too_much(what)


def too_much(what: str) -> DataError:
    """Return the error that ``what`` takes more memory than there is."""
    return DataError(f"{what} do not fit into memory; scale them down first")


@dataclass(frozen=True, eq=False)
class Arrays:
    """A data set as its files hold it, before anything is checked across them or split off.

    Attributes:
        train_images: uint8 (N, H, W, C).
        train_labels: integers (N,), 0 to classes - 1.
        test_images: uint8 (M, H, W, C).
        test_labels: integers (M,).
        class_names: one a class in the order of the labels; None for the numbers themselves.
        left_out: broken pictures that are not in them.
        notes: as in `smart_train.data.images.ImageSet`.
    """

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    class_names: tuple[str, ...] | None = None
    left_out: int = 0
    notes: tuple[str, ...] = ()


ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, eq=False)
class Source:
    """Files that were found but not read yet.

    Attributes:
        kind: the data set's kind, such as ``cifar10``.
        where: for messages, the file or folder as the user named it.
        root: the folder or archive that holds it.
        files: every file that the arrays come from.
        decoder: what else the arrays depend on, such as a library's version.
        variant: which of several ways of reading the files ``read`` goes, such as ``224x224``; "" for the plain one.
        ignored: what lies among the files and is not read, in a sentence; "" for nothing.
        read: read them all; raises DataError.
    """

    kind: str
    where: str
    root: Path
    files: tuple[Path, ...]
    read: Callable[[Progress], Arrays]
    decoder: str = ""
    variant: str = ""
    ignored: str = ""
