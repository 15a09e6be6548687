"""Small data sets in the very formats that the real ones are published in."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import io as matlab

from smart_train.data.images import ImageSet, Split
from smart_train.data.load import load_data
from smart_train.data.source import Advance

Arrays = dict[str, Any]
Write = Callable[[Path, Arrays], None]


def arrays(
    *, height: int = 6, width: int = 5, channels: int = 1, train: int = 30, test: int = 9, classes: int = 3
) -> Arrays:
    generator = np.random.default_rng(0)
    return {
        "train_images": generator.integers(0, 256, (train, height, width, channels), dtype=np.uint8),
        "train_labels": np.arange(train) % classes,
        "test_images": generator.integers(0, 256, (test, height, width, channels), dtype=np.uint8),
        "test_labels": np.arange(test) % classes,
    }


def same(a: Split, b: Split) -> bool:
    return np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)


def differences(first: ImageSet, second: ImageSet) -> list[str]:
    """What tells two image sets apart, their kinds left out."""
    words = [name for name in ("digest", "shape", "class_names") if getattr(first, name) != getattr(second, name)]
    return words + [
        part for part in ("train", "validation", "test") if not same(getattr(first, part), getattr(second, part))
    ]


class Bars:
    """A progress that notes the description, the total and what was done of each bar that ended well."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    @contextmanager
    def __call__(self, description: str, *, total: int) -> Iterator[Advance]:
        done = 0

        def advance(status: str = "", count: int = 1) -> None:
            nonlocal done
            done += count

        yield advance
        self.seen.append((description, total, done))


def as_npz(directory: Path, content: Arrays) -> ImageSet:
    """The image set that the arrays themselves make."""
    return load_data(write_npz(directory / "same.npz", content))


def by_class(content: Arrays) -> Arrays:
    """The same images in the order in which folders list them."""
    result = dict(content)
    for part in ("train", "test"):
        order = np.argsort(content[f"{part}_labels"], kind="stable")
        for what in ("images", "labels"):
            result[f"{part}_{what}"] = content[f"{part}_{what}"][order]
    return result


def write_npz(path: Path, content: Arrays) -> str:
    np.savez(path, **content)
    return f"npz:{path}"


def write_picture(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path, format="PNG")


def write_folder(root: Path, content: Arrays, *, test: str = "test") -> str:
    for part, name in (("train", "train"), ("test", test)):
        for i, (image, label) in enumerate(zip(content[f"{part}_images"], content[f"{part}_labels"], strict=True)):
            write_picture(root / name / f"class{label}" / f"{i:03}.png", image)
    return f"folder:{root}"


