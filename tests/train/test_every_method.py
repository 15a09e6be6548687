"""Every method, from training to the device: what no method may break, whoever adds it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from made_once import made_once
from smart_export import build_bundle
from smart_runtime import SmartModel
from smart_train import Attack, Checkpoint, Structure, load_checkpoint
from smart_train.accuracy import to_tensor
from smart_train.attacks import attack_kind
from smart_train.methods import METHODS, load_method
from smart_train.methods.interface import Batch
from smart_train.training.config import TrainConfig
from smart_train.training.loop import Trainer
from train.networks import different, image_set, resnet, setup, tiny_config


def attack_of(name: str) -> Attack:
    attack = load_method(name).attack or "pgd"
    return Attack(attack, eps=0.1, steps=1 if attack_kind(attack).one_step else 2)


def config_of(name: str) -> TrainConfig:
    density = load_method(name).default_density or 0.5
    return tiny_config(
        method=name, epochs=2, batch_size=30, structure=Structure(density=density, align=1), attack=attack_of(name)
    )


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint for methods that need one to learn from; no test may change it."""

    def make(folder: Path) -> None:
        Trainer(config_of("standard"), image_set(), output=folder / "ckpt.pt").run()

    return made_once(tmp_path_factory, "teacher", make) / "ckpt.pt"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_from_training_to_the_device(
    tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    method, config, whole, parts = load_method(name), config_of(name), tmp_path / "whole.pt", tmp_path / "parts.pt"
    taught: dict[str, Any] = {"teacher": request.getfixturevalue("teacher")} if method.needs_teacher else {}

    def keep_what_an_interrupt_would_leave(_: object) -> None:
        if not (tmp_path / "parts.last.pt").exists():
            shutil.copy(tmp_path / "whole.last.pt", tmp_path / "parts.last.pt")
            if whole.exists():  # masks may not be at their target yet
                shutil.copy(whole, parts)

    trainer = Trainer(config, image_set(), output=whole, **taught)
    result = trainer.run(on_epoch=keep_what_an_interrupt_would_leave)
    resumed = Trainer(config, image_set(), output=parts, resume=True, **taught)
    assert len(resumed.history) == 1
    resumed.run()

    found, other = load_checkpoint(whole), load_checkpoint(parts)
    assert not different(found.net.state_dict(), other.net.state_dict()), "a resumed training is another one"
    assert not different(found.net.state_dict(), trainer.net.state_dict()), "its checkpoint is another network"
    assert found.training["history"] == other.training["history"] == trainer.history
    assert {path: found.role(path) for path in found.net.path_names} == method.roles
    assert set(result.accuracy) == set(found.samples.adversarial) == set(method.roles)
    row = trainer.history[-1]
    for path, role in method.roles.items():
        assert f"{path}_path_clean_accuracy" in row
        assert (f"{path}_path_robust_accuracy" in row) == role.sees_attacks
    assert len(method.describe().splitlines()) >= 4
    check_on_the_device(found, tmp_path / "bundle")


def check_on_the_device(found: Checkpoint, bundle: Path) -> None:
    """Export a checkpoint; every path of the bundle answers as the network does."""
    build_bundle(found, output=bundle, target="jetson-orin", baseline=False, random_images=8)
    images = found.samples.images[:16]
    with SmartModel.load(bundle) as model:
        assert sorted(model.paths) == sorted(found.net.path_names)
        for path in found.net.path_names:
            model.path = path
            with torch.no_grad():
                expected = found.net.path(path).eval()(to_tensor(images)).numpy()
            worst = np.abs(model.run(images.numpy()).scores - expected).max() / max(1, np.abs(expected).max())
            assert worst <= 1e-4, f"path {path} differs by {worst}"


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_what_learns_and_nothing_else(name: str) -> None:
    method = load_method(name)
    teacher = resnet(seed=1).eval().requires_grad_(False) if method.needs_teacher else nn.Identity()
    training = method.build(resnet(), setup(name, teacher=teacher if method.needs_teacher else None))
    images, labels = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    batch = Batch(images, labels, labels, generator=torch.Generator().manual_seed(0), number=1, total=1)

    learns = [*training.net.parameters(), *(() if training.extra is None else training.extra.parameters())]
    assert set(map(id, training.modules.parameters())) == set(map(id, learns)), "the optimiser has something else"
    training.modules.train()
    training.epoch_start(1, lambda _: iter([batch]))
    step = training.step(batch, attack_of(name))
    step.loss(training.modules(step.passes)).total.backward()  # type: ignore[no-untyped-call]
    unmoved = [
        key
        for key, weight in training.modules.named_parameters()
        if weight.grad is None or not bool(weight.grad.abs().sum() > 0)
    ]
    assert not unmoved, f"no gradient reaches {unmoved}"
    assert images.grad is None
    assert all(weight.grad is None for weight in teacher.parameters())
