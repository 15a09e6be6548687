"""What users reported of the commands themselves: each failed before it was mended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from smart_train import load_checkpoint
from smart_train.cli import main as smart_train
from train.networks import few_digits

SMALL = (
    *("--data", few_digits(), "--train-images", "160", "--test-images", "40", "--batch-size", "32"),
    *("--model-arg", "width=4", "--align", "1", "--eps", "0.1", "--steps", "1"),
)
TRAIN, RUN = "smart_train.cli", "smart_runtime.cli"


def start(module: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def run(module: str, *arguments: object, code: int = 0, **environment: str) -> tuple[str, str]:
    process = start(module, *arguments, **environment)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return output, errors


def train(*arguments: object, code: int = 0, **environment: str) -> tuple[str, str]:
    """Train within this process, which has torch already."""
    done = CliRunner(env=environment).invoke(smart_train, [*map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def test_ctrl_c_says_what_is_kept_and_the_checkpoint_alone_is_enough_to_go_on(tmp_path: Path) -> None:
    output = tmp_path / "a.pt"
    training = start(TRAIN, *SMALL, "--epochs", "5", "--seed", "3", "-o", output)
    assert training.stderr is not None
    for line in training.stderr:
        if line.startswith("epoch 1/5  loss"):
            training.send_signal(signal.SIGINT)
            break
    _, errors = training.communicate(timeout=300)
    assert training.returncode == 130, errors
    last = errors.splitlines()[-1]
    assert last.startswith("interrupted: ")
    assert last.endswith(f" of 5 epochs are kept; `smart-train --resume {output}` goes on")
    assert "Traceback" not in errors

    _, errors = train("--resume", output, "--seed", "4", code=1)
    assert errors.startswith(f"error: --seed is not what the training of {output} was started with")
    _, errors = run(TRAIN, "--resume", output, "--epochs", "5")  # the same is no change
    assert "epoch 1/5" not in errors

    whole = tmp_path / "whole.pt"
    train(*SMALL, "--epochs", "5", "--seed", "3", "-o", whole)
    assert (tmp_path / "a.history.csv").read_bytes() == (tmp_path / "whole.history.csv").read_bytes()
    assert load_checkpoint(output).metrics == load_checkpoint(whole).metrics


def test_a_log_tells_from_the_start_what_is_being_done(tmp_path: Path) -> None:
    _, errors = train(*SMALL, "--epochs", "1", "-o", tmp_path / "a.pt")
    lines = errors.splitlines()
    begins = lines.index("epoch 1/1")
    assert lines[begins + 1].startswith("epoch 1/1  loss: ")
    assert lines[begins + 2] == "report: every path on 40 test images, clean and attacked"
    assert lines[begins + 3] == "report: attacked images for the checkpoint"


def test_two_trainings_in_one_folder_keep_their_own_histories(tmp_path: Path) -> None:
    for name, epochs in (("a", 1), ("b", 2)):
        train(*SMALL, "--epochs", epochs, "-o", tmp_path / f"{name}.pt")
    lines = {name: (tmp_path / f"{name}.history.csv").read_text().splitlines() for name in "ab"}
    assert {name: len(found) - 1 for name, found in lines.items()} == {"a": 1, "b": 2}


def test_torchrun_does_not_train_the_same_network_twice(tmp_path: Path) -> None:
    _, errors = train(*SMALL, "-o", tmp_path / "a.pt", code=1, WORLD_SIZE="2", RANK="0")
    assert errors.startswith("error: 2 processes would each train all of the network and write the same a.pt; start ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        (TRAIN, ["--method", "smrt"], "unknown 'smrt'; did you mean smart?"),
        (TRAIN, ["--model", "resnt8"], "unknown 'resnt8'; did you mean resnet8?"),
        (TRAIN, ["--epoch", "3"], "'--epochs'"),
        (RUN, ["inferr"], "No such command 'inferr'; did you mean infer?"),
        ("smart_devices.cli", ["show", "jetson-orn"], "unknown target 'jetson-orn'; did you mean jetson-orin?"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_right_one(module: str, arguments: list[str], said: str) -> None:
    process = start(module, *arguments)
    output, errors = process.communicate(timeout=120)
    assert process.returncode in {1, 2}
    assert output == ""
    assert said in errors


COMMANDS = {
    "devices": "smart_devices.cli",
    "run": RUN,
    "bench": "smart_runtime.bench.cli",
    "train": TRAIN,
    "eval": "smart_eval.cli",
    "export": "smart_export.cli",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_usual_options_and_a_place_under_smart_edge(name: str) -> None:
    alone, _ = run(COMMANDS[name], "-h")
    for option in ("-h, --help", "-q, --quiet", "-v, --verbose", "--version"):
        assert option in alone
    code = "from smart_common.cli import main; main(prog_name='smart-edge')"
    done = subprocess.run(
        [sys.executable, "-c", code, name, "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[0].startswith(f"Usage: smart-edge {name} ")
    assert done.stdout.splitlines()[1:] == alone.splitlines()[1:]


def test_smart_edge_lists_its_commands_without_loading_them() -> None:
    code = (
        "import sys; from smart_common.cli import main\n"
        "try: main(['--help'], prog_name='smart-edge')\n"
        "finally: assert not {'torch', 'numpy', 'smart_train'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    listed = [line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line[2:3].isalpha()]
    assert listed[: len(COMMANDS)] == ["train", "eval", "export", "run", "bench", "devices"]


@pytest.mark.parametrize(
    ("command", "headings"),
    [
        (
            [TRAIN],
            [
                *("Data", "Network and masks", "Method and attack", "What may be added to any method"),
                *("Optimisation", "Output"),
            ],
        ),
        (["smart_export.cli", "build"], ["Device and graphs", "Accuracy", "Model and data", "Output"]),
        (["smart_runtime.bench.cli"], ["What is measured", "How it is measured", "Output"]),
    ],
)
def test_help_of_many_options_has_headings(command: list[str], headings: list[str]) -> None:
    page, _ = run(*command, "--help")
    found = [line for line in page.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert found == [f"{heading}:" for heading in (*headings, "Options")]
    below = page.partition("\nOptions:\n")[2].partition("\n\n")[0]
    assert {line.split()[0] for line in below.splitlines() if line.startswith("  -")} <= {
        *("-q,", "-v,", "-h,", "--version", "--recipe"),
    }, "all others belong to a heading"


def test_a_misspelt_command_of_smart_export_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    export = "smart_export.cli"
    for slip, meant in (("keygn", "keygen"), ("biuld", "build"), ("chek", "check")):
        output, errors = run(export, slip, "x", "--target", "cpu", code=2)
        assert output == ""
        assert errors.splitlines()[-1] == f"Error: No such command '{slip}'; did you mean {meant}?"
    Path("keygn").write_text("some file")
    _, errors = run(export, "keygn", "--target", "cpu", code=1)
    assert errors.startswith("error: keygn is damaged or no smart-edge checkpoint")
    _, errors = run(export, "check.pt", "--target", "cpu", code=1)
    assert errors.startswith("error: no checkpoint at check.pt")


def test_quiet_leaves_results_and_verbose_adds_where_an_error_arose(tmp_path: Path) -> None:
    output, errors = train(*SMALL, "--epochs", "1", "-q", "--json", "-o", tmp_path / "a.pt")
    assert errors == ""
    assert output.startswith("{")
    _, errors = run(RUN, "-v", "info", tmp_path, code=1)
    assert "Traceback" in errors
    assert errors.splitlines()[-1].startswith("error: the directory ")


def test_networks_and_checkpoints_print_one_useful_line(tmp_path: Path) -> None:
    train(*SMALL, "--epochs", "1", "-q", "-o", tmp_path / "a.pt")
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert repr(checkpoint).startswith(
        "Checkpoint(resnet8, 1x8x8, 10 classes, SmartNetwork(ResNet, paths clean, robust, "
    )
    assert "\n" not in repr(checkpoint)


def test_resuming_takes_what_was_resolved_and_the_same_words_again(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('steps = 3\ntarget = "cpu"\n')
    overruled = ("--recipe", tmp_path / "r.toml", "--attack", "fgsm-rs", "--align", "1")
    options = [*SMALL[:10], "--eps", "0.1", "--epochs", "1", *overruled]
    train(*options, "-o", tmp_path / "a.pt")
    train("--resume", tmp_path / "a.pt", "--attack", "fgsm-rs", "--model-arg", "width=4")
    _, errors = train("--resume", tmp_path / "a.pt", "--attack", "pgd", code=1)
    assert errors.startswith("error: --attack is not what")
    _, errors = train(*SMALL, "--model-arg", "width", "-o", tmp_path / "b.pt", code=1)
    assert "NAME=VALUE" in errors


@pytest.mark.parametrize("arguments", [["train", "-o", "a.pt"], ["export", "a.pt", "--target", "cpu"]])
def test_a_command_of_smart_edge_names_the_extra_that_it_misses(arguments: list[str], tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from smart_common.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the Python module torch is not installed; pip install 'smart-edge[train")
    assert len(done.stderr.splitlines()) == 1
