"""Budgets and overlaps against plain NumPy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from reference import budget as oracle
from smart_common.mask_info import GroupOverlap, MaskOverlap
from smart_train import ConfigError, SmartNetwork, Structure, convert, load_checkpoint, save_checkpoint
from smart_train.checkpoint.format import Samples
from smart_train.masking.accounting import densities, overlap
from smart_train.masking.budget import kept_of_groups, kept_of_layers, share_out, sparsity_weight
from smart_train.masking.groups import Group, Member, Point
from smart_train.masking.plan import MaskPlan
from smart_train.training.loop import Trainer
from train.networks import image_set, resnet, smart, tiny_config

SHAPES = st.lists(
    st.tuples(st.integers(4, 64), st.integers(4, 64), st.sampled_from([1, 3]), st.sampled_from([1, 3])),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(shapes=SHAPES, density=st.floats(0.2, 1))
def test_layers_keep_what_the_formula_says_and_all_together_what_was_asked_for(
    shapes: list[tuple[int, ...]], density: float
) -> None:
    structure = Structure(name="unstructured", density=density, budget="erk")
    named = {str(i): shape for i, shape in enumerate(shapes)}
    sizes = [int(torch.Size(shape).numel()) for shape in shapes]
    kept = kept_of_layers(structure, named)
    total = sum(structure.kept_weights(shape) for shape in shapes)
    assert sum(kept.values()) == total
    floors = [shape[0] for shape in shapes]
    wanted = oracle.erk_densities(shapes, total=total, sizes=sizes)
    assert all(1 <= kept[name] <= size for name, size in zip(named, sizes, strict=True))
    if all(share * size >= floor for share, size, floor in zip(wanted, sizes, floors, strict=True)):
        for name, share, size in zip(named, wanted, sizes, strict=True):
            assert abs(kept[name] - share * size) <= 1 + 1e-6 * size, (name, share)


@settings(deadline=None)
@given(
    groups=st.lists(st.tuples(st.integers(1, 64), st.floats(0.01, 10)), min_size=1, max_size=8),
    step=st.sampled_from([1, 4, 8]),
    share=st.floats(0, 1),
)
def test_shares_stay_within_floors_and_sizes_and_reach_the_total(
    groups: list[tuple[int, float]], step: int, share: float
) -> None:
    sizes, weights = [size for size, _ in groups], [weight for _, weight in groups]
    floors = [min(step, size) for size in sizes]
    total = sum(floors) + round(share * (sum(sizes) - sum(floors)))
    found = share_out(total, sizes=sizes, weights=weights, floors=floors, steps=[step] * len(sizes))
    for count, size, floor in zip(found, sizes, floors, strict=True):
        assert floor <= count <= size
        assert count % step == 0 or count == size
    assert total - step < sum(found) <= total


def test_smaller_layers_stay_denser_and_the_count_of_channels_is_that_of_uniform() -> None:
    nets = {
        budget: convert(
            resnet(width=16), example_input=torch.zeros(2, 1, 8, 8), density=0.25, align=4, scope="all", budget=budget
        )
        for budget in ("uniform", "erk")
    }
    uniform, erk = nets["uniform"], nets["erk"]
    assert sum(uniform.kept) - 4 < sum(erk.kept) <= sum(uniform.kept)
    assert min(erk.kept) >= 4
    assert erk.kept != uniform.kept
    shares = {group.name: kept / group.size for group, kept in zip(erk.groups, erk.kept, strict=True)}
    assert shares["blocks.0.conv1"] >= shares["blocks.1.conv1"]


def test_a_group_that_no_layer_makes_has_a_share_too() -> None:
    """A stranger's checkpoint may hold one."""
    norms = {"norm": nn.BatchNorm2d(8)}
    member = Member("norm", "channel", torch.arange(8).unsqueeze(1))
    group = Group("norm", 8, (member,), (Point("norm", None),))
    assert kept_of_groups(Structure(density=0.5, align=4, budget="erk"), [group], norms) == (4,)


def test_a_layers_weight_is_that_of_the_paper() -> None:
    assert sparsity_weight([(64, 32, 3, 3)]) == (64 + 32 + 3 + 3) / (64 * 32 * 3 * 3)
    assert sparsity_weight([(10, 5), (4, 5)]) == 24 / 70


