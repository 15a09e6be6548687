"""A network in a file beside the data, in no package; and a checkpoint that does not say which code made it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from smart_eval.cli import main as smart_eval
from smart_export.cli import main as smart_export
from smart_train import CheckpointError, ConfigError, load_checkpoint
from smart_train.architectures.custom import import_factory
from smart_train.cli import main as smart_train
from train.networks import few_digits

CODE = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
from own_blocks import block

@dataclass
class Options:
    width: int

def build(*, num_classes, in_channels, width=16):
    from own_blocks import head
    width = Options(width).width
    return nn.Sequential(block(in_channels, width), block(width, width), head(width, num_classes))
"""
BLOCKS = """
from torch import nn

def block(before, after):
    return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())

def head(width, classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
"""
FEW = ["--data", few_digits(), "--align", "1", "--epochs", "2", "--eps", "0.1", "--steps", "1", "--train-images", "256"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a folder")
    (folder / "nets").mkdir()
    (folder / "nets" / "own-net.py").write_text(CODE)
    (folder / "nets" / "own_blocks.py").write_text(BLOCKS)
    done = invoke(smart_train, *FEW, "--model", f"{folder}/nets/own-net.py:build", "-o", str(folder / "ckpt.pt"))
    assert done.exit_code == 0, done.output
    sys.modules.pop("own_blocks")
    return folder


def invoke(command: Any, *arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_a_checkpoint_remembers_what_the_factory_was_called_and_no_folder(folder: Path) -> None:
    raw = torch.load(folder / "ckpt.pt", weights_only=True)
    assert raw["factory"] == "own-net.py:build"
    assert str(folder).encode() not in (folder / "ckpt.pt").read_bytes()


@pytest.mark.parametrize("command", ["export", "eval", "info"])
def test_commands_say_which_model_to_give(folder: Path, command: str) -> None:
    sys.modules.pop("own_blocks", None)  # of another test
    file = str(folder / "ckpt.pt")
    done = {
        "export": lambda: invoke(smart_export, "build", file, "--target", "cpu"),
        "eval": lambda: invoke(smart_eval, file),
        "info": lambda: invoke(smart_export, "info", file),
    }[command]()
    assert done.exit_code == 1
    assert done.stderr.startswith("error: no factory for a network of your own")
    assert "pass --model own-net.py:build, as in its training" in done.stderr
    assert "own_blocks" not in sys.modules


def test_they_take_it_from_there(folder: Path) -> None:
    path_before = list(sys.path)
    model = ["--model", str(folder / "nets" / "own-net.py:build")]
    done = invoke(smart_export, "info", str(folder / "ckpt.pt"), *model, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["architecture"] == "custom"
    assert sys.path == path_before


def test_two_files_of_one_name_are_two(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "net.py").write_text(f"def build(**given): return {number}")
    found: list[Any] = [import_factory(f"{tmp_path}/{number}/net.py:build") for number in (1, 2)]
    assert [factory(num_classes=2, in_channels=1) for factory in found] == [1, 2]


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("none.py:build", "", "^no file '.*none.py' to import a network from; check the path$"),
        ("net.py:build", "def build(:", r"^cannot import .*net.py:build \(SyntaxError: .*\); correct that file$"),
        ("net.py:make", "def build(): ...", "AttributeError"),
        ("net.py:build", "build = 3", "is nothing to call but of type int"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path: Path, name: str, code: str, words: str) -> None:
    (tmp_path / "net.py").write_text(code)
    with pytest.raises(ConfigError, match=words) as caught:
        import_factory(f"{tmp_path}/{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["$(reboot).py:build", "../net.py:build", "net.py:build; reboot", "os", "a\x1b[1m:b"])
def test_a_stranger_writes_nothing_into_the_advice(folder: Path, tmp_path: Path, name: str) -> None:
    raw = torch.load(folder / "ckpt.pt", weights_only=True)
    raw["factory"] = name
    torch.save(raw, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=r"^expected (the name of a factory|printable text)"):
        load_checkpoint(tmp_path / "ckpt.pt")


def test_an_older_checkpoint_names_none(folder: Path, tmp_path: Path) -> None:
    raw = torch.load(folder / "ckpt.pt", weights_only=True)
    del raw["factory"]
    torch.save(raw, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=r"pass --model PACKAGE.MODULE:FACTORY, as in its training"):
        load_checkpoint(tmp_path / "ckpt.pt")
