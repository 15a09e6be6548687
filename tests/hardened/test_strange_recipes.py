"""A stranger's recipe chooses no files and no sizes, and is refused quickly whatever its form."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smart_train.cli import main as smart_train
from smart_train.errors import ConfigError
from smart_train.training.config import TrainConfig
from smart_train.training.plain_network import plain_network
from smart_train.training.recipe import read_recipe
from train.networks import image_set

_SECONDS = 2  # a refusal takes milliseconds; the machine may be busy


def refusal(recipe: Path, *typed: str) -> str:
    """Return the one sentence with which the recipe is refused; nothing was written beside it."""
    before = sorted(recipe.parent.iterdir())
    done: Result = CliRunner().invoke(smart_train, ["--recipe", str(recipe), *typed])
    assert (done.exit_code, done.stdout) == (1, ""), done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 2000
    assert sorted(recipe.parent.iterdir()) == before
    return done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('output = "{0}/victim"', "'output' in "),
        ('plot = "{0}/victim.png"', "'plot' in "),
        ("plot = true", "'plot' in "),
        ('tensorboard = "{0}"', "'tensorboard' in "),
        ('init = "{0}/victim"', "'init' in "),
        ('teacher = "{0}/victim"', "'teacher' in "),
        ('extra = "npz:{0}/victim"', "'extra' in "),
        ('data = "npz:{0}/victim"', "data in "),
        ('data = "folder:{0}"', "data in "),
        ('target = "{0}/victim.json"', "target in "),
        ('model = "{0}/victim.py:build"', "is in a file alone"),
        ('resume = "{0}/victim"', "'resume' in "),
    ],
)
def test_a_recipe_chooses_no_file(tmp_path: Path, line: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim").write_text("precious")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(line.format(tmp_path) + "\n")
    assert words in refusal(recipe)
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dots.toml", "a." * 20_000 + "a = 1"),
        ("spaced.toml", " . ".join(['"a"'] * 20_000) + " = 1"),
        ("header.toml", "[" + "a." * 20_000 + "a]\n"),
        ("many.toml", "[a]\n" + "a.a.a.a.a.a.a.a.a.a.a = 1\n" * 15_000),
        ("tables.toml", "a = " + "{a = " * 60_000),
        ("lists.toml", "a = " + "[" * 400_000),
        ("hidden.toml", 'x = """\n x\'""" , {' + "a." * 20_000 + "a = 1 , 'b' = 2}\n"),
        ("separator.toml", '"\u2028x"' + ".a" * 20_000 + ' = "'),
        ("deep.json", '{"a": ' * 60_000),
        ("text.toml", f'data = "{"a" * 400_000}"'),
        ("model.toml", f'model = "a{".a" * 200_000}:b"'),
        ("key.toml", f"{'a' * 400_000} = [1]"),
        ("number.toml", f"epochs = 0x{'f' * 400_000}"),
    ],
    ids=lambda value: value if value.endswith((".toml", ".json")) else "",
)
def test_a_recipe_of_any_form_is_refused_quickly(tmp_path: Path, name: str, text: str) -> None:
    recipe = tmp_path / name
    recipe.write_text(text)
    started = time.process_time()
    refusal(recipe)
    assert time.process_time() - started < _SECONDS


@pytest.mark.parametrize(
    "line", ["epochs = 1000000000000000000000000000000", "lr = 1e300", "weight_decay = inf", "eps = nan"]
)
def test_a_recipe_chooses_no_number_without_a_bound(tmp_path: Path, line: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(line)
    assert f"a number of {2**31} or more" in refusal(recipe)


@pytest.mark.parametrize("form", ["toml", "json"])
def test_what_a_recipe_is_for_is_still_read(tmp_path: Path, form: str) -> None:
    wanted = {"method": "trades", "eps": "8/255", "lr": 0.1, "flip": True, "epochs": 3, "model_arg": {"width": 16}}
    recipe = tmp_path / f"recipe.{form}"
    lines = [
        "# Zhu and Gupta 2017, arXiv 1710.01878, sections 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7 [a] [b] [c] [d] [e] [f]",
        'method = "trades"  # a. b. c. d. e. f. g. h. i. j.',
        "eps = '8/255'\nlr = 0.1\nflip = true\nepochs = 3\n[model_arg]\nwidth = 16",
    ]
    recipe.write_text("\n".join(lines) if form == "toml" else json.dumps(wanted))
    assert read_recipe(recipe) == wanted


def test_a_network_that_would_fill_the_memory_is_not_built() -> None:
    config = TrainConfig(model="resnet34", model_arguments={"width": 4096})
    with pytest.raises(ConfigError, match=r"^resnet34 has 87\d+ parameters with these arguments, and at most"):
        plain_network(config, image_set(), factory=None, initial=None)
