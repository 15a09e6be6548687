"""What hardening must not take away: ordinary use that was refused, or ended otherwise, while it was built."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

from runtime.bundles import as_float, random_images, write_bundle
from smart_common.console.entry import command
from smart_common.files import owning, replacing
from smart_common.outputs import Output, check_outputs
from smart_runtime import SmartModel


def test_a_bundle_is_opened_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path / "bundle")
    with SmartModel.load(".") as model:
        model.reload(".")
        assert model(as_float(random_images(2))).shape[0] == 2


@pytest.mark.parametrize("name", ["run", "export", "devices"])
def test_a_group_alone_prints_its_help_in_lines(name: str) -> None:
    done = CliRunner().invoke(command(name), [])
    assert len(done.output.splitlines()) > 8
    assert "?" not in done.output


def test_where_locks_are_refused_files_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> NoReturn:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(fcntl, "flock", refused)
    with replacing(tmp_path / "file") as file:
        file.write(b"new")
    with owning(tmp_path / "file") as mine:
        assert mine
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_hidden_file_of_somebody_s_stays(tmp_path: Path) -> None:
    theirs = tmp_path / ".page.html.tmp" / "thesis.txt"
    theirs.parent.mkdir()
    theirs.write_text("years")
    with replacing(tmp_path / "page.html") as file:
        file.write(b"new")
    assert theirs.read_text() == "years"


def test_an_empty_file_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "made-by-mktemp").touch()
    check_outputs([Output("--report", tmp_path / "made-by-mktemp", lambda _: False)], inputs=[])


def test_a_user_s_own_limit_on_memory_is_kept(tmp_path: Path) -> None:
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))\n"
        "from smart_common.limited import run_limited\n"
        "print(run_limited('zlib:crc32', b'x', seconds=5, "
        "max_bytes=2**40))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == "2363233923\n", done.stderr
