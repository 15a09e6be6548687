"""What proves is the reference engine, whatever serves: here another one, first in the list, whose scores are all 7."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from runtime.fakes import FASTER
from smart_devices import engine_rows, resolve_target
from smart_eval.models import open_bundle
from smart_export import build_bundle
from smart_export.check import check_bundle
from smart_export.cli import main as export_command
from smart_export.errors import VerificationError
from smart_runtime import Bundle, SmartModel
from smart_runtime.engines import REFERENCE_ENGINE
from smart_train import Checkpoint

UNREAL = 7.0


@pytest.fixture(autouse=True)
def _first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_rows, "ENGINES", (FASTER, *engine_rows.ENGINES))


def test_an_export_is_verified_and_judged_by_the_reference(checkpoint: Checkpoint, tmp_path: Path) -> None:
    built = build_bundle(checkpoint, output=tmp_path / "bundle", target=resolve_target("cpu"))
    assert set(built.paths) == {"clean", "robust"}


def test_a_check_runs_on_the_reference_unless_told(bundle: Path, checkpoint: Checkpoint) -> None:
    opened = Bundle.open(bundle)
    assert set(check_bundle(opened, source=checkpoint).agreements) == {"clean", "robust", "dense"}
    with pytest.raises(VerificationError):
        check_bundle(opened, source=checkpoint, engine="faster")


def test_the_command_checks_on_the_engine_that_is_named(bundle: Path, checkpoint_file: Path) -> None:
    arguments = ["check", str(bundle), "--source", str(checkpoint_file), "--json"]
    done = CliRunner().invoke(export_command, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ok"]
    assert CliRunner().invoke(export_command, [*arguments, "--engine", "faster"]).exit_code == 1


def test_a_bundle_is_evaluated_on_the_reference_and_served_by_the_faster(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        assert opened.engine == REFERENCE_ENGINE
    with open_bundle(bundle, engine="faster") as opened:
        assert opened.engine == "faster"
    with SmartModel.load(bundle) as model:
        images = np.zeros((2, *model.manifest.input.shape), np.float32)
        assert (model(images) == UNREAL).all()
