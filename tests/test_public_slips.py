"""What people pass to the public functions by mistake is refused in a sentence, before any work is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.bundles import write_bundle
from smart_common.errors import SmartError
from smart_common.lazy import load
from smart_devices import load_profile, resolve_target
from smart_eval import EvalOptions
from smart_runtime import EngineError, EngineOptions, Hysteresis, InputError, SmartModel
from smart_runtime.engines import resolve_engine
from smart_train import ConfigError, TrainConfig, Trainer, load_data
from train.conftest import data
from train.networks import image_set, tiny_config

__all__ = ["data"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"structure": "2:4"}, r"expected structure as Structure\(...\), got '2:4'"),
        ({"attack": "pgd"}, r"expected attack as Attack\(...\), got 'pgd'"),
        ({"device": "tpu"}, "unknown device 'tpu'; did you mean cpu"),
    ],
)
def test_a_training_s_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"chunk": -1}, "expected chunk of 1 or more"),
        ({"seed": 2**70}, "expected seed of 0 or more, below"),
        ({"attack": ["pgd"]}, "expected attacks in one text with commas"),
    ],
)
def test_an_evaluation_s_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EvalOptions(**options)


@pytest.mark.parametrize(("output", "words"), [("no/such/ckpt.pt", "no folder .*no/such"), (".", "is a folder")])
def test_a_training_s_output(output: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        Trainer(tiny_config(), image_set(), output=tmp_path / output)


def test_a_path_is_data_too(data: str, tmp_path: Path) -> None:
    assert load_data(Path(data.removeprefix("npz:"))).digest == load_data(data).digest
    with pytest.raises(SmartError, match="no folders train and test"):
        load_data(tmp_path)


def test_a_target_is_a_name_a_file_a_profile_or_a_target() -> None:
    target = resolve_target("x86-cpu")
    assert resolve_target(target) is target
    assert resolve_target(load_profile("x86-cpu")) == target


@pytest.mark.parametrize(
    ("policy", "remedy"),
    [
        ("hysteresis", r"make one, as in policy=Hysteresis\(signal, ...\)"),
        (Hysteresis, r"make one, as in Hysteresis\(...\)"),
    ],
)
def test_what_is_no_policy(policy: Any, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=remedy):
        SmartModel.load(write_bundle(tmp_path / "bundle"), policy=policy)


def test_what_are_no_engine_options(tmp_path: Path) -> None:
    options: Any = {"threads": 1}
    with pytest.raises(EngineError, match=r"expected options as EngineOptions\(...\)"):
        SmartModel.load(tmp_path, options=options)
    text: Any = "2"
    with pytest.raises(EngineError, match="expected threads as a whole number, got '2'"):
        EngineOptions(threads=text)


def test_a_builder_is_no_engine_to_run() -> None:
    with pytest.raises(EngineError, match="tensorrt-rtx-builder builds engines and runs none; choose among auto, "):
        resolve_engine("tensorrt-rtx-builder")


def test_a_long_class_name_is_quoted_in_part(tmp_path: Path) -> None:
    from smart_runtime.bundle.manifest import check_replaces  # noqa: PLC0415  # what a reload asks

    manifest = SmartModel.load(write_bundle(tmp_path / "bundle")).manifest
    other = type(manifest)(**{**vars(manifest), "class_names": ("x" * 2000, *manifest.class_names[1:])})
    with pytest.raises(SmartError, match=r"got .*xxx"):
        check_replaces(other, manifest)


@pytest.mark.parametrize("place", ["smart_train.nope:Blocky", "nowhere.at.all:x", "smart_train.methods.trades:TRADE"])
def test_a_row_that_names_nothing_says_which(place: str) -> None:
    with pytest.raises(SmartError, match=f"^{place} cannot be loaded: .*; mend the row"):
        load(place)


def test_a_library_that_a_row_needs_is_missed_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "needs_more.py").write_text("import nothing_of_that_name\nx = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        load("needs_more:x")
