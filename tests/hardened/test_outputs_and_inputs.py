"""No output takes the place of an input, a key, a bundle's inside or a file of another kind, however it is spelled."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from runtime.bundles import write_bundle
from runtime.test_signatures import key_of, public_pem
from smart_common.errors import OutputError
from smart_common.figures import drawing, is_plot
from smart_common.outputs import Output, check_outputs
from smart_eval.cli import main as smart_eval
from smart_eval.page.page import ENVIRONMENT, is_page
from smart_export.cli import main as smart_export
from smart_runtime.bench.cli import main as smart_bench
from smart_runtime.cli import main as smart_run
from smart_train.cli import main as smart_train

PRECIOUS = b"precious"
KEY = b"-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with one of each."""
    write_bundle(tmp_path / "bundle")
    for name in ("ckpt.pt", "notes.txt", "own.json", "own.html", "own.png", "data.npz", "net.py", "recipe.toml"):
        (tmp_path / name).write_bytes(PRECIOUS)
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "release.pub").write_bytes(public_pem(key_of(1)))
    (tmp_path / "link.png").symlink_to("key")
    write_bundle(tmp_path / "linked")
    (tmp_path / "linked" / "out.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    for name in ("log", "log.1"):
        (tmp_path / name).write_bytes(PRECIOUS)
    os.link(tmp_path / "ckpt.pt", tmp_path / "hard.html")
    os.link(tmp_path / "data.npz", tmp_path / "hard.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("command", "line", "words"),
    [
        (smart_bench, "bundle --plot link.png", "is a key"),
        (smart_bench, "bundle --plot own.png", "is a file of another kind"),
        (smart_bench, "bundle --plot bundle/own.png", "would replace or change"),
        (smart_bench, "bundle --baseline own.png --plot ./bundle/../own.png", "would replace or change own.png"),
        (smart_export, "ckpt.pt --target cpu -o new --report ckpt.pt", "would replace or change ckpt.pt"),
        (smart_export, "ckpt.pt --target cpu -o new --report hard.html", "would replace or change ckpt.pt"),
        (smart_export, "ckpt.pt --target cpu -o new --report own.json", "is a file of another kind"),
        (smart_export, "ckpt.pt --target cpu -o new --report key", "is a key"),
        (smart_export, "ckpt.pt --target cpu -o new --sign key --report ../FOLDER/key", "would replace or change key"),
        (smart_export, "ckpt.pt --target cpu -o bundle/new", "would replace or change"),
        (smart_export, "keygen bundle/new", "would replace or change"),
        (smart_eval, "ckpt.pt --report own.html", "is a file of another kind"),
        (smart_eval, "ckpt.pt --report hard.html", "would replace or change ckpt.pt"),
        (smart_eval, "ckpt.pt --report release.pub", "is a key"),
        (smart_eval, "ckpt.pt --data npz:data.npz --report data.npz", "would replace or change data.npz"),
        (smart_eval, "ckpt.pt -o same.html --report ./same.html", "would replace or change same.html"),
        (smart_eval, "ckpt.pt -o bundle/results.jsonl", "would replace or change"),
        (smart_eval, "ckpt.pt -o linked/out.jsonl", "would replace or change"),
        (smart_run, "calibrate bundle . -o linked/out.jsonl", "would replace or change"),
        (smart_run, "calibrate bundle . -o link.png", "is a key"),
        (smart_run, "calibrate bundle bundle/clean -o hard.html", "is a file of another kind"),
        (smart_run, "calibrate bundle . --trust release.pub -o ./bundle/../release.pub", "would replace or change"),
        (smart_train, "-o key --force", "is a key"),
        (smart_train, "--data npz:data.npz -o data.npz --force", "would replace or change data.npz"),
        (smart_train, "--data npz:data.npz -o hard.pt --force", "would replace or change data.npz"),
        (smart_train, "--init ckpt.pt -o ckpt.pt --force", "would replace or change ckpt.pt"),
        (smart_train, "--teacher ckpt.pt:clean -o ckpt.pt --force", "would replace or change ckpt.pt"),
        (smart_train, "--extra npz:data.npz -o data.npz --force", "would replace or change data.npz"),
        (smart_train, "--plot own.png -o new.pt", "is a file of another kind"),
        (smart_train, "--plot link.png -o new.pt --force", "is a key"),
        (smart_train, "-o bundle/new.pt", "would replace or change"),
        (smart_train, "--tensorboard bundle -o new.pt", "would replace or change"),
        (smart_train, "-o /dev/null --force", "is no plain file"),
        (smart_train, "--cache-dir bundle -o new.pt", "would replace or change"),
        (smart_eval, "ckpt.pt --cache-dir bundle/clean", "would replace or change"),
        (smart_export, "ckpt.pt --target cpu -o new --cache-dir ./bundle", "would replace or change"),
    ],
)
def test_a_command_refuses_before_its_work(command: Callable[..., object], line: str, words: str, folder: Path) -> None:
    before = content(folder)
    done = CliRunner().invoke(command, line.replace("FOLDER", folder.name).split())  # type: ignore[arg-type]
    assert done.exit_code == 1, done.output
    assert words in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert content(folder) == before
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("module", "line", "place"),
    [
        ("smart_runtime.cli", "info bundle --json", "bundle/manifest.json"),
        ("smart_runtime.bench.cli", "bundle --baseline own.json --json", "own.json"),
        ("smart_runtime.bench.cli", "--compare own.json own.json --json", "own.json"),
        ("smart_runtime.cli", "info bundle --trust release.pub --json", "key"),
        ("smart_runtime.cli", "audit verify log", "log"),
        ("smart_runtime.cli", "audit verify log --json", "log.1"),
        ("smart_runtime.cli", "calibrate bundle . -o new.json", "bundle/SHA256SUMS"),
    ],
)
def test_standard_output_is_an_output_too(module: str, line: str, place: str, folder: Path) -> None:
    before = content(folder)
    with (folder / place).open("ab") as output:
        command = [sys.executable, "-m", module, *line.split()]
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "error: standard output" in done.stderr
    assert content(folder) == before


