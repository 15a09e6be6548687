"""The checks that `smart-run selftest` makes of an engine, on each engine that runs here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.bundles import write_bundle
from smart_devices.engine_rows import engine_info, engine_names
from smart_devices.engines import engine_status
from smart_runtime.engines import EngineOptions
from smart_runtime.selfcheck import model_checks
from smart_runtime.selfcheck.model_checks import CHECKS, Subject


def of_gpu(name: str) -> bool:
    return engine_info(name).part == "gpu"


ENGINES = [pytest.param(name, marks=pytest.mark.gpu) if of_gpu(name) else name for name in engine_names()]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", reference=True)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_does_what_the_runtime_promises(
    engine: str, check: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = engine_status(engine)
    if not status.available:
        pytest.skip(f"needs {engine}: {status.reason}")
    if not of_gpu(engine):  # a GPU gets the whole of it
        monkeypatch.setattr(model_checks, "_CALLS", 5)
    cache = tmp_path_factory.getbasetemp() / "plans"  # built for the first check alone
    figures = CHECKS[check](Subject(bundle, engine, EngineOptions(cache_dir=cache)))
    assert json.loads(json.dumps(figures)) == figures, "figures are plain values"
