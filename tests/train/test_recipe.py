from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from smart_train.cli import NOT_IN_RECIPES
from smart_train.cli import main as smart_train
from smart_train.errors import ConfigError
from smart_train.training.recipe import MAX_BYTES, read_recipe
from train.networks import few_digits

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").iterdir())
TINY = """
batch-size = 64
epochs = 1
align = 1
eps = "1/10"
steps = 1
flip = true
train_images = 200
test_images = 40
[model_arg]
width = 4
"""
FEW = ("--data", few_digits())
OPTIONS = {p.name: p for p in smart_train.params}


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(smart_train, arguments)


def config(checkpoint: Path) -> dict[str, object]:
    found: dict[str, object] = torch.load(checkpoint, weights_only=True)["training"]
    return found


@pytest.mark.parametrize("form", ["toml", "json"])
def test_a_recipe_is_a_whole_run_and_the_command_line_outweighs_it(tmp_path: Path, form: str) -> None:
    recipe = tmp_path / f"tiny.{form}"
    recipe.write_text(TINY)
    if form == "json":
        recipe.write_text(json.dumps(read_toml(TINY, tmp_path)))
    done = invoke("--recipe", str(recipe), *FEW, "-o", str(tmp_path / "a.pt"))
    assert done.exit_code == 0, done.output
    first = config(tmp_path / "a.pt")
    assert first["batch_size"] == 64
    assert first["model_arguments"] == {"width": 4}
    assert first["attack"] == {"name": "pgd", "eps": 0.1, "steps": 1, "restarts": 1, "step_size": None}
    assert first["augmentation"] == {"crop_pad": 0, "flip": True}
    assert first["train_images"] == 200
    assert isinstance(first["data"], dict)
    assert first["data"]["train"] == 200
    done = invoke("--recipe", str(recipe), *FEW, "--batch-size", "50", "--eps", "0.2", "-o", str(tmp_path / "b.pt"))
    assert done.exit_code == 0, done.output
    second = config(tmp_path / "b.pt")
    assert (second["batch_size"], second["epochs"]) == (50, 1)
    assert isinstance(second["attack"], dict)
    assert second["attack"]["eps"] == 0.2


def read_toml(text: str, folder: Path) -> dict[str, object]:
    path = folder / "copy.toml"
    path.write_text(text)
    return dict(read_recipe(path))


@pytest.mark.parametrize(
    ("recipe", "options", "align"),
    [  # slow: what the recipe says alone is in every recipe above
        pytest.param("align = 4", [], 4, marks=pytest.mark.slow),
        ('target = "cpu"', ["--align", "2"], 2),
        ("align = 2", ["--target", "jetson-orin"], 8),
    ],
    ids=["recipe alone", "target in the recipe", "align in the recipe"],
)
def test_what_is_typed_of_align_and_target_outweighs_the_recipe(
    tmp_path: Path, recipe: str, options: list[str], align: int
) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.replace("align = 1", recipe).replace("width = 4", "width = 16"))
    done = invoke("--recipe", str(path), *FEW, *options, "-o", str(tmp_path / "ckpt.pt"))
    assert done.exit_code == 0, done.output
    structure = config(tmp_path / "ckpt.pt")["structure"]
    assert isinstance(structure, dict)
    assert structure["align"] == align


