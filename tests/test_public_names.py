"""The public face: every name that a package exports, each documented. A name that goes is a change users notice."""

from __future__ import annotations

import importlib
import inspect

import pytest

PUBLIC = {
    "smart_devices": """
        PRECISIONS DenseSparse Dla EngineInfo EngineStatus Fact Identity JetPack JetPackVersion Memory MissingExtraError
        PowerMode Profile SmartError Target UnknownEngineError UnknownTargetError detect
        engine_info engine_names engine_status
        load_profile parse_profile profile_names profile_of resolve_target version
    """,
    "smart_runtime": """
        AuditError AuditLog BatchRange Both Bundle BundleError ClosedError DeviceLostError EngineError EngineOptions
        Hysteresis InputError
        LatencyHistogram MemoryReport
        OutOfMemoryError PathError PathMemory PathStats Policy Prediction Result SignatureError SmartModel Stats
        SwitchRequest policies preprocess
    """,
    "smart_train": """
        Attack Checkpoint CheckpointError ConfigError DataError ImageSet NetworkError SmartNetwork Structure
        TrainConfig TrainResult Trainer convert load_checkpoint load_data methods save_checkpoint
    """,
    "smart_eval": "EvalOptions evaluate",
    "smart_export": "BuildResult CheckResult ExportError GateError VerificationError build_bundle check_bundle fold",
}


@pytest.mark.parametrize("package", PUBLIC)
def test_a_package_exports_these_names_and_documents_each(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(PUBLIC[package].split())
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), f"{package}.{name} says nothing of itself"


def test_smart_common_is_for_us_alone() -> None:
    assert not hasattr(importlib.import_module("smart_common"), "__all__")


@pytest.mark.parametrize("package", PUBLIC)
def test_a_name_that_is_not_there_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = importlib.import_module(package).nothing
