"""What a method's own defaults are on the command line, beside what is typed and what a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import smart_train.training.cli as work
from smart_train import load_checkpoint
from smart_train.cli import main as smart_train
from smart_train.methods import METHODS, load_method
from smart_train.training.config import TrainConfig


@pytest.mark.parametrize("name", METHODS)
def test_every_default_is_an_option_with_such_values(name: str) -> None:
    options = {option.name: option for option in smart_train.params}
    for key, value in load_method(name).defaults.items():
        assert options[key].type.convert(str(value), options[key], None) == value


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """Have the command end once it knows what to train, and leave that here."""
    found: list[TrainConfig] = []

    def train(ctx: click.Context, **options: Any) -> None:
        found.append(work._config(ctx, options["model"], options))

    monkeypatch.setattr(work, "train", train)
    return found


@pytest.mark.parametrize(
    ("typed", "recipe", "wanted"),
    [
        ("", "", ("smart", "pgd", 7, 0.1, "cosine")),
        ("--method pgd-at", "", ("pgd-at", "pgd", 10, 0.1, "cosine")),
        ("--method pgd-at --steps 3", "", ("pgd-at", "pgd", 3, 0.1, "cosine")),
        ("--method pgd-at --attack fgsm-rs", "", ("pgd-at", "fgsm-rs", 1, 0.1, "cosine")),
        ("--method pgd-at --attack pgd", "", ("pgd-at", "pgd", 10, 0.1, "cosine")),
        ("--method fgsm-rs", "", ("fgsm-rs", "fgsm-rs", 1, 0.2, "cyclic")),
        ("--method n-fgsm --lr 0.1 --schedule steps", "", ("n-fgsm", "n-fgsm", 1, 0.1, "steps")),
        ("", 'method = "n-fgsm"', ("n-fgsm", "n-fgsm", 1, 0.2, "cyclic")),
        ("", 'method = "fgsm-rs"\nlr = 0.1', ("fgsm-rs", "fgsm-rs", 1, 0.1, "cyclic")),
        ("--method smart", 'method = "fgsm-rs"', ("smart", "pgd", 7, 0.1, "cosine")),
        ("--method mart", 'schedule = "steps"\nsteps = 5', ("mart", "pgd", 5, 0.1, "steps")),
    ],
)
def test_what_is_typed_outweighs_a_recipe_and_both_outweigh_the_method(
    tmp_path: Path, configured: list[TrainConfig], typed: str, recipe: str, wanted: tuple[object, ...]
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(recipe)
    done = CliRunner().invoke(smart_train, [*typed.split(), "--recipe", str(file)])
    assert done.exit_code == 0, done.output
    (found,) = configured
    assert (found.method, found.attack.name, found.attack.steps, found.learning_rate, found.schedule) == wanted


def test_an_attack_that_is_not_the_methods_is_refused(configured: list[TrainConfig]) -> None:
    done = CliRunner().invoke(smart_train, ["--method", "fgsm-rs", "--attack", "pgd"])
    assert done.exit_code == 1
    assert done.stderr == "error: method fgsm-rs trains against fgsm-rs, got attack pgd; change either\n"
    assert not configured


def test_a_resumed_training_has_them_too_and_refuses_others(tmp_path: Path, data: str) -> None:
    def invoke(*arguments: str) -> str:
        done = CliRunner().invoke(smart_train, arguments)
        assert done.exit_code == (1 if "error" in done.stderr else 0), done.output
        return done.stderr

    output = str(tmp_path / "ckpt.pt")
    small = ["--data", data, "--model-arg", "width=4", "--align", "1", "--batch-size", "16", "--eps", "0.1"]
    invoke(*small, "--epochs", "1", "--method", "fgsm-rs", "-o", output)
    found = load_checkpoint(tmp_path / "ckpt.pt").training
    assert (found["learning_rate"], found["schedule"], found["attack"]["name"]) == (0.2, "cyclic", "fgsm-rs")
    assert "error" not in invoke("--resume", output, "--lr", "0.2", "--schedule", "cyclic")
    without_default = (["--density", "0.5"], ["--min-channels", "3"], ["--set", "beta=1"], ["--teacher", "a.pt"])
    for option in (["--lr", "0.1"], ["--schedule", "cosine"], ["--attack", "pgd"], *without_default):
        assert f"{option[0]} is not what the training" in invoke("--resume", output, *option)


def test_the_help_page_says_where_a_default_is_the_methods() -> None:
    said = " ".join(CliRunner().invoke(smart_train, ["--help"]).stdout.split())
    for option, usual in (
        ("--attack", "pgd"),
        ("--steps", "7"),
        ("--lr", "0.1"),
        ("--schedule", "cosine"),
        ("--step-size", "2.5"),
    ):
        after = said.partition(f" {option} ")[2]
        assert f"[default: the method's, mostly {usual}" in after[:300], option