def test_what_we_wrote_ourselves_is_replaced(folder: Path) -> None:
    for kind in ("png", "svg", "pdf"):
        plot = folder / f"new.{kind}"
        with drawing(plot, width=1, height=1):
            pass
        assert is_plot(plot)
        check_outputs([Output("--plot", plot, is_plot)], inputs=[])
        plot.write_bytes(plot.read_bytes().replace(b"smart-edge", b"other-edge"))
        with pytest.raises(OutputError, match="another kind"):
            check_outputs([Output("--plot", plot, is_plot)], inputs=[])
        check_outputs([Output("--plot", plot, is_plot)], inputs=[], force=True)
    assert "default-src" in ENVIRONMENT.loader.get_source(ENVIRONMENT, "page.html")[0]  # type: ignore[union-attr]
    (folder / "page.html").write_bytes(b"<!doctype html>\n<html><head>none of ours")
    assert not is_page(folder / "page.html")


def test_a_device_is_no_file_of_its_name(folder: Path) -> None:
    (folder / "cpu").mkdir()
    done = CliRunner().invoke(smart_export, ["ckpt.pt", "--target", "cpu", "-o", "cpu", "--force"])
    assert "ckpt.pt is damaged" in done.stderr


def test_a_folder_of_data_may_hold_results_but_loses_no_picture(folder: Path) -> None:
    pictures = folder / "pictures"
    (pictures / "train" / "cat").mkdir(parents=True)
    picture = pictures / "train" / "cat" / "1.png"
    picture.write_bytes(b"\x89PNG")
    check_outputs([Output("-o", pictures / "ckpt.pt")], inputs=[pictures])
    with pytest.raises(OutputError, match="would replace or change"):
        check_outputs([Output("--plot", picture, is_plot)], inputs=[pictures], force=True)
