"""What may be added to any method does what its paper says, and a training with all of it resumes to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from smart_train import ConfigError, DataError, Structure, load_checkpoint
from smart_train.data.extra import ExtraImages, load_extra
from smart_train.masking.passes import Pass
from smart_train.masking.plan import MaskPlan
from smart_train.masking.statistics import reestimate_, statistics_held
from smart_train.training.averaging import WeightAverage
from smart_train.training.batches import Batches
from smart_train.training.control import control_config
from smart_train.training.loop import Trainer
from smart_train.training.perturbation import perturbed
from smart_train.training.refinements import Refinements
from smart_train.training.selection import Measurement
from smart_train.training.targets import Targets, cut_and_pasted
from train.networks import different, image_set, smart, tiny_config

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), height=st.integers(1, 9), width=st.integers(1, 9), alpha=st.floats(0.1, 4))
def test_cutmix_pastes_one_box_of_the_partner_and_counts_its_pixels(
    seed: int, height: int, width: int, alpha: float
) -> None:
    images = torch.arange(6.0)[:, None, None, None].expand(6, 2, height, width)  # each its own number
    mixed, share, order = cut_and_pasted(images, alpha=alpha, generator=generator(seed))
    pasted = (mixed != images).numpy()
    for image, partner, where in zip(mixed.numpy(), order.tolist(), pasted, strict=True):
        assert set(np.unique(image[where])) <= {float(partner)}
    boxes = pasted[[i for i, partner in enumerate(order.tolist()) if partner != i]]
    for where in boxes:
        rows, columns = np.flatnonzero(where[0].any(axis=1)), np.flatnonzero(where[0].any(axis=0))
        assert where[0].sum() == len(rows) * len(columns) == round(share * height * width)
        assert all(np.array_equal(where[0], channel) for channel in where)


def test_targets_are_mixed_smoothed_and_a_teachers() -> None:
    images, labels = torch.rand(6, 1, 8, 8, generator=generator()), torch.arange(6) % 3
    same, hard, targets = Targets(Refinements(), 3)(images, labels, generator=generator())
    assert same is images
    assert hard is targets is labels

    class Teacher(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images.mean(dim=(1, 2, 3)) * k for k in range(3)], dim=1)

    wanted = Refinements(cutmix=1, label_smoothing=0.3, distill=0.25, temperature=2)
    mixed, hard, targets = Targets(wanted, 3, Teacher())(images, labels, generator=generator(3))
    expected_images, share, order = cut_and_pasted(images, alpha=1, generator=generator(3))
    torch.testing.assert_close(mixed, expected_images)
    one_hot = np.eye(3)[labels.numpy()]
    told: Any = (1 - share) * one_hot + share * one_hot[order.numpy()]
    told = 0.7 * told + 0.3 / 3
    scores = expected_images.numpy().mean(axis=(1, 2, 3))[:, None] * np.arange(3) / 2
    teacher = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(targets.numpy(), 0.75 * told + 0.25 * teacher, rtol=1e-5)
    assert torch.equal(hard, labels if share <= 0.5 else labels[order])


def batches(config: Any, extra: Any = None) -> Batches:
    data = image_set(train=200)
    return Batches(data.train, config, targets=Targets(Refinements(), 3), device=CPU, extra=extra)


def test_a_share_of_each_batch_is_extra_and_an_epoch_is_counted_by_the_data(tmp_path: Path) -> None:
    data = image_set(train=200)
    white = np.full((5, 8, 8, 1), 255, np.uint8)
    np.savez(tmp_path / "extra.npz", image=white, label=np.array([0, 1, 2, 0, 1]))
    found = load_extra(f"npz:{tmp_path / 'extra.npz'}", beside=data)
    config = tiny_config(batch_size=20, refinements=Refinements(extra_share=0.7))
    made = list(batches(config, found.split).epoch(1))
    assert len(made) == len(data.train) // 20
    white_ones = [(batch.images == 1).all(dim=(1, 2, 3)) for batch in made]
    assert all(int(white.sum()) == 14 for white in white_ones)
    assert len({tuple(white.tolist()) for white in white_ones}) > 1, "mixed, since paths take a half each"
    for spec, message in (
        ("folder:x", "expected extra images as npz:FILE"),
        (f"npz:{tmp_path / 'none.npz'}", "no file .*none.npz; give a .npz with images, labels"),
    ):
        with pytest.raises(DataError, match=message):
            load_extra(spec, beside=data)
    np.savez(tmp_path / "wide.npz", images=np.zeros((5, 8, 9, 1), np.uint8), labels=np.zeros(5, np.int64))
    np.savez(tmp_path / "more.npz", images=white, labels=np.full(5, 3))
    np.savez(tmp_path / "decimal.npz", images=white / np.float32(255), labels=np.zeros(5, np.int64))
    with pytest.raises(DataError, match=r"expected extra images .* save np.rint\(images \* 255\)"):
        load_extra(f"npz:{tmp_path / 'decimal.npz'}", beside=data)
    with pytest.raises(DataError, match=r"expected extra images of \(8, 8, 1\)"):
        load_extra(f"npz:{tmp_path / 'wide.npz'}", beside=data)
    with pytest.raises(DataError, match="expected labels from 0 to 2"):
        load_extra(f"npz:{tmp_path / 'more.npz'}", beside=data)


def test_images_of_the_data_alone_are_not_copied() -> None:
    data = image_set()
    made = Batches(data.train, tiny_config(), targets=Targets(Refinements(), 3), device=CPU)
    assert np.shares_memory(made._images.numpy(), data.train.images)


def test_a_sample_is_the_same_whenever_it_is_asked_for_and_leaves_the_training_alone() -> None:
    made = batches(tiny_config(batch_size=20))
    before = made.generators.order.get_state()
    first, second = (list(made.sample(50, epoch=3)) for _ in range(2))
    assert len(first) == 3
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0].images, next(iter(made.sample(50, epoch=4))).images)
    assert torch.equal(before, made.generators.order.get_state())


def test_weights_move_up_the_loss_by_a_share_of_their_norm_and_come_back() -> None:
    net = smart().train()
    images, labels = torch.rand(8, 1, 8, 8, generator=generator()), torch.arange(8) % 3
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def loss() -> Tensor:
        clean, robust = net([Pass("clean", images[:4]), Pass("robust", images[4:])])
        cross_entropy = nn.functional.cross_entropy
        return cross_entropy(clean.scores, labels[:4]) + cross_entropy(robust.scores, labels[4:])

    with statistics_held(net):
        gradients = torch.autograd.grad(loss(), [p for p in net.parameters() if p.dim() > 1])
        unmoved = float(loss().detach())
    with perturbed(net, loss, size=0.05):
        weights = [(name, p) for name, p in net.named_parameters() if p.dim() > 1]
        for (name, weight), gradient in zip(weights, gradients, strict=True):
            moved, old, up = (t.detach().double().numpy() for t in (weight, before[name], gradient))
            expected = old + 0.05 * np.linalg.norm(old) / np.linalg.norm(up) * up
            np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-7)
        with statistics_held(net):
            assert float(loss().detach()) > unmoved
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-5, atol=1e-7)


def test_averages_are_those_of_their_formulas_and_swap_back_to_the_bit() -> None:
    for wanted in (Refinements(average="ema", ema_decay=0.5), Refinements(average="swa", swa_from=0.5)):
        layer = nn.Linear(2, 2)
        average = WeightAverage(layer, wanted, steps=2, total=8)
        with average.applied() as there:
            assert not there
        history = []
        ema = layer.weight.detach().double().numpy()
        for step in range(1, 9):
            with torch.no_grad():
                layer.weight.copy_(torch.rand(2, 2, generator=generator(step)))
            average.update(step)
            weight = layer.weight.detach().double().numpy()
            kept = min(0.5, step / (9 + step))
            ema = kept * ema + (1 - kept) * weight
            history.append(weight)
        last = layer.weight.detach().clone()
        expected = ema if wanted.average == "ema" else np.mean([history[5], history[7]], axis=0)
        with average.applied() as there:
            assert there
            np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=1e-5)
        assert torch.equal(layer.weight, last)


def test_statistics_are_the_mean_over_the_passes_and_a_path_without_one_keeps_its_own() -> None:
    net = smart().eval()
    images = [torch.rand(4, 1, 8, 8, generator=generator(seed)) for seed in range(3)]
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    reestimate_(net, net, [[Pass("clean", one)] for one in images])
    assert not net.training
    norm: Any = next(m for m in net.path("clean").modules() if isinstance(m, nn.BatchNorm2d))
    first: Any = next(m for m in net.path("clean").modules() if isinstance(m, nn.Conv2d))
    network = net.path("clean")
    means = [first(network.normalise(one)).mean(dim=(0, 2, 3)) for one in images]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(dim=0))
    for name, buffer in net.named_buffers():
        if "robust" in name:
            assert torch.equal(buffer, before[name])


def test_what_masks_learn_from_is_the_step_alone(tmp_path: Path) -> None:
    def trainer(name: str, *, mode: str, **refinements: Any) -> Trainer:
        config = tiny_config(
            structure=Structure(name="unstructured", density=0.5),
            masks=MaskPlan(mode=mode),
            refinements=Refinements(**refinements),
        )
        made = Trainer(config, image_set(), output=tmp_path / f"{name}.pt")
        made.step(next(made.batches.epoch(1)))
        return made

    # Weights that AWP moves by next to nothing: gradients of both of its passes are the same.
    plain, moved = trainer("plain", mode="regrow"), trainer("moved", mode="regrow", awp=1e-12)
    sums = [one._parts.learner.state()["wanted"] for one in (plain, moved)]
    assert not different(*({f"{p} {n}": t for p, layers in one.items() for n, t in layers.items()} for one in sums))

    averaging = trainer("averaging", mode="gradual", average="ema")
    power = averaging._parts.learner.state()["weights"]["power"]["clean"]
    before = {name: mean.clone() for name, mean in power.items()}
    with averaging._stepper.averaged(epoch=1):
        assert not different(power, before), "measuring batch norms anew is no step"


class Stopped(Exception):  # noqa: N818  # no error: the test pulls the plug
    pass


@pytest.mark.parametrize(("method", "precision"), [("smart", "32-true"), ("trades", "bf16-mixed")])
def test_a_training_with_all_of_it_resumes_to_the_bit_and_deploys_the_mean(
    tmp_path: Path, method: str, precision: str
) -> None:
    np.savez(tmp_path / "extra.npz", images=np.full((5, 8, 8, 1), 255, np.uint8), labels=np.zeros(5, np.int64))
    everything = Refinements(label_smoothing=0.1, cutmix=1, extra_share=0.25, awp=0.01, average="ema", ema_decay=0.9)
    config = tiny_config(method=method, epochs=2, refinements=everything, precision=precision)
    extra = f"npz:{tmp_path / 'extra.npz'}"
    whole = Trainer(config, image_set(), output=tmp_path / "whole.pt", extra=extra)
    whole.run()

    def stop(_: object) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        Trainer(config, image_set(), output=tmp_path / "parts.pt", extra=extra).run(on_epoch=stop)
    other = replace(config, refinements=replace(everything, awp=0.02))
    with pytest.raises(ConfigError, match="another refinements"):
        Trainer(other, image_set(), output=tmp_path / "parts.pt", extra=extra, resume=True)
    parts = Trainer(config, image_set(), output=tmp_path / "parts.pt", extra=extra, resume=True)
    parts.run()
    found, again = load_checkpoint(tmp_path / "whole.pt"), load_checkpoint(tmp_path / "parts.pt")
    assert not different(found.net.state_dict(), again.net.state_dict())
    assert found.training["refinements"]["cutmix"] == 1
    assert len(found.training["extra_digest"]) == 64
    last = whole._training.net.state_dict()
    assert different(found.net.state_dict(), last), "the mean is deployed, not the last weights"
    assert all(bool(torch.isfinite(t).all()) for t in last.values())


def test_what_cannot_be_is_refused_in_a_sentence(tmp_path: Path) -> None:
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"label_smoothing": 1.0}, "expected label_smoothing from 0 to below 1, got 1.0"),
        ({"cutmix": -1.0}, "expected cutmix of 0 or more, got -1.0; 1 is usual"),
        ({"awp": float("nan")}, "expected awp of 0 or more, got nan"),
        ({"temperature": 0.0}, "expected a temperature above 0"),
        ({"distill": 2.0}, r"expected distill in \[0, 1\]"),
        ({"awp_from": 0}, "expected awp_from of 1 or more"),
        ({"average": "median"}, "unknown average 'median'"),
        ({"temperature": 2.0}, "temperature has no effect without distill above 0; give both"),
        ({"awp_from": 2}, "awp_from has no effect without awp above 0"),
        ({"average": "swa", "ema_decay": 0.9}, "ema_decay has no effect without average ema"),
        ({"average": "ema", "swa_from": 0.5}, "swa_from has no effect without average swa"),
    )
    for options, message in refused:
        with pytest.raises(ConfigError, match=message):
            Refinements(**options)
    with pytest.raises(ConfigError, match="awp begins in epoch 3, after the last of 2; begin earlier, or leave it out"):
        tiny_config(epochs=2, refinements=Refinements(awp=0.01, awp_from=3))
    config = tiny_config(refinements=Refinements(extra_share=0.5))
    with pytest.raises(ConfigError, match="--extra and --extra-share belong together"):
        Trainer(config, image_set(), output=tmp_path / "ckpt.pt")
    extra = ExtraImages(image_set().train, "0" * 64)
    config = tiny_config(refinements=Refinements(extra_share=0.03))
    with pytest.raises(ConfigError, match=r"a share of 0\.03 is no extra image in a batch of 16; raise --extra-share"):
        Trainer(config, image_set(), output=tmp_path / "ckpt.pt", extra=extra)
    dense = tiny_config(method="trades", structure=Structure(density=1.0))
    with pytest.raises(ConfigError, match="nothing is masked by method trades at density 1"):
        control_config(dense)


def test_softer_targets_are_refused_where_the_loss_takes_labels_alone() -> None:
    softer: dict[str, Any] = {"refinements": Refinements(label_smoothing=0.1, cutmix=1)}
    assert tiny_config(method="part", method_options={"base": "trades"}, **softer).refinements.cutmix == 1
    for method, options in (("mart", {}), ("part", {"base": "mart"})):
        with pytest.raises(ConfigError, match="the loss of mart takes labels alone as targets; leave out label_smooth"):
            tiny_config(method=method, method_options=options, **softer)


def test_a_mean_over_epochs_begins_before_the_last_one_however_short_the_training() -> None:
    average = WeightAverage(nn.Linear(2, 2), Refinements(average="swa", swa_from=0.99), steps=3, total=9)
    for step in range(1, 10):
        average.update(step)
    assert average.state()["count"] == 1


def test_no_epoch_before_the_mean_is_deployed_however_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(method="standard", epochs=4, refinements=Refinements(average="swa", swa_from=0.5))
    trainer = Trainer(config, image_set(), output=tmp_path / "ckpt.pt")
    scores = iter([0.9, 0.8, 0.1, 0.2])
    monkeypatch.setattr(Measurement, "validate", lambda *_, **__: ({}, next(scores)))
    assert trainer.run().best_epoch == 4