def test_what_is_typed_of_attack_and_augmentation_outweighs_what_the_recipe_says_around_it(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.replace("steps = 1", 'steps = 3\nstep_size = "1/50"'))
    typed = ["--no-flip", "--attack", "fgsm-rs", "--plot"]
    done = invoke("--recipe", str(path), *FEW, *typed, "-o", str(tmp_path / "ckpt.pt"))
    assert done.exit_code == 0, done.output
    found = config(tmp_path / "ckpt.pt")
    assert found["attack"] == {"name": "fgsm-rs", "eps": 0.1, "steps": 1, "restarts": 1, "step_size": None}
    assert found["augmentation"] == {"crop_pad": 0, "flip": False}
    assert (tmp_path / "ckpt.history.png").exists()
    done = invoke("--recipe", str(path), *FEW, "--eps", "0.3", "-o", str(tmp_path / "wide.pt"))
    assert done.exit_code == 0, done.output
    attack = config(tmp_path / "wide.pt")["attack"]
    assert isinstance(attack, dict)
    assert (attack["steps"], attack["step_size"]) == (3, None), "a step of 1/50 could not reach 0.3"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_ours_has_a_reason_for_each_number(path: Path) -> None:
    for name, value in read_recipe(path).items():
        assert name in OPTIONS, name
        assert name not in NOT_IN_RECIPES
        numbers = value if isinstance(value, dict) else {name: value}
        for key in numbers:
            line = next(line for line in path.read_text().splitlines() if line.startswith(f"{key} = "))
            plain = isinstance(value, str) and not value[0].isdigit()
            assert plain or "# " in line, f"no source or reason: {line}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_ours_trains(path: Path, tmp_path: Path) -> None:
    small = [
        *FEW,
        "--train-images",
        "64",
        "--test-images",
        "50",
        "--model",
        "resnet8",
        "--model-arg",
        "width=8",
    ]
    done = invoke("--recipe", str(path), *small, "--batch-size", "32", "--epochs", "1", "-o", str(tmp_path / "ckpt.pt"))
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.toml", None, "No such file"),
        ("recipe.yaml", "epochs: 3", "does not end in .toml or .json"),
        ("recipe.toml", "epochs 3", "is no recipe: "),
        ("recipe.json", "{", "is no recipe: "),
        ("recipe.json", "[" * 100_000, "is no recipe: "),
        ("recipe.json", "[1]", "expected an object"),
        ("recipe.json", '{"epochs": 1, "epochs": 2}', "a key that stands twice"),
        ("recipe.toml", "epochs = 1\nepochs = 2", "is no recipe: "),
        ("recipe.toml", "batch_size = 8\nbatch-size = 9", "batch_size stands twice"),
        ("recipe.toml", "\udcff", "is no recipe: "),
        ("recipe.toml", "#" * (MAX_BYTES + 1), "at most 1048576 bytes"),
        ("recipe.toml", "epoch = 3", "'epoch' in "),
        ("recipe.toml", 'recipe = "other.toml"', "'recipe' in "),
        ("recipe.toml", "resume = true", "'resume' in "),
        ("recipe.toml", 'data_dir = "data"', "'data_dir' in "),
        ("recipe.toml", "no_cache = true", "'no_cache' in "),
        ("recipe.toml", "json = true", "'json' in "),
        ("recipe.toml", "epochs = [1, 2]", "got [1, 2]"),
        ("recipe.toml", "epochs = 7.5", "'7.5' is not a valid integer"),
        ("recipe.toml", "epochs = true", "text or a number is wanted"),
        ("recipe.toml", 'epochs = "many"', "'many' is not a valid integer"),
        ("recipe.toml", f"epochs = 0x{'f' * 5000}", "--epochs does not take"),
        ("recipe.toml", 'model = "vgg"', "unknown 'vgg'; there are resnet8, "),
        ("recipe.toml", 'flip = "yes"', "true or false is wanted"),
        ("recipe.toml", "model_arg = 32", "a table is wanted"),
        ("recipe.toml", "[epochs]\na = 1", "text or a number is wanted"),
        ("recipe.toml", '[model_arg]\nwidth = "wide"', "a width as an integer, got 'wide'"),
        ("recipe.toml", "density = 2", "density in (0, 1]"),
        ("recipe.toml", "crop_pad = -1", "crop"),
        ("recipe.toml", "train_images = 1", "train"),
    ],
)
def test_a_bad_recipe_is_one_line_and_status_1(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    done = invoke("--recipe", str(path), "-o", str(tmp_path / "ckpt.pt"))
    assert (done.exit_code, done.stdout) == (1, ""), done.output
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ([name] if content is not None else [])


def test_the_reader_gives_names_as_options_have_them(tmp_path: Path) -> None:
    assert read_toml(TINY, tmp_path)["batch_size"] == 64
    with pytest.raises(ConfigError):
        read_toml("a = 1979-05-27", tmp_path)
