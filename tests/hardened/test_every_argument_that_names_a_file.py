"""Every argument and option of every command that may name a file, given something else: a sentence, no traceback.

They are found in the commands themselves, so that a new one is tried without a word here.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from export.singles import single
from runtime.bundles import write_bundle
from runtime.operating_points import write_watched_bundle
from smart_common.console.entry import COMMANDS
from smart_common.errors import SmartError
from smart_common.names import is_printable
from smart_runtime import SmartModel
from smart_runtime.engines.trt.tensorrt_engine import TensorRtEngine
from smart_runtime.tripwire.operating_point import LEAST_FRAMES
from smart_train.checkpoint.format import save_checkpoint

FIRST = Path(__file__).parent.parent / "formats" / "first"

_EVAL = ("good.pt", "--data", "npz:good.npz", "--attack", "clean")
_EVAL_BUNDLE = ("channel-bundle", *_EVAL[1:])
_TRAIN = (
    *("--data", "npz:good.npz", "--model-arg", "width=4", "--epochs", "1", "--batch-size", "4"),
    *("--structure", "unstructured", "-o", "new.pt"),
)
_BUILD = ("good.pt", "--target", "cpu", "-o", "new")
_SEPARATE = ("--clean", "one-path.pt", "--target", "cpu", "-o", "new")  # of an option that stands twice the last counts

# What a command is given beside the argument that is tried: files that are as they should be, by their names in the
# folder of the tests. An argument or option by itself stands for the one that is tried.
GIVEN: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "devices list": ({}, ()),
    "devices show": ({"name": "cpu"}, ()),
    "devices detect": ({}, ()),
    "devices doctor": ({}, ()),
    "run infer": ({"bundle": "bundle", "pictures": "good.png"}, ()),
    "run info": ({"bundle": "bundle"}, ()),
    "run calibrate": ({"bundle": "watched", "folder": "pictures"}, ("-o", "new.json")),
    "run install": ({"bundle": "bundle"}, ()),
    "run audit verify": ({"file": "good.jsonl"}, ()),
    "run selftest": ({"bundle": "bundle"}, ("--engine", "onnxruntime-cpu")),
    "bench": ({"bundle": "bundle"}, ("--blocks", "2")),
    "train": ({}, _TRAIN),
    "eval": ({"models": "good.pt"}, ("--data", "npz:good.npz", "--attack", "clean")),
    "export build": ({"checkpoint": "good.pt"}, ("--target", "cpu", "-o", "new")),
    "export check": ({"place": "bundle"}, ()),
    "export keygen": ({"key": "new"}, ()),
    "export info": ({"checkpoint": "good.pt"}, ()),
}
# What it is given for an option that nothing would look at otherwise.
FOR_AN_OPTION = {
    ("bench", "saved"): (),
    ("train", "teacher"): (*_TRAIN, "--method", "vfd", "--teacher", "good.pt"),
    ("eval", "include"): (*_EVAL, "--report", "new.html"),
    ("eval", "resume"): (*_EVAL, "-o", "new.jsonl"),
    ("eval", "source"): _EVAL_BUNDLE,
    ("eval", "trust"): _EVAL_BUNDLE,
    ("eval", "engine"): _EVAL_BUNDLE,
    ("export build", "calibration"): (*_BUILD, "--precision", "int8"),
    ("export build", "clean"): ("--robust", "one-path.pt", *_SEPARATE),
    ("export build", "robust"): ("--robust", "one-path.pt", *_SEPARATE),
    ("export build", "jetpack"): ("good.pt", "--target", "jetson-orin", "-o", "new"),
    ("export build", "rtx"): ("good.pt", "--target", "desktop-gpu", "-o", "new"),
    ("export check", "target"): ("bundle/clean/model.onnx",),
    ("export check", "pattern"): ("bundle/clean/model.onnx",),
}
ACCEPTED = ("directory", "device", "newline", "missing")  # by some: as an output, or since nothing looks at it
FORMS = {
    "data": ("npz:{}", "folder:{}"),
    "extra": ("npz:{}",),
    "calibration": ("npz:{}", "folder:{}"),
    "model": ("{}:build",),
    "init": ("{}", "robust={}"),
}
"""How texts name a file that do not so by its name alone."""


def commands() -> Iterator[tuple[str, click.Command]]:
    for name, (module, _, _) in COMMANDS.items():
        yield from within(name, import_module(module).main)


def within(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for one, inner in command.commands.items():
            yield from within(f"{name} {one}", inner)
    else:
        yield name, command


def takes_a_name(parameter: click.Parameter) -> bool:
    """Whether it takes text that may name a file: all but flags, numbers and words of a list."""
    numbers = click.types.IntParamType | click.types.FloatParamType
    return not getattr(parameter, "is_flag", False) and not isinstance(parameter.type, numbers | click.Choice)


ALL = [(name, one) for name, command in commands() for one in command.params if takes_a_name(one)]
NUMBERED = [
    (name, one)
    for name, command in commands()
    for one in command.params
    if isinstance(one.type, click.types.IntParamType | click.types.FloatParamType)
]
NUMBERS = ("nan", "inf", "-inf", "1e308", "-1", "0", "2147483648", "9" * 30, "9" * 5000)


def suffixes(parameter: click.Parameter) -> list[str]:
    """None, and two of those that its help page speaks of."""
    told = f"{parameter.metavar} {getattr(parameter, 'help', '')}"
    return ["", *sorted(set(re.findall(r"(?<=[A-Z ])\.[a-z]{2,11}\b(?!\.)", told)))[:2]]


def hostile(folder: Path, suffix: str) -> dict[str, Path]:
    """Make what stands in the place of a file whose name ends with ``suffix``."""
    folder.mkdir()
    kinds = ("directory", "empty", "device", "picture", "checkpoint")
    made = {kind: folder / f"{kind}{suffix}" for kind in kinds}
    made["directory"].mkdir()
    made["empty"].write_bytes(b"")
    made["device"].symlink_to("/dev/zero")  # a link, since root may replace a device by a file
    made["checkpoint"].write_bytes((FIRST / "channel.pt").read_bytes())
    Image.new("RGB", (4, 6)).save(made["picture"], "PNG")
    made["newline"] = folder / f"new\nline\x1b[31m{suffix}"
    made["newline"].write_text("\x1b[2J = [{\n\0", encoding="utf-8")
    made["missing"] = folder / f"mis\nsing{suffix}"
    made["below a file"] = made["empty"] / f"file{suffix}"
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_bundle(folder / "bundle")
    write_watched_bundle(folder / "watched")
    (folder / "pictures").mkdir()
    for number in range(LEAST_FRAMES):
        Image.new("RGB", (4, 6), (number, 0, 0)).save(folder / f"pictures/{number}.png")
    (folder / "channel-bundle").symlink_to(FIRST / "channel-bundle")
    shutil.copy(FIRST / "channel.pt", folder / "good.pt")
    save_checkpoint(single("alone", width=4, seed=0), folder / "one-path.pt")
    Image.new("RGB", (4, 6)).save(folder / "good.png")
    labels = np.arange(40) % 10
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    arrays: dict[str, Any] = {
        "train_images": images,
        "train_labels": labels,
        "test_images": images[:10],
        "test_labels": labels[:10],
    }
    np.savez(folder / "good.npz", **arrays)
    SmartModel.load(folder / "bundle", audit=folder / "good.jsonl").close()
    return folder


WORK = "the work would start here"


def work_starts(*_: Any, **__: Any) -> NoReturn:
    raise SmartError(WORK)


def line(name: str, tried: click.Parameter, value: str) -> list[str]:
    """Return the arguments of a command in which ``tried`` has the ``value``."""
    arguments, options = GIVEN[name]
    if isinstance(tried, click.Option):
        given = FOR_AN_OPTION.get((name, str(tried.name)), (*arguments.values(), *options))
        return [*given, tried.opts[-1], *[value] * tried.nargs]
    return [*(value if key == tried.name else text for key, text in arguments.items()), *options]


@pytest.fixture
def until_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """End what takes long where it starts to: by then everything that was given has been looked at."""
    for place in (
        "smart_train.training.loop.Trainer.run",
        "smart_export.build.build_bundle",
        "smart_runtime.bench.compare.calls_per_block",
        "smart_runtime.installing.install.install",
        "smart_runtime.selfcheck.selftest.selftest",
    ):
        monkeypatch.setattr(place, work_starts)
    # A machine without a GPU has nothing to install for, and says so before anything else.
    monkeypatch.setattr("smart_runtime.installing.install.installing_engine", lambda _: TensorRtEngine)


@pytest.fixture
def folder(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that commands run in, with the good files."""
    for place in files.iterdir():
        (tmp_path / place.name).symlink_to(place)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("until_work_starts", "folder")
