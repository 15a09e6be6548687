"""Faults while a bundle is written: it is there whole or not at all, and what was there before it is not lost."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from disks import run_on_small_disk
from export.dying import WITH_ONE, WITHOUT_A_BUNDLE
from forks import Forker
from smart_export import publish
from smart_export.errors import ExportError
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.errors import BundleError


@pytest.fixture(scope="module")
def export(checkpoint_file: Path) -> Forker:
    """The process of dying.py."""
    return Forker("export.dying", checkpoint_file)


@pytest.fixture(scope="module")
def old(export: Forker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, to be told from the next ones by its default path."""
    output = tmp_path_factory.mktemp("old") / "bundle"
    assert export(output=str(output), default_path="clean") == 0
    return output


def whole(place: Path) -> Bundle:
    """Open a bundle and check every byte of it."""
    bundle = Bundle.open(place)
    bundle.verify()
    return bundle


def staging(folder: Path) -> Path:
    """Return the one folder with a name that nobody could foretell, where the bundle was made."""
    (found,) = (path for path in folder.iterdir() if re.fullmatch(r"\.bundle\.[0-9a-f]{16}\.tmp", path.name))
    return found


def exchanges(place: Path) -> bool:
    names = [place / "one", place / "other"]
    for name in names:
        name.mkdir()
    can = publish._exchange(*names)
    for name in names:
        name.rmdir()
    return can


@pytest.mark.slow
@pytest.mark.parametrize(
    ("death", "replaces"),
    [(point, False) for point in WITHOUT_A_BUNDLE] + [(point, True) for point in WITH_ONE],
)
def test_a_killed_export_leaves_a_whole_bundle_or_none_and_the_next_one_works(
    export: Forker, old: Path, tmp_path: Path, death: str, replaces: bool
) -> None:
    output = tmp_path / "bundle"
    if replaces:
        shutil.copytree(old, output)
    if death in {"exchanged", "removing"} and not exchanges(tmp_path):
        pytest.skip("needs a file system on which two names can change places")
    assert export(output=str(output), default_path="robust", death=death) == -signal.SIGKILL

    left = {path.name for path in tmp_path.iterdir()}
    if death in {"exchanged", "removing"}:
        assert whole(output).manifest.default_path == "robust", "the new bundle"
    elif death == "between the renames":
        assert left == {".bundle.old", ".bundle.lock", staging(tmp_path).name}
        assert whole(tmp_path / ".bundle.old").digest == whole(old).digest, "nothing is lost"
    elif replaces:
        assert whole(output).digest == whole(old).digest
    else:
        assert not output.exists()
    if death in {"converting", "writing", "converted", "described", "removing"}:
        with pytest.raises(BundleError):
            Bundle.open(staging(tmp_path))

    assert export(output=str(output), default_path="robust") == 0
    assert whole(output).manifest.default_path == "robust"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"], "what the killed export left is gone"


def test_where_names_cannot_change_places_two_renames_replace_a_bundle(
    export: Forker, old: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    shutil.copytree(old, output)
    assert export(output=str(output), default_path="robust", death="plain renames") == 0
    assert whole(output).manifest.default_path == "robust"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_refused_rename_puts_the_old_bundle_back(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, place = tmp_path / "bundle", tmp_path / ".bundle.tmp"
    shutil.copytree(old, output)
    place.mkdir()
    rename = Path.rename

    def refusing(source: Path, target: Path) -> Path:
        if source == place:
            raise PermissionError(1, "Operation not permitted")
        return rename(source, target)

    monkeypatch.setattr(publish, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(PermissionError):
        publish.publish(place, output, force=True)
    assert whole(output).digest == whole(old).digest


def test_two_exports_to_one_name_do_not_mix(tmp_path: Path) -> None:
    with publish.staged(tmp_path / "bundle") as place:
        (place / "file").write_bytes(b"first")
        with (
            pytest.raises(ExportError, match="another export to this name is running"),
            publish.staged(tmp_path / "bundle"),
        ):
            pass
        assert (place / "file").read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_no_full_disk_is_not_called_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot identify"), publish.staged(tmp_path / "bundle"):
        raise OSError("cannot identify image file")


LIMITED = """
import resource, signal, sys
from smart_export.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
main(sys.argv[2:])
"""


@pytest.mark.parametrize(("max_file_bytes", "said"), [(0, "No usable temporary directory"), (20_000, "File too large")])
def test_files_that_may_not_grow_leave_the_old_bundle(
    checkpoint_file: Path, old: Path, tmp_path: Path, max_file_bytes: int, said: str
) -> None:
    output = tmp_path / "bundle"
    shutil.copytree(old, output)
    build = [str(checkpoint_file), "--target", "cpu", "-o", str(output), "--force"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(max_file_bytes), *build],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert whole(output).digest == whole(old).digest
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


FULL_DISK = """
python=$1 disk=$2 old=$3 checkpoint=$4
cp -r "$old" "$disk/bundle" || exit
"$python" -m smart_export.cli "$checkpoint" --target cpu -o "$disk/bundle" --force
echo "status $?"
ls -A "$disk"
cd "$disk/bundle" && sha256sum --quiet --check SHA256SUMS && echo whole
"""


# Room for nothing is what a limit on files shows in every run, above; an export by a process of its own for each.
@pytest.mark.parametrize(
    "kilobytes", [pytest.param(168, marks=pytest.mark.slow), 276], ids=["first graph", "dense graph"]
)
def test_a_full_disk_leaves_the_old_bundle(checkpoint_file: Path, old: Path, tmp_path: Path, kilobytes: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = [sys.executable, str(disk), str(old), str(checkpoint_file)]
    done = run_on_small_disk(FULL_DISK, *arguments, disk=disk, kilobytes=kilobytes)
    assert done.stdout.split("\n") == ["status 1", "bundle", "whole", ""]
    assert done.stderr.startswith(f"error: too little room for the bundle {disk}/bundle (")
    assert "temporary files go (TMPDIR)" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