@pytest.mark.parametrize("structure", ["channel", "unstructured"])
def test_a_budget_survives_a_checkpoint(structure: str, tmp_path: Path) -> None:
    wanted = Structure(name=structure, density=0.4, align=1, budget="erk")
    config = tiny_config(structure=wanted, masks=MaskPlan(mode="static"), epochs=1)
    trainer = Trainer(config, image_set(), output=tmp_path / "ckpt.pt")
    images = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    samples = Samples(
        images, torch.zeros(1, dtype=torch.int64), dict.fromkeys(trainer.net.path_names, images), 0.0, "-"
    )
    save_checkpoint(trainer.checkpoint(trainer.net, samples), tmp_path / "ckpt.pt")
    net = load_checkpoint(tmp_path / "ckpt.pt").net
    assert net.structure == wanted
    for path in net.path_names:
        assert [int(mask.sum()) for mask in net.masks(path)] == list(net.kept)
        for name, mask in net.weight_masks(path).items():
            assert int(mask.sum()) == net.kept_weights(name, mask.shape)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": "fair"}, "expected budget uniform or erk, got 'fair'"),
        ({"budget": "erk", "name": "2:4"}, "budget erk and 2:4, which keeps 0.5 of every layer, cannot be combined"),
    ],
    ids=str,
)
def test_a_budget_that_cannot_be_is_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        Structure(**options)  # type: ignore[arg-type]  # a test's own choice


@pytest.mark.parametrize("structure", ["channel", "unstructured", "2:4", "channel+2:4"])
def test_overlap_is_intersection_over_union(structure: str) -> None:
    net = smart(width=8, structure=structure, align=4)
    randomised(net, seed=3)
    found = overlap(net)
    assert found is not None
    assert found == densities(net).overlap
    each = {
        path: [m.numpy() for m in (net.masks(path) if net.groups else net.weight_masks(path).values())]
        for path in net.path_names
    }
    together, apart = oracle.overlap(each)
    assert found.value == together
    assert [group.value for group in found.groups] == apart
    assert [group.name for group in found.groups] == [g.name for g in net.groups] or list(net.weight_layers)


def randomised(net: SmartNetwork, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for path in net.path_names:
        for i, group in enumerate(net.groups):
            keep = torch.rand(group.size, generator=generator) < 0.6
            keep[0] = True
            net.set_mask(path, i, keep)
        for name in net.weight_layers:
            net.set_weight_mask(path, name, torch.rand(net.weight_mask(path, name).shape, generator=generator) < 0.5)


@pytest.mark.parametrize(("size", "first", "second"), [(5, 2, 3), (6, 3, 3), (4, 4, 1), (7, 1, 2)])
def test_chance_is_what_all_pairs_of_masks_give_in_the_mean(size: int, first: int, second: int) -> None:
    group = GroupOverlap("g", size, {"clean": first, "robust": second}, both=1, either=max(first, second))
    assert group.expected == pytest.approx(oracle.mean_counts(size, first=first, second=second))


@given(size=st.integers(1, 100), data=st.data())
def test_overlap_and_chance_are_fractions(size: int, data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.integers(1, size), min_size=2, max_size=4))
    both = data.draw(st.integers(0, min(kept)))
    either = data.draw(st.integers(max(kept), size))
    found = MaskOverlap("channels", (GroupOverlap("g", size, {str(i): k for i, k in enumerate(kept)}, both, either),))
    assert 0 <= found.value <= 1
    assert 0 < found.chance <= 1 + 1e-12
    assert found.record()["groups"][0]["overlap"] == found.value


def test_chance_of_equal_densities_has_a_closed_form() -> None:
    group = GroupOverlap("g", 64, {"clean": 16, "robust": 16}, both=16, either=16)
    assert group.chance == pytest.approx(0.25 / 1.75)


def test_overlap_in_words() -> None:
    alike = GroupOverlap("a", 8, {"clean": 4, "robust": 4}, both=4, either=4)
    apart = GroupOverlap("b", 8, {"clean": 4, "robust": 4}, both=0, either=8)
    assert str(MaskOverlap("channels", (alike, apart))) == (
        "the masks share 33.3% of the channels that any path keeps (33.3% by chance), from 0.0% in b to 100.0% in a"
    )
    assert str(MaskOverlap("weights", (alike,))).endswith("(33.3% by chance)")
