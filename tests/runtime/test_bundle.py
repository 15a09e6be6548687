from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bundles import graph_files, ours, write_bundle
from smart_runtime import Bundle, SmartModel
from smart_runtime.bundle.bundle import parse_checksums, write_checksums
from smart_runtime.errors import BundleError, PathError

FILES = [
    "SHA256SUMS",
    "manifest.json",
    "clean/model.onnx",
    "clean/weights.bin",
    "robust/model.onnx",
    "robust/weights.bin",
    "dense/model.onnx",
    "dense/weights.bin",
]


def test_open_reads_what_was_written(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    opened.verify()
    assert sorted(opened.sums) == sorted(FILES[1:])
    assert opened.digest == hashlib.sha256((bundle / "SHA256SUMS").read_bytes()).hexdigest()
    for name in ("clean", "robust", "dense"):
        graph = opened.graph_bytes(name)
        assert (graph.model, graph.weights) == graph_files(name)
        assert graph.weights_name == "weights.bin"


def test_checksums_are_those_of_sha256sum(bundle: Path) -> None:
    subprocess.run(["/usr/bin/sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=bundle, check=True)
    lines = (bundle / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    assert lines == sorted(lines, key=lambda line: line[66:])


def test_a_graph_may_have_no_weights_file(tmp_path: Path) -> None:
    def drop_weights(document: dict[str, Any]) -> None:
        ours(document)["paths"]["clean"]["weights"] = None

    graph = Bundle.open(write_bundle(tmp_path / "b", change=drop_weights)).graph_bytes("clean")
    assert (graph.weights, graph.weights_name) == (None, None)


def test_unknown_graph(bundle: Path) -> None:
    with pytest.raises(PathError, match="unknown graph 'fast'; the bundle has 'dense', 'clean', 'robust'"):
        Bundle.open(bundle).graph_bytes("fast")


def test_a_signature_is_allowed(own_bundle: Path) -> None:
    (own_bundle / "SHA256SUMS.sig").write_bytes(b"signature")
    Bundle.open(own_bundle).verify()
    before = (own_bundle / "SHA256SUMS").read_bytes()
    write_checksums(own_bundle)
    assert (own_bundle / "SHA256SUMS").read_bytes() == before


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_refused_at_load(own_bundle: Path, name: str) -> None:
    file = own_bundle / name
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for position in (0, len(whole) - 1, *rng.integers(0, len(whole), 10)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(0, 8))
        file.write_bytes(damaged)
        with pytest.raises(BundleError):
            SmartModel.load(own_bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_lost_file_is_refused(own_bundle: Path, name: str) -> None:
    (own_bundle / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.open(own_bundle)


@pytest.mark.parametrize("name", FILES[2:])
def test_a_shortened_file_is_refused(own_bundle: Path, name: str) -> None:
    whole = (own_bundle / name).read_bytes()
    (own_bundle / name).write_bytes(whole[:-1])
    with pytest.raises(BundleError, match=f"expected '{name}' as it was exported"):
        SmartModel.load(own_bundle)


@pytest.mark.parametrize("name", ["notes.txt", "clean/extra.bin", "new/model.onnx", ".hidden"])
def test_an_added_file_is_refused(own_bundle: Path, name: str) -> None:
    (own_bundle / name).parent.mkdir(exist_ok=True)
    (own_bundle / name).write_bytes(b"")
    with pytest.raises(BundleError, match=f"only files that SHA256SUMS names, got '{name}'"):
        Bundle.open(own_bundle)


def link_file(bundle: Path) -> None:
    (bundle / "clean/weights.bin").rename(bundle.parent / "weights.bin")
    (bundle / "clean/weights.bin").symlink_to(bundle.parent / "weights.bin")


def link_directory(bundle: Path) -> None:
    (bundle / "clean").rename(bundle.parent / "clean")
    (bundle / "clean").symlink_to(bundle.parent / "clean")


def link_checksums(bundle: Path) -> None:
    (bundle / "SHA256SUMS").rename(bundle.parent / "SHA256SUMS")
    (bundle / "SHA256SUMS").symlink_to(bundle.parent / "SHA256SUMS")


def named_pipe(bundle: Path) -> None:
    (bundle / "clean/weights.bin").unlink()
    os.mkfifo(bundle / "clean/weights.bin")


@pytest.mark.parametrize("change", [link_file, link_directory, link_checksums, named_pipe])
def test_links_and_special_files_are_refused(own_bundle: Path, change: Callable[[Path], None]) -> None:
    change(own_bundle)
    with pytest.raises((BundleError, OSError), match=r"plain files|symbolic link"):
        Bundle.open(own_bundle)


def test_a_file_that_becomes_a_link_after_opening_is_refused(own_bundle: Path) -> None:
    opened = Bundle.open(own_bundle)
    link_file(own_bundle)
    with pytest.raises((BundleError, OSError)):
        opened.graph_bytes("clean")


def test_a_file_changed_after_opening_is_refused(own_bundle: Path) -> None:
    opened = Bundle.open(own_bundle)
    (own_bundle / "clean/weights.bin").write_bytes(b"other")
    with pytest.raises(BundleError, match="changed bytes"):
        opened.graph_bytes("clean")
    with pytest.raises(BundleError, match="changed bytes"):
        opened.verify()


@pytest.mark.parametrize("what", ["missing", "file", "empty directory"])
def test_what_is_no_bundle_is_refused(tmp_path: Path, what: str) -> None:
    place = tmp_path / "place"
    if what == "file":
        place.write_bytes(b"")
    elif what == "empty directory":
        place.mkdir()
    with pytest.raises(BundleError, match=r"(no bundle directory at|is no bundle: no SHA256SUMS).*smart-export"):
        Bundle.open(place)


def test_a_graph_that_the_manifest_names_and_the_bundle_lacks(tmp_path: Path) -> None:
    def elsewhere(document: dict[str, Any]) -> None:
        ours(document)["baseline"]["file"] = "dense/other.onnx"

    with pytest.raises(BundleError, match=r"no 'dense/other.onnx' for 'dense'"):
        Bundle.open(write_bundle(tmp_path / "b", change=elsewhere))


def test_checksums_refuse_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match="plain files"):
        write_checksums(tmp_path)


SUM = "0" * 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        f"{SUM}  a",
        f"{SUM} a\n",
        f"{SUM.replace('0', 'A')}  a\n",
        f"{SUM}  ../a\n",
        f"{SUM}  /a\n",
        f"{SUM}  SHA256SUMS\n",
        f"{SUM}  b\n{SUM}  a\n",
        f"{SUM}  a\n{SUM}  a\n",
        f"{SUM}  a\r\n",
        f"{SUM}  a\n\n",
    ],
)
def test_other_checksum_files_are_refused(text: str) -> None:
    with pytest.raises(BundleError, match="SHA256SUMS is damaged"):
        parse_checksums(text.encode())


@given(st.binary(max_size=200))
def test_any_bytes_as_checksums_are_refused_in_our_words(data: bytes) -> None:
    with pytest.raises(BundleError):
        parse_checksums(data)


def test_reading_a_graph_reserves_no_more_memory_than_it_has(bundle: Path) -> None:
    """A board refuses a process that asks for more than it has, whatever it then uses."""
    code = (
        "import resource, sys; from smart_runtime import Bundle; bundle = Bundle.open(sys.argv[1]); "
        "resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)); print(len(bundle.graph_bytes('clean').weights))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str((bundle / "clean/weights.bin").stat().st_size), done.stderr
