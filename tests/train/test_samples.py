"""Labelled images with adversarial versions: within eps in whole pixels, repeatable, and divided without overlap."""

from __future__ import annotations

import pytest
import torch

from smart_train import Attack, convert
from smart_train.architectures.build import build_network
from smart_train.checkpoint.format import Samples
from smart_train.checkpoint.samples import halves, make_samples


@pytest.fixture(scope="module")
def samples() -> Samples:
    return make(seed=0)


def make(*, seed: int) -> Samples:
    plain = build_network("resnet8", num_classes=4, in_channels=1, arguments={"width": 4}, generator_seed=0)
    net = convert(plain, example_input=torch.zeros(2, 1, 8, 8), align=1)
    net.set_mask("clean", 0, torch.arange(4) < 2)  # else the paths are one
    net.train()
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (301, 8, 8, 1), generator=generator).to(torch.uint8)  # more than one chunk
    labels = torch.arange(301) % 4
    found = make_samples(net, images, labels, attack=Attack(eps=0.1, steps=2), seed=seed)
    assert net.training
    return found


def test_adversarial_versions_keep_to_eps_and_differ_by_path(samples: Samples) -> None:
    assert (samples.eps, samples.attack) == (0.1, "pgd2x1")
    for adversarial in samples.adversarial.values():
        assert adversarial.shape == samples.images.shape
        assert adversarial.dtype == torch.uint8
        change = (adversarial.int() - samples.images.int()).abs()
        assert change.max() == 25  # 0.1 * 255 = 25.5, rounded towards the original
        assert (change.flatten(1).max(dim=1).values > 0).all()
    assert not torch.equal(samples.adversarial["clean"], samples.adversarial["robust"])


def test_they_are_the_same_for_the_same_seed(samples: Samples) -> None:
    again, other = make(seed=0), make(seed=1)
    assert torch.equal(again.adversarial["robust"], samples.adversarial["robust"])
    assert not torch.equal(other.adversarial["robust"], samples.adversarial["robust"])


def test_halves_share_nothing_and_lose_nothing(samples: Samples) -> None:
    first, second = halves(samples, seed=3)
    assert (len(first.labels), len(second.labels)) == (150, 151)
    whole = {image.numpy().tobytes() for image in samples.images}
    parts = [{image.numpy().tobytes() for image in half.images} for half in (first, second)]
    assert parts[0] | parts[1] == whole
    assert not parts[0] & parts[1]
    for half in (first, second):
        for path, adversarial in half.adversarial.items():
            where = [int((samples.images == image).all(dim=(1, 2, 3)).nonzero()[0]) for image in half.images]
            assert torch.equal(adversarial, samples.adversarial[path][where])
            assert torch.equal(half.labels, samples.labels[where])
    assert torch.equal(halves(samples, seed=3)[0].images, first.images)
    assert not torch.equal(halves(samples, seed=4)[0].images, first.images)
