"""Evaluation from Python gives what the command gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from smart_eval import EvalOptions, evaluate
from smart_eval.cli import main as smart_eval
from smart_runtime.bundle.bundle import Bundle
from smart_train import ConfigError, load_checkpoint
from train.networks import image_set

OPTIONS = EvalOptions(attack="pgd2x1", eps=0.1, examples=20, checks=False)


def test_it_gives_the_document_of_the_command(trained: Path, data: str) -> None:
    found = evaluate(trained, data=data, options=OPTIONS)
    flags = ["--attack", "pgd2x1", "--eps", "0.1", "--examples", "20", "--no-checks", "--json"]
    printed = CliRunner().invoke(smart_eval, [str(trained), "--data", data, *flags])
    assert [json.loads(json.dumps(found.document()))] == json.loads(printed.stdout)["models"]
    for path in found.right:
        assert found.worst(path).value <= found.accuracy(path, "pgd2x1").value <= found.accuracy(path, "clean").value


def test_it_takes_what_is_open_already(trained: Path, data: str) -> None:
    first = evaluate(str(trained), data=data, options=OPTIONS).document()
    again = evaluate(load_checkpoint(trained), data=image_set(), options=OPTIONS).document()
    assert again["paths"] == first["paths"]
    assert again["digest"] != first["digest"], "there is no file to take it of"


def test_it_takes_an_open_bundle_and_its_source(bundle: Path, checkpoint_file: Path) -> None:
    options = EvalOptions(examples=5)
    black_box = evaluate(Bundle.open(bundle), options=options)
    assert [attack.name for attack in black_box.attacks] == ["square"]
    source = load_checkpoint(checkpoint_file)
    replayed = evaluate(bundle, options=EvalOptions(attack="pgd1x1", examples=5, threats=False), source=source)
    assert replayed.replay is not None
    with pytest.raises(ConfigError, match="pgd20x1 needs gradients"):
        evaluate(bundle, options=EvalOptions(attack="pgd", examples=5))


def test_data_that_no_name_tells_must_be_given(trained: Path) -> None:
    with pytest.raises(ConfigError, match="was trained on npz, which no name tells; give the same as --data"):
        evaluate(trained)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, smart_eval, smart_eval.attacks.table; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