def write_tiny_imagenet(root: Path, content: Arrays) -> str:
    """Tiny-ImageNet's folders; the pictures are PNG in spite of their names, so that no pixel changes."""
    for i, (image, label) in enumerate(zip(content["train_images"], content["train_labels"], strict=True)):
        write_picture(root / "train" / f"class{label}" / "images" / f"class{label}_{i:03}.JPEG", image)
        (root / "train" / f"class{label}" / f"class{label}_boxes.txt").write_text("")
    lines = []
    for i, (image, label) in enumerate(zip(content["test_images"], content["test_labels"], strict=True)):
        write_picture(root / "val" / "images" / f"val_{i:03}.JPEG", image)
        lines.append(f"val_{i:03}.JPEG\tclass{label}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    write_picture(root / "test" / "images" / "test_0.JPEG", content["test_images"][0])  # which class is a secret
    return f"folder:{root}"


def python2_pickle(value: object) -> bytes:
    """Pickle as Python 2's cPickle did with protocol 2: byte strings are ``str``, and NumPy's module is the old one."""

    def string(text: bytes) -> bytes:
        return (b"U" + bytes([len(text)]) if len(text) < 256 else b"T" + struct.pack("<i", len(text))) + text

    def number(n: int) -> bytes:
        return b"K" + bytes([n]) if 0 <= n < 256 else b"J" + struct.pack("<i", n)

    def write(value: object) -> bytes:
        if isinstance(value, bytes):
            return string(value)
        if isinstance(value, int):
            return number(value)
        if isinstance(value, list):
            return b"](" + b"".join(map(write, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(write(key) + write(item) for key, item in value.items()) + b"u"
        assert isinstance(value, np.ndarray)
        kind = value.dtype.str[1:].encode()
        return (
            b"cnumpy.core.multiarray\n_reconstruct\nq\x01(cnumpy\nndarray\nq\x02K\x00\x85U\x01btR"
            + b"(K\x01("
            + b"".join(map(number, value.shape))
            + b"tcnumpy\ndtype\nq\x03("
            + string(kind)
            + b"K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            + string(value.tobytes())
            + b"tb"
        )

    return b"\x80\x02" + write(value) + b"."


def rows(images: np.ndarray) -> np.ndarray:
    """CIFAR's rows: the red plane, the green one, the blue one."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def write_cifar10(data_dir: Path, content: Arrays) -> None:
    folder = data_dir / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images, labels = content["train_images"], content["train_labels"]
    parts = {f"data_batch_{i}": (images[i - 1 :: 5], labels[i - 1 :: 5]) for i in range(1, 6)}
    # The batches follow one another, so the content is put into their order.
    content["train_images"] = np.concatenate([part for part, _ in parts.values()])
    content["train_labels"] = np.concatenate([part for _, part in parts.values()])
    parts["test_batch"] = (content["test_images"], content["test_labels"])
    for name, (part, numbers) in parts.items():
        names = [b"a_%d.png" % i for i in range(len(part))]
        (folder / name).write_bytes(
            python2_pickle(
                {b"batch_label": name.encode(), b"labels": numbers.tolist(), b"data": rows(part), b"filenames": names}
            )
        )
    meta = {b"num_cases_per_batch": 10000, b"label_names": names_of(content, bytes), b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))
    (folder / "readme.html").write_text("<html>")


def write_cifar100(data_dir: Path, content: Arrays) -> None:
    """As Python 3 would pickle it with Python 2's protocol: another way to the same content."""
    folder = data_dir / "cifar-100-python"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        labels = content[f"{part}_labels"].tolist()
        batch = {
            b"filenames": [b"x.png"] * len(labels),
            b"batch_label": b"1 of 1",
            b"fine_labels": labels,
            b"coarse_labels": [label // 5 for label in labels],
            b"data": rows(content[f"{part}_images"]),
        }
        (folder / part).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"fine_label_names": names_of(content, str), "coarse_label_names": ["fish", "flowers"]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=0))
    (folder / "file.txt~").write_text("")


def write_svhn(data_dir: Path, content: Arrays) -> None:
    data_dir.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        labels = content[f"{part}_labels"]
        mat = {
            "X": content[f"{part}_images"].transpose(1, 2, 3, 0),
            "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None],
        }
        matlab.savemat(data_dir / f"{part}_32x32.mat", mat, do_compression=part == "train")


def write_stl10(data_dir: Path, content: Arrays) -> None:
    folder = data_dir / "stl10_binary"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        columns = content[f"{part}_images"].transpose(0, 3, 2, 1)
        (folder / f"{part}_X.bin").write_bytes(np.ascontiguousarray(columns).tobytes())
        (folder / f"{part}_y.bin").write_bytes((content[f"{part}_labels"] + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join(names_of(content, str)) + "\n")
    (folder / "unlabeled_X.bin").write_bytes(bytes(5000))


def names_of(content: Arrays, kind: type) -> list[Any]:
    names = content["class_names"].tolist()
    return [name.encode() for name in names] if kind is bytes else names


def pack(data_dir: Path, folder: str, archive: str) -> Path:
    """Put a folder into its official archive and remove it."""
    path = data_dir / archive
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        tar.add(data_dir / folder, arcname=folder)
    for file in (data_dir / folder).iterdir():
        file.unlink()
    (data_dir / folder).rmdir()
    return path


def repack(path: Path, change: Callable[[tarfile.TarInfo, bytes], list[tuple[tarfile.TarInfo, bytes]]]) -> None:
    """Write an archive again with ``change`` of each of its files."""
    with tarfile.open(path) as tar:
        members = [(m, file.read()) for m in tar if (file := tar.extractfile(m)) is not None]
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for member, content in members:
            for info, raw in change(member, content):
                tar.addfile(info, io.BytesIO(raw))


class Release:
    """How a published set looks: its writer, a content of its form, and its folder and archive."""

    def __init__(
        self, kind: str, write: Write, *, side: int, classes: int = 10, folder: str = "", archive: str = ""
    ) -> None:
        self.kind, self._write = kind, write
        self.folder, self.archive = folder, archive
        self._side, self._classes = side, classes

    def write(self, data_dir: Path) -> Arrays:
        """Write the set into ``data_dir`` and return what must be read from there."""
        content = arrays(
            height=self._side,
            width=self._side,
            channels=3,
            train=max(20, self._classes),
            test=self._classes,
            classes=self._classes,
        )
        digits = self.kind == "svhn"
        content["class_names"] = np.array([str(i) if digits else f"class{i}" for i in range(self._classes)])
        self._write(data_dir, content)
        return content


RELEASES = {
    release.kind: release
    for release in (
        Release("cifar10", write_cifar10, side=32, folder="cifar-10-batches-py", archive="cifar-10-python.tar.gz"),
        Release(
            "cifar100",
            write_cifar100,
            side=32,
            classes=100,
            folder="cifar-100-python",
            archive="cifar-100-python.tar.gz",
        ),
        Release("svhn", write_svhn, side=32),
        Release("stl10", write_stl10, side=96, folder="stl10_binary", archive="stl10_binary.tar.gz"),
    )
}
ARCHIVED = [release for release in RELEASES.values() if release.archive]
