from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from smart_train.cli import main as smart_train
from smart_train.errors import ConfigError
from smart_train.evaluation.cli import main as smart_eval
from smart_train.options import parse_arguments, parse_eps
from train.networks import image_set

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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    found = image_set()
    np.savez(
        path,
        train_images=found.train.images,
        train_labels=found.train.labels,
        test_images=found.test.images,
        test_labels=found.test.labels,
    )
    return f"npz:{path}"


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
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert {"checkpoint", "seconds", "images_per_second", "paths", "union_density"} <= set(answer)
    assert answer["checkpoint"] == str(output)
    assert list(answer["paths"]) == ["clean", "robust"]
    for row in answer["paths"].values():
        assert {"density", "parameter_density", "clean_accuracy", "robust_accuracy"} <= set(row)
        assert row["density"] == 0.5
        assert 0 < row["parameter_density"] < 1
    assert max(r["parameter_density"] for r in answer["paths"].values()) <= answer["union_density"] + 0.1


def test_smart_eval_measures_what_smart_train_reported(checkpoint: Trained, data: str) -> None:
    output, done = checkpoint
    trained = json.loads(done.stdout)
    found = process("smart_train.evaluation.cli", str(output), "--data", data, "--steps", "5", "--json")
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
    assert "--resume to continue it or --force to replace it" in refused.stderr
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
        (["--eps", "abc"], "eps as a decimal or fraction, got 'abc'"),
        (["--eps", "8/0"], "eps as a decimal or fraction"),
        (["--eps", "1e999999999"], "eps in [0, 1]"),
        (["--eps", "2"], "eps in [0, 1]"),
        (["--align", "8", "--target", "cpu"], "--align or --target, got both"),
        (["--target", "toaster"], "got 'toaster'"),
        (["--batch-size", "1000"], "at most the 39 training images, got 1000"),
        (["--batch-size", "2"], "batch of 4 or more"),
        (["--epochs", "0"], "1 or more epochs"),
        (["--lr", "nan"], "learning rate"),
        (["--steps", "0"], "1 or more steps"),
        (["--attack", "fgsm-rs", "--steps", "3"], "1 step for fgsm-rs"),
        (["--model-arg", "width"], "NAME=INTEGER"),
        (["--model-arg", "width=99999"], "width from 1 to 4096"),
        (["--model-arg", "depth=3"], "arguments out of width"),
        (["--data", "cifar"], "digits, npz:FILE or folder:DIR"),
        (["--data", "npz:nowhere.npz"], "no such file"),
        (["--data", "folder:nowhere"], "no train or no test folder"),
        (["-o", "no/such/folder/ckpt.pt"], "existing folder"),
        (["--seed", "-1"], "seed from 0"),
        (["--precision", "16-mixed", "--device", "cpu"], "CUDA device for precision 16-mixed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_one_line_and_status_1(data: str, tmp_path: Path, options: list[str], words: str) -> None:
    small = ["--model-arg", "width=4", "--batch-size", "16"]
    done = invoke("--data", data, *small, "-o", str(tmp_path / "ckpt.pt"), *options)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: expected ")
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
        ([], "--data for a network trained on npz"),
        (["--data", "digits"], "images (1, 8, 8) of 3 classes"),
        (["--data", "DATA", "--examples", "0"], "1 to 21 examples"),
        (["--data", "DATA", "--examples", "22"], "1 to 21 examples"),
        (["--data", "DATA", "--restarts", "0"], "1 or more steps and restarts"),
        (["--data", "DATA", "--eps", "x"], "eps as a decimal"),
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
    done = process("smart_train.evaluation.cli", str(tmp_path / "ckpt.pt"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: expected a smart-edge checkpoint")


@pytest.mark.parametrize(("text", "value"), [("0.3", 0.3), ("8/255", 8 / 255), ("1", 1.0), ("0", 0.0), ("1/2", 0.5)])
def test_eps_is_a_decimal_or_a_fraction(text: str, value: float) -> None:
    assert parse_eps(text) == value


def test_model_arguments_are_names_and_integers() -> None:
    assert parse_arguments(("width=32",)) == {"width": 32}
    for text in ("width", "=3", "width=", "width=-1", "width=3.5", "width=" + "9" * 5000):
        with pytest.raises(ConfigError, match="NAME=INTEGER"):
            parse_arguments((text,))
