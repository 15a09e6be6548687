from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from smart_eval.cli import main as smart_eval
from smart_train import load_checkpoint
from smart_train.cli import main as smart_train
from smart_train.errors import ConfigError
from smart_train.options import parse_arguments, parse_fraction

SMALL = [
    "--model-arg",
    "width=4",
    "--align",
    "1",
    "--epochs",
    "2",
    "--batch-size",
    "16",
    "--eps",
    "0.1",
    "--steps",
    "1",
]


def process(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as users do, with a thread to itself."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def invoke(*arguments: str, command: str = "train") -> Result:
    return CliRunner().invoke(smart_train if command == "train" else smart_eval, arguments)


@pytest.fixture(scope="module")
def checkpoint(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    output = tmp_path_factory.mktemp("train") / "ckpt.pt"
    return output, process("smart_train.cli", "--data", data, *SMALL, "--json", "-o", str(output))


Trained = tuple[Path, subprocess.CompletedProcess[str]]


def test_smart_train_prints_its_result_as_json_and_nothing_else(checkpoint: Trained) -> None:
    output, done = checkpoint
    assert done.returncode == 0
    said = [line.split("  ")[0] for line in done.stderr.splitlines()]
    assert said[:4] == ["epoch 1/2", "epoch 1/2", "epoch 2/2", "epoch 2/2"]  # where each begins, and how it went
    assert [line.split(":")[0] for line in said[4:6]] == ["report", "report"]
    assert all(line.startswith("warning: ") for line in said[6:]), "two epochs make no robust path, and it is said"
    answer = json.loads(done.stdout)
    assert {"checkpoint", "history", "seconds", "images_per_second", "paths", "union_density"} <= set(answer)
    assert answer["checkpoint"] == str(output)
    assert list(answer["paths"]) == ["clean", "robust"]
    for row in answer["paths"].values():
        assert {"density", "parameter_density", "clean_accuracy", "robust_accuracy"} <= set(row)
        assert row["density"] == 0.5
        assert 0 < row["parameter_density"] < 1
    masks = answer["masks"]
    assert (masks["mode"], masks["union_density"]) == ("gradual", answer["union_density"])
    assert masks["origin"].startswith("smart-edge's own")
    assert [set(group["kept"]) for group in masks["overlap"]["groups"]] == [{"clean", "robust"}] * 3
    assert max(r["parameter_density"] for r in answer["paths"].values()) <= answer["union_density"] + 0.1


def test_an_epoch_is_one_line_for_people(checkpoint: Trained) -> None:
    output, done = checkpoint
    row = load_checkpoint(output).training["history"][-1]
    assert re.fullmatch(
        rf"epoch 2/2  loss: clean {row['clean_loss']:.3f}, robust {row['robust_loss']:.3f}  "
        rf"validation: clean path {row['clean_path_clean_accuracy']:.3f}, "
        rf"robust path {row['robust_path_clean_accuracy']:.3f}, pgd10x1 {row['robust_path_robust_accuracy']:.3f}  "
        r"\d+ images/s  \d+ s left(  best so far)?",
        done.stderr.splitlines()[3],
    )


@pytest.mark.parametrize(
    ("options", "name"),
    [(["--plot"], "ckpt.history.png"), (["--plot", "PLACE/curves.svg"], "curves.svg")],
    ids=["", "file"],
)
def test_plot_draws_the_curves(data: str, tmp_path: Path, options: list[str], name: str) -> None:
    options = [option.replace("PLACE", str(tmp_path)) for option in options]
    done = invoke("--data", data, *SMALL, *options, "-o", str(tmp_path / "ckpt.pt"))
    assert done.exit_code == 0, done.output
    assert f"plot: {tmp_path / name}" in done.stderr
    assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_a_foreign_history_is_never_written_over(data: str, tmp_path: Path, force: list[str]) -> None:
    (tmp_path / "ckpt.history.csv").write_text("mine")
    (tmp_path / "ckpt.pt").write_text("old")
    done = invoke("--data", data, *SMALL, "-o", str(tmp_path / "ckpt.pt"), *(force or ["--resume"]))
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "is not the history of a training" in done.stderr
    assert (tmp_path / "ckpt.history.csv").read_text() == "mine"
    assert (tmp_path / "ckpt.pt").read_text() == "old"


def test_a_plot_that_cannot_be_written_takes_no_result_with_it(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smart_train.training.cli.draw_history", full)
    done = invoke("--data", data, *SMALL, "--plot", "--json", "-o", str(tmp_path / "ckpt.pt"))
    assert done.exit_code == 1
    assert json.loads(done.stdout)["checkpoint"] == str(tmp_path / "ckpt.pt")
    assert done.stderr.splitlines()[-1] == "error: the system refused: No space left on device"


@pytest.mark.parametrize("module", ["matplotlib", "tensorboard"])
def test_a_missing_extra_is_named_before_the_training(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module] + [module]:
        monkeypatch.setitem(sys.modules, name, None)
    option, extra = {
        "matplotlib": (["--plot"], "plot"),
        "tensorboard": (["--tensorboard", str(tmp_path / "events")], "tensorboard"),
    }[module]
    done = invoke("--data", data, *SMALL, *option, "-o", str(tmp_path / "ckpt.pt"))
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert f"pip install 'smart-edge[{extra}]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_and_an_npz_of_the_same_pictures_give_the_same_history_to_the_bit(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays: dict[str, list[np.ndarray]] = {f"{part}_{what}": [] for part in ("train", "test") for what in "il"}
    for part, each in (("train", 30), ("test", 4)):
        for label, name in enumerate(("bird", "car", "dog")):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for i in range(each):
                coarse = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8)
                file = folder / f"{i:04}.jpg"
                Image.fromarray(coarse).resize((8, 8)).save(file, quality=75)
                arrays[f"{part}_i"].append(np.asarray(Image.open(file)))
                arrays[f"{part}_l"].append(np.array(label))
    np.savez(
        tmp_path / "pictures.npz",
        train_images=np.stack(arrays["train_i"]),
        train_labels=np.stack(arrays["train_l"]),
        test_images=np.stack(arrays["test_i"]),
        test_labels=np.stack(arrays["test_l"]),
        class_names=np.array(["bird", "car", "dog"]),
    )
    histories = []
    for i, data in enumerate((f"folder:{tmp_path / 'pictures'}", f"npz:{tmp_path / 'pictures.npz'}")):
        for again in ("", "again"):  # the folder comes from the cache the second time
            place = tmp_path / f"{i}{again}"
            place.mkdir()
            augmented = ["--flip", "--crop-pad", "1", "--train-images", "64"]
            done = invoke("--data", data, *SMALL, *augmented, "-o", str(place / "ckpt.pt"))
            assert done.exit_code == 0, done.output
            histories.append((place / "ckpt.history.csv").read_bytes())
    assert len(set(histories)) == 1
    assert len(histories[0].splitlines()) == 3


def test_smart_eval_measures_what_smart_train_reported(checkpoint: Trained, data: str) -> None:
    output, done = checkpoint
    trained = json.loads(done.stdout)
    found = process("smart_eval.cli", str(output), "--data", data, "--steps", "5", "--json")
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert answer["attack"] == {"name": "pgd", "eps": 0.1, "steps": 5, "restarts": 1}
    assert answer["examples"] == 21
    for path, row in answer["paths"].items():
        assert row["clean_accuracy"] == trained["paths"][path]["clean_accuracy"]
        for what in ("clean", "robust"):
            low, high = row[f"{what}_interval"]
            assert 0 <= low <= row[f"{what}_accuracy"] <= high <= 1
            assert high - low > 0.05, "21 images cannot say it so exactly"


def test_smart_eval_of_an_attack_without_strength_finds_robust_equal_to_clean(checkpoint: Trained, data: str) -> None:
    done = invoke(
        str(checkpoint[0]), "--data", data, "--eps", "0", "--examples", "9", "--restarts", "2", "--json", command="eval"
    )
    answer = json.loads(done.stdout)
    assert answer["examples"] == 9
    assert all(row["clean_accuracy"] == row["robust_accuracy"] for row in answer["paths"].values())


def test_tables_are_for_people(checkpoint: Trained, data: str, tmp_path: Path) -> None:
    done = invoke(str(checkpoint[0]), "--data", data, "--steps", "2", command="eval")
    assert done.exit_code == 0
    assert "21 test images, pgd2x1, eps 0.1" in " ".join(done.stdout.split())
    done = invoke("--data", data, *SMALL, "-o", str(tmp_path / "ckpt.pt"))
    assert done.exit_code == 0, done.output
    assert "pgd20x1" in " ".join(done.stdout.split())


def test_an_existing_checkpoint_is_kept_unless_told_otherwise(data: str, tmp_path: Path) -> None:
    output = tmp_path / "ckpt.pt"
    options = ["--data", data, *SMALL, "-o", str(output)]
    assert invoke(*options).exit_code == 0
    before = output.read_bytes()
    refused = invoke(*options)
    assert refused.exit_code == 1
    assert "to continue it or --force to replace it" in refused.stderr
    both = invoke(*options, "--resume", "--force")
    assert (both.exit_code, both.stderr.count("\n")) == (1, 1)
    other = invoke(*options, "--seed", "1", "--resume")
    assert "another seed" in other.stderr
    assert output.read_bytes() == before
    assert invoke(*options, "--resume").exit_code == 0
    assert output.read_bytes() == before
    assert invoke(*options, "--seed", "1", "--force").exit_code == 0
    assert output.read_bytes() != before
    alone = tmp_path / "alone.pt"  # a finished checkpoint that was copied without its state
    alone.write_bytes(before)
    ended = invoke("--data", data, *SMALL, "-o", str(alone), "--resume")
    assert (ended.exit_code, ended.stderr.count("\n")) == (1, 1)
    assert "this training has ended" in ended.stderr
    assert alone.read_bytes() == before


def test_alignment_that_overrules_the_density_is_said(data: str, tmp_path: Path) -> None:
    done = invoke("--data", data, *SMALL, "--align", "1000", "-o", str(tmp_path / "ckpt.pt"))
    assert done.exit_code == 0
    assert "density will be 1.000 instead of 0.5" in done.stderr
    assert "density will be" not in invoke("--data", data, *SMALL, "-o", str(tmp_path / "b.pt")).stderr


def test_a_home_folder_behind_the_colon_is_found(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(data.removeprefix("npz:")).parent))
    assert invoke("--data", "npz:~/images.npz", *SMALL, "-o", str(tmp_path / "ckpt.pt")).exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--density", "0"], "density in (0, 1], got 0.0"),
        (["--density", "nan"], "density in (0, 1]"),
        (["--eps", "abc"], "eps or a step as a decimal or fraction, got 'abc'"),
        (["--eps", "8/0"], "eps or a step as a decimal or fraction"),
        (["--eps", "1e999999999"], "eps in [0, 1]"),
        (["--eps", "2"], "eps in [0, 1]"),
        (["--align", "8", "--target", "cpu"], "--align and --target cannot be combined"),
        (["--target", "toaster"], "unknown target 'toaster'"),
        (["--batch-size", "1000"], "at most the 39 training images, got 1000"),
        (["--batch-size", "2"], "batch of 4 or more"),
        (["--epochs", "0"], "1 or more epochs"),
        (["--lr", "nan"], "learning rate"),
        (["--steps", "0"], "1 or more steps"),
        (["--attack", "fgsm-rs", "--steps", "3"], "fgsm-rs has 1 step, 3 were asked for"),
        (["--model-arg", "width"], "NAME=VALUE"),
        (["--model-arg", "width=99999"], "width from 1 to 4096"),
        (["--model-arg", "depth=3"], "resnet8 has no argument depth, only width"),
        (["--data", "cifar"], "unknown data 'cifar'; there are digits, cifar10, "),
        (["--data", "cifar10", "--data-dir", "nowhere"], "no cifar-10-batches-py or cifar-10-python.tar.gz in nowhere"),
        (["--cache-dir", "x", "--no-cache"], "--cache-dir and --no-cache cannot be combined"),
        (["--train-images", "40"], "40"),
        (["--test-images", "22"], "1 to 21 examples, got 22"),
        (["--crop-pad", "-1"], "crop padding of 0 or more"),
        (["--crop-pad", "9"], "crop padding of at most 8"),
        (["--step-size", "fast"], "a step as a decimal or fraction, got 'fast'"),
        (["--plot", "curves.doc"], "ending in .png"),
        (["--plot", "no/such/folder/curves.png"], "no directory for the plot at no/such/folder"),
        (["--data", "npz:nowhere.npz"], "no file nowhere.npz"),
        (["--data", "folder:nowhere"], "no folders train and test in nowhere"),
        (["-o", "no/such/folder/ckpt.pt"], "no folder no/such/folder for ckpt.pt"),
        (["--seed", "-1"], "seed from 0"),
        (["--precision", "16-mixed", "--device", "cpu"], "precision 16-mixed needs a CUDA device"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_one_line_and_status_1(data: str, tmp_path: Path, options: list[str], words: str) -> None:
    small = ["--model-arg", "width=4", "--batch-size", "16"]
    done = invoke("--data", data, *small, "-o", str(tmp_path / "ckpt.pt"), *options)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(("error: expected ", f"error: {words}"))  # values; conflicts and absences
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--model", "vgg"], ["--epochs", "many"], ["--nonsense"], ["extra"]], ids=" ".join)
def test_a_wrong_use_is_status_2(options: list[str]) -> None:
    done = invoke(*options)
    assert done.exit_code == 2
    assert "Usage:" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "was trained on npz, which no name tells; give the same as --data"),
        (["--data", "digits"], "images (1, 8, 8) of 3 classes"),
        (["--data", "DATA", "--examples", "0"], "1 to 21 examples"),
        (["--data", "DATA", "--examples", "22"], "1 to 21 examples"),
        (["--data", "DATA", "--restarts", "0"], "1 or more steps and restarts"),
        (["--data", "DATA", "--eps", "x"], "eps or a step as a decimal"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_smart_eval_refuses_what_it_cannot_measure(
    checkpoint: Trained, data: str, options: list[str], words: str
) -> None:
    done = invoke(str(checkpoint[0]), *(data if o == "DATA" else o for o in options), command="eval")
    assert (done.exit_code, done.stdout) == (1, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_errors_are_one_line_from_a_real_process_too(tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").write_text("hello")
    done = process("smart_eval.cli", str(tmp_path / "ckpt.pt"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {tmp_path / 'ckpt.pt'} is damaged or no smart-edge checkpoint")


@pytest.mark.parametrize(("text", "value"), [("0.3", 0.3), ("8/255", 8 / 255), ("1", 1.0), ("0", 0.0), ("1/2", 0.5)])
def test_a_radius_is_a_decimal_or_a_fraction(text: str, value: float) -> None:
    assert parse_fraction(text) == value


def test_model_arguments_are_names_and_values() -> None:
    given = ("width=32", "rate=0.5", "low=-1e-3", "bias=true", "norm=False", "kind=x.y=z", "number=12345678901")
    expected = [32, 0.5, -0.001, True, False, "x.y=z", "12345678901"]
    got = list(parse_arguments(given).values())
    assert [(type(v), v) for v in got] == [(type(v), v) for v in expected]
    for pairs in (("width",), ("=3",), ("width=",), ("wi-dth=3",), ("a=\x1b",), ("a=" + "x" * 5000,)):
        with pytest.raises(ConfigError, match=r"--model-arg NAME=VALUE|characters after --model-arg"):
            parse_arguments(pairs)


def test_the_names_of_help_pages_are_those_of_the_tables() -> None:
    from smart_train import choices  # noqa: PLC0415  # only here
    from smart_train.architectures import build  # noqa: PLC0415
    from smart_train.data import load  # noqa: PLC0415

    assert tuple(build.ARCHITECTURES) == choices.ARCHITECTURES
    assert f"{', '.join(load.NAMED)}, npz:FILE or folder:DIR" == choices.DATA_SPECS


def test_an_attack_from_outside_is_a_row(data: str, tmp_path: Path) -> None:
    code = (
        "from smart_train.choices import ATTACKS; ATTACKS['margin'] = 'train.test_attacks:MARGIN'; "
        "from smart_train.cli import main; main()"
    )
    arguments = ["--data", data, *SMALL, "--attack", "margin", "-o", str(tmp_path / "ckpt.pt")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / "ckpt.pt").training["attack"]["name"] == "margin"


@pytest.mark.parametrize("method", ["pgd-at", "trades"])
def test_a_method_with_one_path_trains_and_is_evaluated_by_commands(data: str, tmp_path: Path, method: str) -> None:
    output = str(tmp_path / "ckpt.pt")
    options = ["--set", "beta=2"] if method == "trades" else []
    done = invoke("--data", data, *SMALL, "--method", method, *options, "--json", "-o", output)
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    (row,) = summary["paths"].values()
    assert row["density"] == 1, "the default of methods with one path"
    assert summary["masks"]["mode"] is None, "there are none"
    assert "validation: robust path" in done.stderr
    assert load_checkpoint(output).training.get("method_options", {}) == ({"beta": 2.0} if options else {})
    done = invoke(output, "--data", data, "--attack", "clean,pgd2x1", "--json", command="eval")
    assert done.exit_code == 0, done.output


def test_a_method_describes_itself_and_its_options() -> None:
    done = invoke("--help-method", "trades")
    assert done.exit_code == 0
    assert "--set beta=6.0" in done.stdout
    done = invoke("--method", "trades", "--set", "beta")
    assert "expected --set NAME=VALUE, got 'beta'; write --set beta=6" in done.stderr
