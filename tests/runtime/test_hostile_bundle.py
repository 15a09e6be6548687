"""Bundles from a stranger: every changed byte, links, sizes and depths; and what changes while a bundle is open."""

from __future__ import annotations

import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from runtime.bundles import graph_files, ours, write_bundle
from smart_runtime import Bundle, SignatureError, SmartModel
from smart_runtime.bundle.bundle import MAX_BARE_GRAPH_BYTES, write_checksums
from smart_runtime.bundle.files import MAX_DEPTH, MAX_ENTRIES, MAX_FILE_BYTES, list_files, read_bounded
from smart_runtime.bundle.signatures import PublicKey
from smart_runtime.errors import BundleError, ClosedError, PathError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PublicKey(raw=KEY.public_key().public_bytes_raw())


def sign(bundle: Path) -> None:
    (bundle / "SHA256SUMS.sig").write_bytes(KEY.sign((bundle / "SHA256SUMS").read_bytes()))


def check(bundle: Path, *, trust: PublicKey | None = None) -> None:
    """Open a bundle and check every byte, as `SmartModel.load` does before an engine sees any."""
    Bundle.open(bundle, trust=trust).verify()


def with_byte(file: Path, position: int, value: int) -> int:
    """Change one byte in place and return what stood there."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        old = os.pread(descriptor, 1, position)[0]
        os.pwrite(descriptor, bytes([value]), position)
    finally:
        os.close(descriptor)
    return old


def whole_files(bundle: Path) -> Iterator[Path]:
    return (bundle / name for name in list_files(bundle))


@pytest.mark.parametrize("trust", [None, PUBLIC], ids=["unsigned", "signed"])
def test_every_changed_byte_of_every_file_is_refused(own_bundle: Path, trust: PublicKey | None) -> None:
    """One other value for each byte, by its place; every file of the bundle is checked as a whole, so one will do."""
    if trust is not None:
        sign(own_bundle)
    changed = 0
    for file in whole_files(own_bundle):
        for position in range(file.stat().st_size):
            flip = 1 + zlib.crc32(f"{file.name} {position}".encode()) % 255
            old = with_byte(file, position, file.read_bytes()[position] ^ flip)
            with pytest.raises(BundleError):
                check(own_bundle, trust=trust)
            with_byte(file, position, old)
            changed += 1
    check(own_bundle, trust=trust)
    assert changed == sum(file.stat().st_size for file in whole_files(own_bundle)) > 4000


def test_every_flipped_bit_of_a_signature_is_refused(own_bundle: Path) -> None:
    sign(own_bundle)
    signature = own_bundle / "SHA256SUMS.sig"
    for position in range(64):
        for bit in range(8):
            old = with_byte(signature, position, signature.read_bytes()[position] ^ 1 << bit)
            with pytest.raises(SignatureError):
                Bundle.open(own_bundle, trust=PUBLIC)
            with_byte(signature, position, old)
    check(own_bundle, trust=PUBLIC)


def test_sampled_changes_of_a_large_bundle_are_refused(own_bundle: Path) -> None:
    weights = own_bundle / "robust/weights.bin"
    rng = np.random.default_rng(0)
    weights.write_bytes(weights.read_bytes() + rng.bytes(3 * 2**20))  # what lies behind the tensors is no one's
    write_checksums(own_bundle)
    sign(own_bundle)
    opened = Bundle.open(own_bundle, trust=PUBLIC)
    opened.verify()
    size = weights.stat().st_size
    for position in (0, size - 1, *map(int, rng.integers(0, size, 40))):
        old = with_byte(weights, position, weights.read_bytes()[position] ^ 1 << int(rng.integers(0, 8)))
        with pytest.raises(BundleError, match=r"'robust/weights\.bin' as it was exported"):
            check(own_bundle, trust=PUBLIC)
        with pytest.raises(BundleError, match=r"'robust/weights\.bin' as it was exported"):
            opened.graph_bytes("robust")
        with_byte(weights, position, old)
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(BundleError):
        check(own_bundle)


@given(data=st.data())
def test_any_change_of_any_file_is_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = write_bundle(tmp_path_factory.mktemp("any") / "b", baseline=False, reference=True)
    file = data.draw(st.sampled_from(sorted(whole_files(bundle))))
    whole = file.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    cut, put = data.draw(st.integers(0, 40)), data.draw(st.binary(max_size=40))
    file.write_bytes(whole[:start] + put + whole[start + cut :])
    if file.read_bytes() == whole:
        check(bundle)
    else:
        with pytest.raises(BundleError):
            check(bundle)


def swap_for_link(bundle: Path, name: str) -> None:
    """Put a link to the very same content in the place of a file or folder."""
    aside = bundle.parent / "aside"
    (bundle / name).rename(aside)
    (bundle / name).symlink_to(aside)


@pytest.mark.parametrize("name", ["clean", "clean/model.onnx", "clean/weights.bin"])
def test_what_becomes_a_link_after_the_listing_is_refused(own_bundle: Path, name: str) -> None:
    opened = Bundle.open(own_bundle)
    swap_for_link(own_bundle, name)
    for use in (lambda: opened.graph_bytes("clean"), lambda: opened.hold("clean"), opened.verify):
        with pytest.raises(BundleError, match=r"plain files and directories in a bundle, got 'clean.*', a link"):
            use()
    with pytest.raises(BundleError, match="a link"):
        read_bounded(own_bundle, "clean/model.onnx" if name == "clean" else name, max_bytes=2**20)


@pytest.mark.parametrize("what", ["pipe", "directory", "file for a folder"])
def test_what_becomes_special_after_the_listing_is_refused(own_bundle: Path, what: str) -> None:
    opened = Bundle.open(own_bundle)
    if what == "file for a folder":
        shutil.rmtree(own_bundle / "clean")
        (own_bundle / "clean").write_bytes(b"")
    else:
        (own_bundle / "clean/weights.bin").unlink()
        (os.mkfifo if what == "pipe" else os.mkdir)(own_bundle / "clean/weights.bin")
    with pytest.raises(BundleError, match=r"got 'clean.*', a link or special file"):
        opened.graph_bytes("clean")
    assert_no_open_files(own_bundle)


def assert_no_open_files(bundle: Path) -> None:
    assert open_files(bundle) == {}


def open_files(bundle: Path) -> dict[int, str]:
    """The descriptors of this process that are files of ``bundle``, with the files' names."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            place = link.readlink()
            if place.is_relative_to(bundle):
                found[int(link.name)] = place.relative_to(bundle).as_posix()
    return found


