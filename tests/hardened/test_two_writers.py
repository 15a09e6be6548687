"""Files are written beside their place under names that nobody can foretell, and by one writer at a time."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smart_common.errors import OutputError, SmartError
from smart_common.files import digest_and_value, new_folder_beside, owning, replacing
from smart_eval.records import Records
from smart_export import publish
from smart_export.errors import ExportError
from smart_train.errors import ConfigError
from smart_train.training.owner import owning_output

HOLDS = """
import sys, time
from pathlib import Path
from smart_common.files import new_folder_beside, owning, replacing
output = Path(sys.argv[1])
with owning(output) as mine, new_folder_beside(output) as folder, replacing(output) as file:
    (folder / "part").touch()
    file.write(b"half"), file.flush()
    print(mine, flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def test_planted_links_are_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    for name in (".ckpt.pt.tmp", f".ckpt.pt.{os.getpid()}.tmp", ".ckpt.pt.0123456789abcdef.tmp", ".ckpt.pt.lock"):
        (tmp_path / name).symlink_to(precious)
    write(tmp_path / "ckpt.pt", b"new")
    assert (tmp_path / "ckpt.pt").read_bytes() == b"new"
    assert precious.read_bytes() == b"precious"
    with pytest.raises(OSError, match="symbolic link"), owning(tmp_path / "ckpt.pt"):
        pass
    assert precious.read_bytes() == b"precious"


def test_a_name_beside_cannot_be_foretold(tmp_path: Path) -> None:
    seen = set()
    for _ in range(3):
        with replacing(tmp_path / "a.json"):
            seen.update(names(tmp_path))
    assert len(seen - {"a.json"}) == 3
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("name", ["x" * 255, "\udcff.json", "ü" * 127])
def test_any_name_that_the_file_system_takes_can_be_written(name: str, tmp_path: Path) -> None:
    with owning(tmp_path / name) as mine:
        assert mine
        write(tmp_path / name, b"new")
    assert names(tmp_path) == [name]


def test_a_living_writer_keeps_what_it_has_and_a_killed_one_nothing(tmp_path: Path) -> None:
    output = tmp_path / "ckpt.pt"
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(output)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        begun = names(tmp_path)
        assert len(begun) == 3
        with owning(output) as mine:
            assert not mine
        write(output, b"ours")
        assert names(tmp_path) == sorted([*begun, "ckpt.pt"]), "the other one's files stay"
        process.send_signal(signal.SIGKILL)
    with owning(output) as mine:
        assert mine
        write(output, b"new")
        assert names(tmp_path) == [".ckpt.pt.lock", "ckpt.pt"], "what it left is gone"
    assert names(tmp_path) == ["ckpt.pt"]


def test_what_is_no_plain_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "folder", tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OutputError, match="is no plain file"):
            write(place, b"new")
    assert Path("/dev/null").is_char_device()
    assert names(tmp_path) == ["folder", "pipe"]


@pytest.mark.parametrize("suffix", [pytest.param(".pt", marks=pytest.mark.slow), ".pth"])  # which share a history
def test_a_second_training_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"ckpt{suffix}"
    owned = str(tmp_path / "ckpt.history.csv")
    with subprocess.Popen([sys.executable, "-c", HOLDS, owned], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ConfigError, match=r"another training is writing .*ckpt\.pt"), owning_output(output):
            pass
        command = [sys.executable, "-m", "smart_train.cli", "--data", "digits", "--force", "-o", str(output)]
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        process.kill()
    assert second.returncode == 1
    assert second.stderr == (
        f"error: another training is writing {output} or ckpt.history.csv; wait for it, or name another with -o\n"
    )
    with owning_output(output), owning_output(output):
        assert ".ckpt.history.csv.lock" in names(tmp_path)
    assert ".ckpt.history.csv.lock" not in names(tmp_path)


def test_an_export_is_refused_while_another_writes_its_name(tmp_path: Path) -> None:
    (tmp_path / ".bundle.tmp").symlink_to(tmp_path)
    with (
        publish.staged(tmp_path / "bundle"),
        pytest.raises(ExportError, match="another export to this name"),
        publish.staged(tmp_path / "bundle"),
    ):
        pass
    assert names(tmp_path) == [".bundle.tmp"]


def test_what_came_to_stand_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with publish.staged(output) as place:
        (place / "file").touch()
        output.mkdir()
        (output / "thesis.tex").touch()
        with pytest.raises(ExportError, match="other things than a bundle"):
            publish.publish(place, output, force=True)
    assert names(output) == ["thesis.tex"]


def test_a_folder_that_is_called_like_an_old_bundle_stays(tmp_path: Path) -> None:
    kept = tmp_path / ".bundle.old"
    kept.mkdir()
    (kept / "thesis.tex").touch()
    with new_folder_beside(tmp_path / "bundle") as place:
        publish.publish(place, tmp_path / "bundle", force=False)
    assert names(kept) == ["thesis.tex"]


def test_results_are_not_written_through_a_planted_link(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="exists already"):
        Records(tmp_path / "results.jsonl")
    assert not (tmp_path / "elsewhere").exists()


def test_a_digest_is_of_the_bytes_that_were_read(tmp_path: Path) -> None:
    file = tmp_path / "ckpt.pt"
    file.write_bytes(b"old")
    assert digest_and_value(file, Path.read_bytes) == (hashlib.sha256(b"old").hexdigest(), b"old")

    def overtaken(path: Path) -> bytes:
        content = path.read_bytes()
        write(path, b"new")
        return content

    with pytest.raises(SmartError, match="was changed while it was read"):
        digest_and_value(file, overtaken)
