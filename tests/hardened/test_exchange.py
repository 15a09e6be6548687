"""A reload, or a load, while exports put one bundle after another in the place of the old one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundles import as_float, expected_scores, graph_files, random_images, write_bundle
from runtime.fakes import TIMEOUT
from smart_export import publish as publishing
from smart_runtime import Bundle, BundleError, SmartModel
from smart_runtime.bundle.bundle import write_checksums

FLOATS = as_float(random_images(2))
KNOWN = {name: expected_scores(name, FLOATS) for name in ("clean", "robust")}


def swap_paths(folder: Path) -> Path:
    """A bundle whose clean path is the other one's robust path, so that its results show which bundle made them."""
    for name, other in (("clean", "robust"), ("robust", "clean")):
        for file, data in zip(("model.onnx", "weights.bin"), graph_files(other), strict=True):
            (folder / name / file).write_bytes(data)
    write_checksums(folder)
    return folder


# A process of its own, which does what an export does at its end, again and again.
_EXPORTS = """
import itertools, shutil, sys, time
from pathlib import Path
from smart_export import publish
name, one, other, how = Path(sys.argv[1]), *sys.argv[2:5]
if how == "two renames":
    publish._exchange = lambda *_: False
for number, kind in enumerate(itertools.cycle([one, other])):
    place = name.with_name(f".{name.name}.tmp")
    shutil.copytree(kind, place)
    publish.publish(place, name, force=True)
    if number == 0:
        print("ready", flush=True)
    shutil.rmtree(place, ignore_errors=True)
    time.sleep(0.02)
"""


@contextmanager
def exports(name: Path, one: Path, other: Path, *, how: str) -> Iterator[None]:
    command = [sys.executable, "-c", _EXPORTS, str(name), str(one), str(other), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield
        finally:
            child.kill()


@pytest.mark.parametrize("memory", ["resident", "on-demand"])
@pytest.mark.parametrize("how", ["exchange", "two renames"])
def test_no_load_or_reload_fails_while_bundles_are_exchanged(tmp_path: Path, memory: Any, how: str) -> None:
    name = write_bundle(tmp_path / "bundle")
    one, other = write_bundle(tmp_path / "one"), swap_paths(write_bundle(tmp_path / "other"))
    digests = {Bundle.open(one).digest: "clean", Bundle.open(other).digest: "robust"}
    seen = set()
    with exports(name, one, other, how=how), SmartModel.load(name, threads=1, memory=memory) as model:
        for _ in range(40):
            model.reload(name)
            made_by = digests[model.bundle.digest]
            seen.add(made_by)
            np.testing.assert_allclose(model(FLOATS), KNOWN[made_by], rtol=0, atol=1e-6)
        for _ in range(10):
            SmartModel.load(name, threads=1, memory=memory).close()
    assert seen == {"clean", "robust"}


def test_a_damaged_bundle_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (bundle / "robust/weights.bin").write_bytes(b"x")
    opened = []

    def counted(*arguments: Any, **options: Any) -> Bundle:
        opened.append(arguments)
        return open_bundle(*arguments, **options)

    open_bundle = Bundle.open
    monkeypatch.setattr(Bundle, "open", counted)
    with pytest.raises(BundleError, match="as it was exported"):
        SmartModel.load(bundle)
    assert len(opened) == 1


def test_a_bundle_that_is_exchanged_for_ever_is_refused_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By damaged ones, each gone before it is read to its end."""
    bundle, other = write_bundle(tmp_path / "bundle"), write_bundle(tmp_path / "other")
    for folder in (bundle, other):
        (folder / "dense/weights.bin").write_bytes(b"x")
    verify = Bundle.verify

    def exchanged(self: Bundle, **options: Any) -> None:
        assert publishing._exchange(bundle, other)
        verify(self, **options)

    monkeypatch.setattr(Bundle, "verify", exchanged)
    start = time.monotonic()
    with pytest.raises(BundleError, match=r"'dense/weights.bin' as it was exported"):
        SmartModel.load(bundle)
    assert time.monotonic() - start < TIMEOUT / 10


def test_what_is_missing_is_refused_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(BundleError, match="no bundle directory"):
        SmartModel.load(tmp_path / "nothing")
    assert time.monotonic() - start < 0.1
