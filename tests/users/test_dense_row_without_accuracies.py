"""The table's dense row had no accuracy: nobody had trained a dense network by the same recipe to compare with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from smart_export.cli import main as smart_export
from smart_runtime.cli import main as smart_run
from smart_train import load_checkpoint, save_checkpoint
from smart_train.cli import main as smart_train
from train.networks import few_digits

SMALL = ["--model-arg", "width=4", "--align", "1", "--train-images", "128", "--test-images", "60", "--epochs", "1"]
SMALL += ["--data", few_digits(), "--steps", "1", "--eps", "0.1", "--device", "cpu"]


def invoke(command: Any, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("control") / "ckpt.pt"
    return output, json.loads(invoke(smart_train, *SMALL, "--dense-control", "--json", "-o", str(output)).stdout)


def test_the_control_is_dense_and_by_the_same_recipe(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    output, summary = trained
    file = output.with_name("ckpt.dense.pt")
    assert summary["dense_control"]["checkpoint"] == str(file)
    control, network = load_checkpoint(file), load_checkpoint(output)
    assert all(bool(mask.all()) for path in control.net.path_names for mask in control.net.masks(path))
    for key in ("seed", "epochs", "method", "attack", "learning_rate", "data"):
        assert control.training[key] == network.training[key]
    alone = tmp_path / "ckpt.pt"
    found = json.loads(invoke(smart_train, *SMALL, "--json", "-o", str(alone)).stdout)
    assert found["dense_control"] is None
    assert found["paths"] == summary["paths"], "the training itself is the same with a control and without"
    assert output.with_name("ckpt.history.csv").read_bytes() == alone.with_name("ckpt.history.csv").read_bytes()
    for ours, theirs in zip(
        network.net.state_dict().items(), load_checkpoint(alone).net.state_dict().items(), strict=True
    ):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])


def test_it_is_never_overwritten_unasked_and_resumes(trained: tuple[Path, dict[str, Any]]) -> None:
    output, summary = trained
    refused = invoke(smart_train, *SMALL, "--dense-control", "-o", str(output.with_name("ckpt.pt")), code=1)
    assert "exists already" in str(refused.exception) + refused.output
    again = json.loads(invoke(smart_train, *SMALL, "--dense-control", "--resume", "--json", "-o", str(output)).stdout)
    assert again["dense_control"]["paths"] == summary["dense_control"]["paths"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ckpt.dense.pt", "ckpt.dense.pt is the dense control of {0}; smart-train --resume {0} goes on with both"),
        ("ckpt.dense.last.pt", "ckpt.dense.pt is the dense control of {0}; smart-train --resume {0} goes on with both"),
        ("ckpt.last.pt", "ckpt.last.pt is the state of a training; smart-train --resume {0} goes on with it"),
    ],
)
def test_what_lies_beside_a_checkpoint_is_resumed_with_it(
    trained: tuple[Path, dict[str, Any]], name: str, said: str
) -> None:
    output, _ = trained
    refused = invoke(smart_train, "--resume", str(output.with_name(name)), code=1)
    assert refused.stderr == f"error: {output.parent}/{said.format(output)}\n"


def test_a_checkpoint_that_is_called_dense_is_resumed_as_any(tmp_path: Path) -> None:
    plain, dense = tmp_path / "ckpt.pt", tmp_path / "ckpt.dense.pt"
    found = {}
    for output in (plain, dense):
        found[output] = json.loads(invoke(smart_train, *SMALL, "--json", "-o", str(output)).stdout)["paths"]
    assert json.loads(invoke(smart_train, "--resume", str(dense), "--json").stdout)["paths"] == found[dense]


def test_the_bundle_has_its_accuracies(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    output, summary = trained
    bundle = str(tmp_path / "bundle")
    exported = json.loads(invoke(smart_export, str(output), "--target", "cpu", "-o", bundle, "--json").stdout)
    found = json.loads(invoke(smart_run, "info", bundle, "--json").stdout)["accuracies"]
    dense = {one["of"]: one for one in found if one["path"] == "dense"}
    for path, row in summary["dense_control"]["paths"].items():
        one = dense[f"dense control, {path} path"]
        assert (one["clean_accuracy"], one["robust_accuracy"]) == (row["clean_accuracy"], row["robust_accuracy"])
        assert (one["images"], one["by"], one["precision"]) == (60, "smart-train", "fp32")
        assert exported["dense_control"][path]["clean_accuracy"] == row["clean_accuracy"]
    assert "not trained" not in invoke(smart_run, "info", bundle).stdout


def test_another_network_is_no_control(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    output, _ = trained
    options = [str(output), "--target", "cpu", "-o", str(tmp_path / "bundle"), "--dense-control"]
    refused = invoke(smart_export, *options, str(output), code=1)
    assert "is not the dense control of this checkpoint: it has masks" in str(refused.exception) + refused.output
    other = tmp_path / "ckpt.pt"
    network = load_checkpoint(output)
    save_checkpoint(replace(network, training={**network.training, "seed": 1}), other)
    refused = invoke(smart_export, str(other), *options[1:], str(output.with_name("ckpt.dense.pt")), code=1)
    assert "seed of the two trainings differ" in str(refused.exception) + refused.output
    other.with_name("ckpt.dense.pt").write_bytes(output.with_name("ckpt.dense.pt").read_bytes())
    done = invoke(smart_export, str(other), *options[1:-1], "--json")
    assert "note: the baseline has no accuracies: " in done.stderr
    assert json.loads(done.stdout)["dense_control"] is None
    assert "not trained" in invoke(smart_run, "info", str(tmp_path / "bundle")).stdout