@pytest.mark.parametrize(
    ("name", "given"),
    [*((name, (*given.values(), *more)) for name, (given, more) in GIVEN.items())]
    + [(name, given) for (name, _), given in FOR_AN_OPTION.items() if given],
)
def test_what_is_given_beside_is_as_it_should_be(name: str, given: tuple[str, ...]) -> None:
    result = CliRunner().invoke(dict(commands())[name], given)
    assert result.exit_code == 0 or WORK in result.stderr, result.output


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "and all the work"])
@pytest.mark.parametrize(("name", "tried"), ALL, ids=[f"{name} {one.opts[-1]}" for name, one in ALL])
def test_what_is_no_such_file_is_one_sentence(
    folder: Path, request: pytest.FixtureRequest, name: str, tried: click.Parameter, whole: bool
) -> None:
    if not whole:
        request.getfixturevalue("until_work_starts")
    command = dict(commands())[name]
    wrong = []
    for number, suffix in enumerate(suffixes(tried)):
        named: dict[str, str | Path] = {"nothing": "", "here": "."} if number == 0 else {}
        for kind, place in (named | hostile(folder / f"hostile{number}", suffix)).items():
            if whole and kind not in ACCEPTED:
                continue
            for form in FORMS.get(str(tried.name), ("{}",)):
                said = what_is_wrong(command, line(name, tried, form.format(place)))
                if said:
                    wrong.append(f"{kind}{suffix} as {form}: {said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.usefixtures("until_work_starts", "folder")
@pytest.mark.parametrize(("name", "tried"), NUMBERED, ids=[f"{name} {one.opts[-1]}" for name, one in NUMBERED])
def test_no_number_ends_a_command_in_a_traceback(name: str, tried: click.Parameter) -> None:
    said = {number: what_is_wrong(dict(commands())[name], line(name, tried, number)) for number in NUMBERS}
    assert not any(said.values()), said


def what_is_wrong(command: click.Command, arguments: list[str]) -> str:
    """Run the command, and return what is wrong with how it ends; "" for nothing."""
    result = CliRunner().invoke(command, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"a traceback that ends with {result.exception!r}"
    lines = result.stderr.splitlines()
    errors = [one for one in lines if one.lower().startswith("error: ")]
    if result.exit_code not in {0, 1, 2} or len(errors) != min(result.exit_code, 1) or "Traceback" in result.output:
        return f"status {result.exit_code} and {len(errors)} sentences: {lines}"
    if errors and errors[0] != lines[-1]:
        return f"more than a sentence: {lines}"
    return "" if all(map(is_printable, result.output.splitlines())) else f"control characters: {lines}"