def test_the_root_may_be_a_link(own_bundle: Path, tmp_path: Path) -> None:
    """It is the user's own word for the bundle: ``current -> version-3`` is how many deploy."""
    (tmp_path / "current").symlink_to(own_bundle)
    check(tmp_path / "current")


def many_files(bundle: Path) -> None:
    for i in range(MAX_ENTRIES):
        (bundle / f"clean/{i}").touch()


def many_folders(bundle: Path) -> None:
    for i in range(MAX_ENTRIES):
        (bundle / f"clean/{i}").mkdir()


def deep_folders(bundle: Path) -> None:
    (bundle / "/".join("a" * (MAX_DEPTH + 1))).mkdir(parents=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (many_files, f"expected at most {MAX_ENTRIES} files and folders in a bundle, got more"),
        (many_folders, f"expected at most {MAX_ENTRIES} files and folders in a bundle, got more"),
        (deep_folders, f"expected folders at most {MAX_DEPTH} deep in a bundle, got deeper ones"),
    ],
)
def test_a_listing_is_bounded(change: Callable[[Path], None], said: str, own_bundle: Path) -> None:
    change(own_bundle)
    with pytest.raises(BundleError, match=said):
        Bundle.open(own_bundle)
    with pytest.raises(BundleError, match=said):
        write_checksums(own_bundle)
    assert_no_open_files(own_bundle)


def test_folders_as_deep_as_allowed_are_read(own_bundle: Path) -> None:
    place = own_bundle / "/".join("a" * MAX_DEPTH)
    place.mkdir(parents=True)
    (place / "file").write_bytes(b"1")
    write_checksums(own_bundle)
    check(own_bundle)
    (place / "file").write_bytes(b"2")
    with pytest.raises(BundleError, match="a/file' as it was exported"):
        check(own_bundle)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("SHA256SUMS", 2**20),
        ("manifest.json", 4 * 2**20),
        ("clean/model.onnx", MAX_BARE_GRAPH_BYTES),
        ("dense/model.onnx", MAX_BARE_GRAPH_BYTES),
        ("clean/weights.bin", MAX_FILE_BYTES),
        ("dense/weights.bin", MAX_FILE_BYTES),
    ],
)
def test_a_file_larger_than_its_bound_is_refused_before_it_is_read(own_bundle: Path, name: str, limit: int) -> None:
    with (own_bundle / name).open("r+b") as file:
        file.truncate(limit + 1)  # sparse: it takes no room, but reading 16 GiB would take its time
    said = f"expected '{name}' of at most {limit} bytes, got {limit + 1}"
    with pytest.raises(BundleError, match=said):
        check(own_bundle)
    if name.startswith("clean"):
        with pytest.raises(BundleError, match=said):
            Bundle.open(own_bundle).hold("clean")
    assert_no_open_files(own_bundle)


