"""The page's pictures: which images, what was done to them, how they are shown."""

from __future__ import annotations

import base64
import io
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from eval.reports import Parsed, model, report
from smart_eval.attacks.autoattack import AutoAttackParts
from smart_eval.attacks.base import NamedAttack, Transferred
from smart_eval.attacks.pgd import Pgd
from smart_eval.models import open_checkpoint, read_source
from smart_eval.page.figures import data_uri, png
from smart_eval.page.page import render
from smart_eval.page.pictures import Pictures, make_pictures, shown_attack
from smart_train import Attack
from smart_train.data.images import Split
from train.networks import image_set


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures_come_back_as_they_were(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    uri = data_uri(pixels)
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) as opened:
        found = np.asarray(opened)
    expected = pixels.mean(axis=2).round().astype(np.uint8) if channels == 2 else pixels.squeeze()
    np.testing.assert_array_equal(found, expected)
    assert png(pixels).endswith(b"IEND" + zlib.crc32(b"IEND").to_bytes(4, "big"))


def test_pictures_are_attacked_within_eps_and_the_same_each_time(trained: Path) -> None:
    model, data = open_checkpoint(read_source(trained), file=trained), image_set()
    attack = Pgd(Attack(eps=0.1, steps=5))
    options: dict[str, Any] = {"attack": attack, "eps": 0.1, "seed": 0}
    state = torch.random.get_rng_state()
    found, again = (make_pictures(model, data.test, **options) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert 2 <= len(found.pictures) <= 6
    for first, second in zip(found.pictures, again.pictures, strict=True):
        assert np.array_equal(first.pixels, second.pixels)
        assert set(first.attacked) == set(model.net.path_names)
        for path, one in first.attacked.items():
            assert np.array_equal(one.pixels, second.attacked[path].pixels)
            change = one.pixels.astype(int) - first.pixels
            assert abs(change).max() <= 0.1 * 255 + 0.5, "rounded to a level"
            shown = (one.perturbation / 255 - 0.5) * 0.2
            assert np.abs(shown - change / 255).max() <= 0.5 / 255 + 0.2 * 0.5 / 255 + 1e-9
    rightly = [picture for picture in found.pictures if set(picture.says.values()) == {picture.label}]
    assert len({picture.label for picture in rightly}) == min(len(rightly), len(data.class_names))


class Reading(nn.Module):
    """Says the class that stands in an image's first pixel; ``wrong`` if the second one is not black."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, second = (images[:, 0, 0, i].mul(255).round().long() for i in (0, 1))
        return nn.functional.one_hot((first + (second > 0) * self.wrong) % 3, 3).float()


class TwoReaders:
    """What `make_pictures` asks of a model and its network."""

    class_names = ("a", "b", "c")
    path_names = ("sure", "unsure")

    @property
    def net(self) -> TwoReaders:
        return self

    def path(self, name: str) -> nn.Module:
        return Reading(wrong=name == "unsure")


@dataclass(frozen=True)
class Brighter(NamedAttack):
    """Adds its radius to each pixel."""

    name: str = "brighter"
    eps: float = 2 / 255
    description = "brighter"

    def __call__(self, model: Any, images: torch.Tensor, labels: torch.Tensor, *, seed: int) -> torch.Tensor:
        assert len(model(images)) == len(labels)
        assert 0 <= seed < 2**64
        return (images + self.eps).clamp(0, 1)


class BrighterSource(Transferred):
    """The same, said to be made on a source."""

    def __call__(self, model: Any, images: torch.Tensor, labels: torch.Tensor, *, seed: int) -> torch.Tensor:
        return self.attack(model, images, labels, seed=seed)


BRIGHTER = Brighter()


def shown_of(
    labels: list[int], unsure: list[int], *, size: int = 4, eps: float = 2 / 255, attack: NamedAttack = BRIGHTER
) -> Pictures:
    """Pictures of images whose third pixel is their number."""
    images = np.zeros((len(labels), size, size, 3), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 2] = np.array(labels)[:, None], np.arange(len(labels))[:, None]
    images[unsure, 0, 1] = 9
    split = Split(images, np.array(labels, dtype=np.int64))
    subject: Any = TwoReaders()
    return make_pictures(subject, split, attack=attack, eps=eps, seed=0)


def test_pictures_are_the_first_of_different_classes_that_every_path_gets_right() -> None:
    found = shown_of([0, 0, 1, 1, 2, 2, 0, 1], unsure=[0, 4, 5])
    assert [int(picture.pixels[0, 2, 0]) for picture in found.pictures] == [1, 2, 3, 6, 7, 0]
    first, last = found.pictures[0], found.pictures[-1]
    assert (first.label, first.says) == (0, {"sure": 0, "unsure": 0})
    assert (last.label, last.says) == (0, {"sure": 0, "unsure": 1})
    attacked = first.attacked["unsure"]
    assert attacked.says == {"sure": 2, "unsure": 0}, "two levels brighter, and no longer black"
    assert attacked.pixels.min() == 2
    assert np.all(attacked.perturbation == 255), "as far up as it may go"
    assert found.attack == "brighter"
    (still,) = shown_of([0], [], eps=0.0).pictures
    assert np.all(still.attacked["sure"].perturbation == 128), "grey where nothing may change"
    assert shown_of([0, 1], [], attack=BrighterSource(BRIGHTER)).attack == "brighter made on its source"
    assert [int(one.pixels[0, 2, 0]) for one in shown_of([2, 1, 0], []).pictures] == [0, 1, 2], "in their order"


@pytest.mark.parametrize(("size", "count"), [(4, 6), (200, 5), (300, 2), (600, 2)])
def test_large_pictures_are_few(size: int, count: int) -> None:
    assert len(shown_of([0, 1, 2] * 3, [], size=size).pictures) == count


def test_pictures_are_shown_with_what_each_path_says_of_them() -> None:
    shown = shown_of([0, 1], [1])
    changed = model(classes=("a", "b"))
    changed["paths"] = {"sure": changed["paths"]["clean"], "unsure": changed["paths"]["robust"]}
    changed["classes"] = [{**row, "paths": changed["paths"]} for row in changed["classes"]]
    page = Parsed(render(report(changed, pictures=[shown])))
    words = page.text[page.text.index("What an attack looks like") :]
    assert "originalIt is asure: a ✓ rightunsure: a ✓ right" in words
    assert "originalIt is bsure: b ✓ rightunsure: c ✗ wrong" in words
    assert "changeattackedMade on sure" in words
    assert "They were attacked again for this page, by brighter within eps 2/255" in words
    images = [attributes for name, attributes in page.elements if name == "img"]
    assert len(images) == 2 * (1 + 2 * 2)
    assert images[0]["src"] == data_uri(shown.pictures[0].pixels)
    assert (images[0]["width"], images[0]["alt"]) == ("4", "a test image of class a")
    assert {attributes["class"] for attributes in images} == {"pixelated"}
    large = Parsed(render(report(changed, pictures=[shown_of([0], [], size=96)])))
    assert {attributes.get("class") for name, attributes in large.elements if name == "img"} == {None}
    still = Parsed(render(report(changed, pictures=[replace(shown, eps=0.0)]))).text
    assert "The radius is 0, so nothing changes." in still


def test_pictures_are_attacked_by_pgd_where_there_are_gradients(trained: Path) -> None:
    opened = open_checkpoint(read_source(trained), file=trained)
    listed: list[NamedAttack] = [AutoAttackParts("square", 0.1), Pgd(Attack(eps=0.1, steps=3))]
    assert shown_attack(opened, listed, eps=0.1).name == "pgd3x1"
    assert shown_attack(opened, listed[:1], eps=0.1).name == "pgd20x1"
    assert shown_attack(replace(opened, made_on={}), listed[:1], eps=0.1).name == "square"
