"""Every method trains, resumes to the bit and leaves a checkpoint; the losses are those of an oracle in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from smart_common.roles import Role
from smart_train import Attack, ConfigError, Structure, load_checkpoint
from smart_train.masking.passes import Pass
from smart_train.methods import METHODS, load_method
from smart_train.methods.interface import Batch, Training
from smart_train.methods.pgd_at import PgdAt
from smart_train.methods.smart import Smart
from smart_train.methods.trades import Trades, TradesOptions
from smart_train.training.loop import Trainer
from train.networks import different, image_set, resnet, setup, smart, tiny_config

Array = npt.NDArray[np.float64]


def log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def cross_entropy(scores: Array, labels: Array) -> float:
    return float(-log_softmax(scores)[np.arange(len(labels)), labels].mean())


def divergence(p: Array, q: Array) -> float:
    return float((np.exp(log_softmax(p)) * (log_softmax(p) - log_softmax(q))).sum(axis=1).mean())


def batch(size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(size, 1, 8, 8, generator=generator), torch.arange(size) % 3
    return Batch(images, labels, labels, generator=generator, number=1, total=1)


Taken = tuple[float, list[tuple[Pass, Array]]]
"""The loss of a step, and its passes with the scores that they gave."""


def taken(training: Training, given: Batch, attack: Attack) -> Taken:
    """Take one step of a training in train mode."""
    training.modules.train()
    step = training.step(given, attack)
    outs = training.modules(step.passes)
    scores = [out.scores.detach().double().numpy() for out in outs]
    return float(step.loss(outs).total.detach()), list(zip(step.passes, scores, strict=True))


def test_the_losses_are_those_of_the_papers() -> None:
    given, attack = batch(), Attack(eps=0.1, steps=2)
    labels: Any = given.labels.numpy()

    total, seen = taken(Smart(smart(), setup("smart")), given, attack)
    assert [one.path for one, _ in seen] == ["clean", "robust"]
    halves = cross_entropy(seen[0][1], labels[:4]), cross_entropy(seen[1][1], labels[4:])
    assert total == pytest.approx(sum(halves) / 2, rel=1e-5)

    total, seen = taken(PgdAt(smart(), setup("pgd-at")), given, attack)
    ((one, scores),) = seen
    assert 0 < float((one.images - given.images).abs().max()) <= 0.1 + 1e-6
    assert total == pytest.approx(cross_entropy(scores, labels), rel=1e-5)

    total, seen = taken(Trades(smart(), setup("trades", options=TradesOptions(beta=3.0))), given, attack)
    assert [one.path for one, _ in seen] == ["robust", "robust"], "two passes through one path"
    torch.testing.assert_close(seen[0][0].images, given.images, rtol=0, atol=0)
    expected = cross_entropy(seen[0][1], labels) + 3 * divergence(seen[0][1], seen[1][1])
    assert total == pytest.approx(expected, rel=1e-5)


class Stopped(Exception):  # noqa: N818  # no error: the test pulls the plug
    pass


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_resumes_to_the_bit_and_keeps_its_roles(tmp_path: Path, name: str) -> None:
    method = load_method(name)
    density = method.default_density or 0.5
    config = tiny_config(method=name, epochs=2, structure=Structure(density=density, align=1))
    teacher = resnet(width=6) if method.needs_teacher else None  # of another width
    whole = Trainer(config, image_set(), output=tmp_path / "whole.pt", teacher=teacher)
    result = whole.run()

    def stop(_: object) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        Trainer(config, image_set(), output=tmp_path / "parts.pt", teacher=teacher).run(on_epoch=stop)
    Trainer(config, image_set(), output=tmp_path / "parts.pt", resume=True, teacher=teacher).run()
    found, parts = load_checkpoint(tmp_path / "whole.pt"), load_checkpoint(tmp_path / "parts.pt")
    assert not different(found.net.state_dict(), parts.net.state_dict())
    assert {path: found.role(path) for path in found.net.path_names} == method.roles
    assert set(result.accuracy) == set(found.samples.adversarial) == set(method.roles)
    assert found.training["history"] == parts.training["history"] == whole.history
    row = whole.history[-1]
    for path, role in method.roles.items():
        assert f"{path}_path_clean_accuracy" in row
        assert (f"{path}_path_robust_accuracy" in row) == role.sees_attacks
    assert len(method.describe().splitlines()) >= 4


def test_a_single_sparse_path_is_selected_by_clean_and_robust_accuracy(tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(method="pgd-at"), image_set(), output=tmp_path / "ckpt.pt")
    trainer.run()
    found = load_checkpoint(tmp_path / "ckpt.pt")
    assert found.role("robust") is Role.BOTH
    scores = {
        row["epoch"]: (row["robust_path_clean_accuracy"] + row["robust_path_robust_accuracy"]) / 2
        for row in trainer.history
        if row["robust_density"] == 0.5
    }
    assert found.training["best_epoch"] == max(scores, key=lambda epoch: (scores[epoch], epoch))


def test_options_are_typed_and_recorded(tmp_path: Path) -> None:
    config = tiny_config(method="trades", method_options={"beta": 2}, epochs=1)
    Trainer(config, image_set(), output=tmp_path / "ckpt.pt").run()
    assert load_checkpoint(tmp_path / "ckpt.pt").training["method_options"] == {"beta": 2.0}
    assert tiny_config(method="trades").record()["method_options"] == {"beta": 6.0}
    for options, message in (
        ({"bta": 1.0}, "unknown option 'bta' of method trades; it has beta"),
        ({"beta": "much"}, "expected beta of method trades as float, got 'much'"),
        ({"beta": -1.0}, "expected a finite beta of 0 or more, got -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_config(method="trades", method_options=options)
    with pytest.raises(ConfigError, match="unknown option 'beta' of method smart; it has none"):
        tiny_config(method_options={"beta": 1.0})


def test_a_tap_gives_the_output_of_a_layer_and_is_gone_afterwards() -> None:
    net = smart().eval()
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    tapped, plain = net([Pass("robust", images, tap=("blocks",)), Pass("robust", images)])
    features: Tensor = tapped.features["blocks"]
    network: Any = net.path("robust").network
    torch.testing.assert_close(network.fc(features.mean(dim=(2, 3))), tapped.scores)
    assert plain.features == {}
    assert not network.blocks._forward_hooks
