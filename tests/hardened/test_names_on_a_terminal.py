"""No name steers a terminal or a log, and none that is no UTF-8 ends a command in a traceback."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from runtime.bundles import HEIGHT, WIDTH, write_bundle
from smart_common.console import cli as house
from smart_common.errors import OutputError, SmartError
from smart_common.names import printable

ESCAPE, BELL, FORGED, TURNED, NO_UTF8 = "a\x1b[2Jb", "a\x07b", "a\nall holds", "a\u202eb", "a\udcffb"
NAMES = {"escape": ESCAPE, "bell": BELL, "newline": FORGED, "turned": TURNED, "no UTF-8": NO_UTF8, "C1": "a\x9b2Jb"}
ENTRIES = {
    "run": ("smart_runtime.cli", ["infer", "BUNDLE", "PICTURE"]),
    "run info": ("smart_runtime.cli", ["info", "BUNDLE"]),
    "bench": ("smart_runtime.bench.cli", ["BUNDLE", "--blocks", "2", "--plot", "NAME.svg"]),
}
REFUSED = {
    "run": (
        "smart_runtime.cli",
        [["infer", "NAME", "p"], ["infer", "bundle", "NAME"], ["infer", "b", "--NAME"]],
    ),
    "run info": ("smart_runtime.cli", [["info", "NAME"], ["info", "bundle", "--trust", "NAME"], ["NAME"]]),
    "run calibrate": ("smart_runtime.cli", [["calibrate", "NAME", "p"], ["calibrate", "b", "NAME", "-o", "NAME"]]),
    "bench": ("smart_runtime.bench.cli", [["NAME"], ["--compare", "NAME", "NAME"], ["bundle", "--batch", "NAME"]]),
    "devices": ("smart_devices.cli", [["show", "NAME"], ["NAME"]]),
    "train": (
        "smart_train.cli",
        [
            *(["--data", "npz:NAME"], ["--extra", "npz:NAME"], ["--recipe", "NAME"], ["--init", "NAME"]),
            *(["-o", "NAME/c.pt"], ["--plot", "NAME"], ["--method", "vfd", "--teacher", "NAME"]),
        ],
    ),
    "eval": ("smart_eval.cli", [["NAME"], ["bundle", "--trust", "NAME"], ["bundle", "--attack", "NAME"]]),
    "export": (
        "smart_export.cli",
        [
            ["NAME", "--target", "cpu"],
            ["check", "NAME"],
            ["info", "NAME"],
            ["keygen", "no/NAME"],
            ["x", "--target", "NAME"],
        ],
    ),
}


def clean(text: str) -> bool:
    return all(map(str.isprintable, text.replace("\udcff", "?").split("\n"))) and "\udcff" not in text


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("command", REFUSED)
def test_what_was_typed_is_shown_without_control_characters(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module, lines = REFUSED[command]
    for line in lines:
        arguments = [word.replace("NAME", name) for word in line]
        done = CliRunner().invoke(import_module(module).main, arguments)
        assert done.exit_code in {1, 2}, (arguments, done.output)
        assert clean(done.output), (arguments, done.output)
        assert "\nall holds" not in done.output


@pytest.mark.parametrize("command", ENTRIES)
def test_no_name_ends_a_command_under_strict_streams(command: str, tmp_path: Path) -> None:
    module, line = ENTRIES[command]
    name = "x" + "".join(NAMES.values()).replace("\n", "") + "\n"
    bundle = write_bundle(tmp_path / f"{name}bundle")
    picture = tmp_path / f"{name}.png"
    import_module("PIL.Image").new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "plain.png")
    (tmp_path / "plain.png").rename(picture)
    words = {"BUNDLE": str(bundle), "PICTURE": str(picture), "NAME.svg": str(tmp_path / f"{name}.svg")}
    arguments = [words.get(word, word) for word in line]
    for encoding, as_json in (("utf-8:strict", []), ("ascii:strict", ["--json"])):
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments, *as_json],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": encoding},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert clean(done.stdout.decode()), done.stdout
        assert clean(done.stderr.decode()), done.stderr
        if as_json:
            json.loads(done.stdout)
    if command == "bench":
        ET.parse(words["NAME.svg"])  # noqa: S314  # our own file


def test_errors_and_logs_of_the_library_are_clean_too(caplog: pytest.LogCaptureFixture) -> None:
    for name in NAMES.values():
        error = OutputError(f"no folder {name}; make it")
        assert str(error).isprintable()
        logging.getLogger("smart_common").error("it failed: %s", error)
    assert all(map(str.isprintable, caplog.messages))
    joined = "\U0001f408\u200d\u2b1b"  # a black cat: two signs and what joins them
    assert str(SmartError(joined)) == joined
    assert printable("a\tb") == "a?b"


def test_where_an_error_arose_is_told_cleanly() -> None:
    code = (
        "import click\nfrom smart_common.console import cli as house\nfrom smart_common.errors import SmartError\n"
        "@click.command(cls=house.Command)\ndef main():\n"
        f" try: raise ValueError({ESCAPE!r})\n except ValueError as e: raise SmartError('no') from e\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code, "-v"], capture_output=True, text=True, check=False)
    assert "ValueError: a?[2Jb" in done.stderr
    assert clean(done.stderr)


def test_lines_and_cells_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES.values():
        house.say(name)
        house.note(name)
        house.say_error(name)
        house.console().print(house.table(name, ["file"], [[name]]))
    shown = capsys.readouterr()
    assert clean(shown.out)
    assert clean(shown.err)
    assert "all holds" not in (shown.out + shown.err).splitlines()
