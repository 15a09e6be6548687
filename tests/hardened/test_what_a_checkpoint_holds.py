"""What a training takes, its checkpoint's reader takes too: all else is refused before the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from smart_train.attacks import Attack
from smart_train.checkpoint.reader import Reader
from smart_train.choices import MAX_ARGUMENTS, MAX_DECIMAL, MAX_INTEGER, Argument
from smart_train.cli import main as smart_train
from smart_train.errors import ConfigError
from smart_train.masking.structure import Structure
from smart_train.training.config import TrainConfig


@pytest.mark.parametrize("option", ["--align", "--min-channels", "--epochs", "--batch-size", "--steps"])
def test_an_integer_that_no_reader_takes_is_refused_before_the_training(option: str, tmp_path: Path) -> None:
    out = tmp_path / "a.pt"
    line = ["--data", "digits", "--epochs", "1", option, str(MAX_INTEGER + 1), "-o", str(out)]
    done = CliRunner().invoke(smart_train, line)
    assert (done.exit_code, done.stdout) == (1, ""), done.output
    assert f"{MAX_INTEGER}, got " in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value", [MAX_INTEGER + 1, -MAX_INTEGER - 1, MAX_DECIMAL, float("nan"), float("inf"), "", "x" * 1025, "a\nb", [1]]
)
def test_an_argument_that_no_reader_takes_is_refused_before_the_training(value: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be stored in a checkpoint"):
        TrainConfig(model_arguments={"width": value})
    with pytest.raises(ConfigError, match="cannot be stored in a checkpoint"):
        TrainConfig(model_arguments={"a\nb": 1})
    with pytest.raises(ConfigError, match=f"at most {MAX_ARGUMENTS} arguments"):
        TrainConfig(model_arguments={f"a{i}": i for i in range(MAX_ARGUMENTS + 1)})


def test_the_largest_of_each_is_taken_by_both(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    read = Reader(path)
    largest: dict[str, Argument] = {"integer": MAX_INTEGER, "decimal": MAX_DECIMAL - 1, "yes": True, "text": "x" * 1024}
    assert TrainConfig(model_arguments=largest).model_arguments == largest
    assert {name: read.argument(largest, name) for name in largest} == largest
    structure = Structure(align=MAX_INTEGER, min_channels=MAX_INTEGER)
    assert read.integer({"align": structure.align}, "align") == MAX_INTEGER
    with pytest.raises(ConfigError, match=f"each at most {MAX_INTEGER}"):
        Attack(restarts=MAX_INTEGER + 1)
    assert Attack(steps=MAX_INTEGER, restarts=MAX_INTEGER).steps == MAX_INTEGER
