"""A really trained, very small checkpoint and its bundle, made once a session."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
import torch

from made_once import made_once
from smart_devices import resolve_target
from smart_export import BuildResult, build_bundle
from smart_train import Attack, Checkpoint, Structure, load_checkpoint
from smart_train.data.load import load_data
from smart_train.training.config import TrainConfig
from smart_train.training.loop import Trainer


def train(output: Path, *, seed: int, scope: str = "block") -> Path:
    """Train two epochs on digits: enough for masks at their target and batch norms with statistics of their own."""
    config = TrainConfig(
        model="resnet8",
        model_arguments={"width": 8},
        structure=Structure(density=0.5, align=2, scope=scope),  # type: ignore[arg-type]  # a test's own choice
        attack=Attack(eps=0.1, steps=2),
        epochs=2,
        seed=seed,
        device="cpu",
    )
    Trainer(config, load_data("digits"), output=output).run()
    return output


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "checkpoint", lambda folder: train(folder / "ckpt.pt", seed=0)) / "ckpt.pt"


@pytest.fixture(scope="session")
def other_checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "other", lambda folder: train(folder / "ckpt.pt", seed=1)) / "ckpt.pt"


@pytest.fixture
def checkpoint(checkpoint_file: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_file)


@functools.cache  # packages that share the fixture would each have one of their own
def build(checkpoint_file: Path, place: Path) -> BuildResult:
    output = Path(tempfile.mkdtemp(dir=place)) / "bundle"
    return build_bundle(load_checkpoint(checkpoint_file), output=output, target=resolve_target("jetson-orin"))


@pytest.fixture(scope="session")
def built(checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    return build(checkpoint_file, tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def bundle(built: BuildResult) -> Path:
    return built.bundle


@pytest.fixture(scope="session")
def padded_build(checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """A build with 3 of 8 channels in its clean path's first block, which do not fit the target's multiple of 4."""
    checkpoint = load_checkpoint(checkpoint_file)
    checkpoint.net.set_mask("clean", 0, torch.arange(8) < 3)
    output = tmp_path_factory.mktemp("padded") / "bundle"
    return build_bundle(checkpoint, output=output, target=resolve_target("jetson-orin"), baseline=False)
