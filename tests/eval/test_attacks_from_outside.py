"""An attack of somebody else: one class and one row, and nothing else knows of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from eval.reports import Parsed
from smart_eval.attacks import table
from smart_eval.attacks.base import NamedAttack
from smart_eval.attacks.table import ATTACKS, AttackRow
from smart_eval.cli import main as smart_eval
from smart_train.attacks import Model


@dataclass(frozen=True)
class Corners(NamedAttack):
    """Random corners of the cube; the first that misleads counts."""

    name: str
    eps: float
    description = "random corners of the cube, four an image"
    needs_gradients = False

    def __call__(self, model: Model, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        generator, found = torch.Generator().manual_seed(seed), images
        for _ in range(4):
            corner = (images + self.eps * torch.randn(images.shape, generator=generator).sign()).clamp(0, 1)
            wrong = (model(corner).argmax(dim=1) != labels)[:, None, None, None]
            found = torch.where(wrong, corner, found)
        return found


@dataclass(frozen=True)
class Stepping(Corners):
    """Has steps that are not PGD's, and would like gradients."""

    needs_gradients = True

    def record(self) -> dict[str, Any]:
        return {**super().record(), "steps": 4}


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {name: AttackRow(f"{__name__}:{name.title()}") for name in ("corners", "stepping")}
    monkeypatch.setattr(table, "ATTACKS", {**ATTACKS, **row})


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(smart_eval, [str(argument) for argument in arguments])
    assert done.exit_code in {0, 3}, done.output
    return done


@pytest.mark.parametrize("name", ["corners", "stepping"])
def test_it_is_measured_kept_taken_up_and_shown(name: str, trained: Path, data: str, tmp_path: Path) -> None:
    page, results = tmp_path / "report.html", tmp_path / "results.jsonl"
    options = [trained, "--data", data, "--attack", name, "--eps", "0.1", "--examples", "20", "--json", "--no-threats"]
    first = run(*options, "-o", results, "--report", page).stdout
    (model,) = json.loads(first)["models"]
    (attack,) = model["attacks"]
    assert (attack["name"], attack["eps"], attack["description"]) == (name, 0.1, Corners.description)
    assert all(list(path["attacks"]) == [name] for path in model["paths"].values())
    assert "attack" not in json.loads(first), "which is PGD"
    words = Parsed(page.read_text(encoding="utf-8")).text
    assert f"{name}{Corners.description}; within eps 0.1 of each pixel" in words
    kept = results.read_bytes()
    assert f'"attack": "{name}"'.encode() in kept
    assert run(*options, "-o", results, "--resume").stdout == first
    assert results.read_bytes() == kept, "nothing was measured again"


def test_it_is_made_on_a_bundle_where_scores_suffice(bundle: Path, checkpoint_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    options = [bundle, "--attack", "corners", "--examples", "5", "--json", "--report", page]
    (model,) = json.loads(run(*options).stdout)["models"]
    assert model["attacks"][0]["name"] == "corners"
    assert Corners.description in Parsed(page.read_text(encoding="utf-8")).text
    source = [bundle, "--source", checkpoint_file, "--attack", "stepping", "--examples", "5", "--json"]
    (model,) = json.loads(run(*source, "--report", page).stdout)["models"]
    assert model["attacks"][0]["made_on"] == "source"
    assert f"{Corners.description}, made on the checkpoint" in Parsed(page.read_text(encoding="utf-8")).text
    refused = CliRunner().invoke(smart_eval, [str(bundle), "--attack", "stepping"])
    assert refused.exit_code == 1
    assert "stepping" in refused.output
