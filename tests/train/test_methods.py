"""The losses of the methods are those of an oracle in NumPy; how a path is selected; options of a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from smart_common.roles import Role
from smart_train import Attack, ConfigError, load_checkpoint
from smart_train.masking.passes import Pass
from smart_train.methods import load_method
from smart_train.methods.interface import Batch, Training
from smart_train.methods.mart import Mart, MartOptions
from smart_train.methods.pgd_at import PgdAt
from smart_train.methods.pgd_at_mixed import MixedOptions, PgdAtMixed
from smart_train.methods.smart import Smart
from smart_train.methods.standard import Standard
from smart_train.methods.trades import Trades, TradesOptions
from smart_train.training.loop import Trainer
from train.networks import image_set, setup, smart, tiny_config

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

    total, seen = taken(Standard(smart(), setup("standard")), given, attack)
    ((one, scores),) = seen
    assert one.path == "clean"
    torch.testing.assert_close(one.images, given.images, rtol=0, atol=0)
    assert total == pytest.approx(cross_entropy(scores, labels), rel=1e-5)

    total, seen = taken(PgdAtMixed(smart(), setup("pgd-at-mixed", options=MixedOptions(share=0.7))), given, attack)
    assert [one.path for one, _ in seen] == ["robust", "robust"], "two passes through one path"
    torch.testing.assert_close(seen[1][0].images, given.images, rtol=0, atol=0)
    expected = 0.7 * cross_entropy(seen[0][1], labels) + 0.3 * cross_entropy(seen[1][1], labels)
    assert total == pytest.approx(expected, rel=1e-5)

    total, seen = taken(Trades(smart(), setup("trades", options=TradesOptions(beta=3.0))), given, attack)
    assert [one.path for one, _ in seen] == ["robust", "robust"], "two passes through one path"
    torch.testing.assert_close(seen[0][0].images, given.images, rtol=0, atol=0)
    expected = cross_entropy(seen[0][1], labels) + 3 * divergence(seen[0][1], seen[1][1])
    assert total == pytest.approx(expected, rel=1e-5)


def mart(clean: Array, robust: Array, labels: Any, *, beta: float) -> float:
    """Equation 12 of Wang et al. 2020, image by image, with the small constants of their code."""
    images = []
    for p, q, label in zip(np.exp(log_softmax(clean)), np.exp(log_softmax(robust)), labels, strict=True):
        wrong = max(share for k, share in enumerate(q) if k != label)
        boosted = -np.log(q[label]) - np.log(1.0001 - wrong)
        images.append(boosted + beta * sum(p * np.log(p / q)) * (1.0000001 - p[label]))
    return float(np.mean(images))


def test_the_loss_of_mart_is_that_of_the_paper() -> None:
    given, attack = batch(), Attack(eps=0.1, steps=2)
    total, seen = taken(Mart(smart(), setup("mart", options=MartOptions(beta=3.0))), given, attack)
    assert [one.path for one, _ in seen] == ["robust", "robust"]
    torch.testing.assert_close(seen[0][0].images, given.images, rtol=0, atol=0)
    assert total == pytest.approx(mart(seen[0][1], seen[1][1], given.labels.numpy(), beta=3.0), rel=1e-5)


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
    noise = tiny_config(method="ar-at", method_options={"clean_noise": "8/255"}).record()["method_options"]
    assert noise["clean_noise"] == 8 / 255
    for options, message in (
        ({"beta": "nan"}, "expected beta of method trades as float, got 'nan'"),
        ({"bta": 1.0}, "unknown option 'bta' of method trades; it has beta"),
        ({"beta": "much"}, "expected beta of method trades as float, got 'much'"),
        ({"beta": -1.0}, "expected a finite beta of 0 or more, got -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_config(method="trades", method_options=options)
    for method, name, value in (("mart", "beta", -1.0), ("pgd-at-mixed", "share", 1.5)):
        with pytest.raises(ConfigError, match=f"^expected a .*{name} .* got {value}; "):
            tiny_config(method=method, method_options={name: value})
    with pytest.raises(ConfigError, match="unknown option 'beta' of method smart; it has none"):
        tiny_config(method_options={"beta": 1.0})


def test_the_cost_of_a_method_is_counted_in_forward_passes() -> None:
    """As docs/methods.md has them, with the steps that are each one's default."""
    costs = {"standard": (7, 3), "pgd-at": (10, 23), "pgd-at-mixed": (7, 20), "fgsm-rs": (1, 5), "n-fgsm": (1, 5)}
    costs |= {"trades": (10, 27), "mart": (10, 26), "dual-bn": (7, 10), "smart": (7, 10)}
    for name, (steps, forwards) in costs.items():
        assert load_method(name).forwards(steps) == forwards, name


def test_a_tap_gives_the_output_of_a_layer_and_is_gone_afterwards() -> None:
    net = smart().eval()
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    tapped, plain = net([Pass("robust", images, tap=("blocks",)), Pass("robust", images)])
    features: Tensor = tapped.features["blocks"]
    network: Any = net.path("robust").network
    torch.testing.assert_close(network.fc(features.mean(dim=(2, 3))), tapped.scores)
    assert plain.features == {}
    assert not network.blocks._forward_hooks