def test_a_long_name_gives_a_short_message(own_bundle: Path) -> None:
    sums = (own_bundle / "SHA256SUMS").read_text()
    for name in ("z" * 100_000, "z/" * 500 + "z" * 25):
        (own_bundle / "SHA256SUMS").write_text(f"{sums}{'0' * 64}  {name}\n")
        with pytest.raises(BundleError) as caught:
            Bundle.open(own_bundle)
        assert len(str(caught.value)) < 1300


def test_a_held_graph_outlives_its_bundle(own_bundle: Path) -> None:
    opened = Bundle.open(own_bundle)
    with opened.hold("robust") as held:
        assert held.bytes == sum(map(len, graph_files("robust")))
        shutil.rmtree(own_bundle)
        for _ in range(2):
            graph = held.read()
            assert (graph.model, graph.weights) == graph_files("robust")
            assert graph.weights_name == "weights.bin"
        with pytest.raises(BundleError, match=r"no bundle directory at "):
            opened.graph_bytes("robust")


def test_a_held_graph_is_the_old_one_after_a_replacement(own_bundle: Path, tmp_path: Path) -> None:
    with Bundle.open(own_bundle).hold("robust") as held:
        new = write_bundle(tmp_path / "new", channels=1)
        own_bundle.rename(tmp_path / "old")
        new.rename(own_bundle)
        assert (held.read().model, held.read().weights) == graph_files("robust")


@pytest.mark.parametrize("change", ["byte", "longer", "shorter", "empty"])
@pytest.mark.parametrize("name", ["model.onnx", "weights.bin"])
def test_a_held_file_that_is_overwritten_in_its_place_is_refused(own_bundle: Path, name: str, change: str) -> None:
    file = own_bundle / "robust" / name
    whole = file.read_bytes()
    changed = {"byte": b"\xff" + whole[1:], "longer": whole + b"\0", "shorter": whole[:-1], "empty": b""}[change]
    with Bundle.open(own_bundle).hold("robust") as held:
        held.read()
        with file.open("r+b") as writer:
            writer.truncate(0)
            writer.write(changed)
        with pytest.raises(BundleError, match=f"expected 'robust/{name}' as it was exported"):
            held.read()
        with file.open("r+b") as writer:
            writer.truncate(0)
            writer.write(whole)
        assert (held.read().model, held.read().weights) == graph_files("robust"), "and taken again once it is mended"


def test_a_held_graph_is_closed_once_and_for_all(bundle: Path) -> None:
    held = Bundle.open(bundle).hold("clean")
    opened = open_files(bundle)
    assert sorted(opened.values()) == ["clean/model.onnx", "clean/weights.bin"]
    assert not any(map(os.get_inheritable, opened)), "a process that is started must not get them"
    held.close()
    held.close()
    assert_no_open_files(bundle)
    with pytest.raises(ClosedError, match="the graph is closed; open the bundle again"):
        held.read()


def test_a_held_graph_is_read_from_many_threads(bundle: Path) -> None:
    expected = graph_files("clean")
    found: list[bool] = []

    def read(held: Any) -> None:
        for _ in range(50):
            try:
                graph = held.read()
            except ClosedError:
                return
            found.append((graph.model, graph.weights) == expected)

    held = Bundle.open(bundle).hold("clean")
    threads = [threading.Thread(target=read, args=(held,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    threads[0].join()
    held.close()  # while the others may be reading
    for thread in threads:
        thread.join()
    assert len(found) >= 50
    assert all(found)
    assert_no_open_files(bundle)


def test_holding_what_is_not_there_leaves_nothing_open(own_bundle: Path) -> None:
    opened = Bundle.open(own_bundle)
    with pytest.raises(PathError):
        opened.hold("fast")
    (own_bundle / "clean/weights.bin").unlink()
    with pytest.raises(BundleError, match=r"no 'clean/weights\.bin' in the bundle"):
        opened.hold("clean")
    assert_no_open_files(own_bundle)


def test_a_hostile_size_is_no_warm_up_array(own_bundle: Path) -> None:
    shutil.rmtree(own_bundle)

    def huge(document: dict[str, Any]) -> None:
        ours(document)["input"]["height"] = 2**62

    with pytest.raises(BundleError, match=r"input\.height"):
        SmartModel.load(write_bundle(own_bundle, change=huge))
