from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reference import masks as oracle
from smart_train import Attack, ConfigError, NetworkError, SmartNetwork, Structure, convert
from smart_train.masking.accounting import densities
from smart_train.masking.attack_mode import attack_mode
from smart_train.masking.layers import batch_norm_parameters
from train.networks import different, randomise_, resnet, smart

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def tensors_of(net: SmartNetwork, path: str) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in net.path(path).state_dict().items()}


def test_weights_are_one_object_in_all_paths_and_batch_norms_are_not() -> None:
    plain = resnet()
    net = convert(plain, example_input=IMAGES, paths=["a", "b", "c"], align=1)
    trees = [dict(net.path(name).network.named_parameters()) for name in net.path_names]
    own = batch_norm_parameters(net.path("a").network)
    for name, original in plain.named_parameters():
        objects = {id(tree[name]) for tree in trees}
        assert len(objects) == (3 if name in own else 1), name
        assert (id(original) in objects) == (name not in own), name
    found = list(net.parameters())
    assert len(found) == len({id(p) for p in found})
    assert len(found) == len(trees[0]) + 2 * len(own)


def train_a_path(net: SmartNetwork) -> None:
    net.path("robust").train()
    nn.functional.cross_entropy(net.path("robust")(IMAGES), LABELS).backward()  # type: ignore[no-untyped-call]


def attack_a_path(net: SmartNetwork) -> None:
    with attack_mode(net.path("robust")):
        Attack(eps=0.2, steps=3).run(net.path("robust"), IMAGES, LABELS, generator=torch.Generator())


def mask_a_path(net: SmartNetwork) -> None:
    net.set_mask("robust", 0, torch.tensor([True, False, False, False]))


@pytest.mark.parametrize("act", [train_a_path, attack_a_path, mask_a_path])
def test_what_happens_on_one_path_leaves_the_other_as_it_was(act: Callable[[SmartNetwork], None]) -> None:
    net = smart()
    net.path("clean").eval()
    randomise_(net, seed=0)
    before, scores = tensors_of(net, "clean"), net.path("clean")(IMAGES)
    flags = [m.training for m in net.path("clean").modules()]
    act(net)
    assert not different(tensors_of(net, "clean"), before)
    assert [m.training for m in net.path("clean").modules()] == flags
    assert torch.equal(net.path("clean")(IMAGES), scores)


def test_an_attack_moves_nothing_and_gathers_no_gradient_on_its_own_path_either() -> None:
    net = smart().train()
    before = tensors_of(net, "robust")
    attack_a_path(net)
    assert not different(tensors_of(net, "robust"), before)
    assert all(p.grad is None for p in net.parameters())
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize("name", ["half", "items", "shared", "type", "a-b_3"])
def test_a_path_may_have_any_name_of_the_right_form(name: str) -> None:
    net = convert(resnet(), example_input=IMAGES, paths=["clean", name])
    assert net.path_names == ("clean", name)
    assert net.path(name)(IMAGES).shape == (6, 3)


@pytest.mark.parametrize("paths", [[], ["clean", "clean"], ["dense"], ["A"], ["1a"], ["a.b"], [""], ["clean\n"]])
def test_other_path_names_are_refused(paths: list[str]) -> None:
    with pytest.raises(ConfigError, match="path name"):
        convert(resnet(), example_input=IMAGES, paths=paths)


def test_an_unknown_path_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="unknown path 'fast'; there are clean, robust"):
        smart().path("fast")


def test_an_unknown_structure_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"^unknown structure '4:2'; there are channel, N:M "):
        smart(structure="4:2")


@pytest.mark.parametrize(
    "options",
    [
        {"density": 0.0},
        {"density": 1.5},
        {"density": float("nan")},
        {"align": 0},
        {"scope": "none"},
        {"mean": [0.5, 0.5]},
        {"std": [0.0]},
        {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]},
    ],
    ids=str,
)
def test_a_bad_option_is_refused_in_one_sentence(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^expected .* got .*"):
        convert(resnet(), example_input=IMAGES, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "mask",
    [torch.zeros(4, dtype=torch.bool), torch.ones(3, dtype=torch.bool), torch.ones(4)],
    ids=["empty", "too short", "float"],
)
def test_a_mask_that_does_not_fit_is_refused_and_changes_nothing(mask: Tensor) -> None:
    net = smart()
    with pytest.raises(ConfigError, match="bool mask of 4 channels"):
        net.set_mask("clean", 0, mask)
    assert net.mask("clean", 0).all()


@given(
    size=st.integers(1, 600), density=st.fractions(Fraction(1, 100), 1, max_denominator=100), align=st.integers(1, 40)
)
def test_kept_counts_are_those_counted_up_in_aligned_steps(size: int, density: Fraction, align: int) -> None:
    got = Structure(density=float(density), align=align).kept(size)
    assert got == oracle.kept(size, density=density, align=align)
    assert 1 <= got <= size


def test_normalisation_is_inside_every_path() -> None:
    plain = resnet().eval()
    net = convert(copy.deepcopy(plain), example_input=IMAGES, mean=[0.3], std=[0.2]).eval()
    for name in net.path_names:
        assert torch.equal(net.path(name)(IMAGES), plain((IMAGES - 0.3) / 0.2))


def test_densities_count_what_each_path_and_all_together_use() -> None:
    net = smart(width=4)
    one, two = torch.tensor([True, False, False, False]), torch.arange(8) < 3
    net.set_mask("clean", 0, one)
    net.set_mask("robust", 1, two)
    found = densities(net)
    ends = 4 * 9 + 2 * 4 + 8 * 3 + 3  # stem with batch norm, classifier
    blocks = {
        path: oracle.block_parameters(channels=(4, 4, 4), kept_inside=first, projected=False)
        + oracle.block_parameters(channels=(4, 8, 8), kept_inside=second, projected=True)
        for path, (first, second) in {"clean": (1, 8), "robust": (4, 3), "dense": (4, 8)}.items()
    }
    total = ends + blocks["dense"]
    assert total == sum(p.numel() for p in resnet().parameters())
    assert found.kept == {"clean": 9 / 12, "robust": 7 / 12}
    assert found.parameters == {p: (ends + blocks[p]) / total for p in ("clean", "robust")}
    norms = 2 * (4 + 4 + 4 + 8 + 8 + 8)
    stored = total - norms + 2 * norms - 2 * 3 - 2 * 5  # every shared weight is in one path, its batch norms are apart
    assert found.union == stored / (total + norms)


def test_an_input_the_network_does_not_take_is_a_network_error() -> None:
    with pytest.raises(NetworkError, match=r"takes images of shape \(2, 3, 8, 8\)"):
        convert(resnet(), example_input=torch.zeros(2, 3, 8, 8))
    with pytest.raises(NetworkError, match="add a batch axis"):
        convert(resnet(), example_input=torch.zeros(1, 8, 8))
