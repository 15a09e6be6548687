"""Masks of single weights: against brute force, and exact at every update of every structure and mode."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reference import masks as oracle
from smart_train import NetworkError, SmartNetwork, convert
from smart_train.choices import SCORES
from smart_train.masking.accounting import densities, structure_report
from smart_train.masking.layers import Expert
from smart_train.masking.n_of_m import NOfM
from smart_train.masking.passes import Pass
from smart_train.masking.plan import GRADUAL_BEGIN, MaskPlan, gradual_count
from smart_train.masking.structure import Structure
from smart_train.masking.weight_masks import Sliced, pattern_holds
from train.loop import IMAGES, Loop
from train.networks import Functional, smart

STRUCTURES = ["2:4", "1:4", "2:8", "channel+2:4", "channel+1:2", "unstructured"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(
    rows=st.integers(1, 8), m=st.integers(2, 6), levels=st.integers(1, 9), seed=st.integers(0, 2**16), data=st.data()
)
def test_a_pattern_keeps_the_strongest_of_each_block_and_then_of_all(
    rows: int, m: int, levels: int, seed: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, m - 1))
    count = data.draw(st.integers(n * rows, m * rows))
    scores = torch.randint(levels, (rows, m), generator=generator(seed)).float()  # few levels: many ties
    got = NOfM(n, m).keep(scores, count=count)
    assert got.tolist() == oracle.keep_pattern(scores.tolist(), n=n, count=count)
    assert int(got.sum()) == count


@settings(deadline=None)
@given(
    shape=st.sampled_from([(3, 9), (2, 8, 1, 1), (2, 7, 3, 2), (1, 4, 3, 3)]),
    m=st.integers(2, 5),
    keep=st.lists(st.booleans(), min_size=9, max_size=9),
    seed=st.integers(0, 2**16),
)
def test_blocks_are_counted_over_kept_input_channels(
    shape: tuple[int, ...], m: int, keep: list[bool], seed: int
) -> None:
    keep_in = torch.tensor(keep[: shape[1]])
    weight = torch.rand(shape, generator=generator(seed))
    sliced, pattern = Sliced(weight.shape, keep_in=keep_in, block=m), NOfM(1, m)
    part = sliced.part(weight)
    blocks = pattern.in_blocks(part)
    assert blocks.tolist() == oracle.blocks(weight.numpy(), keep_in.tolist(), m)
    assert torch.equal(pattern.from_blocks(blocks, part.shape), part)
    chosen = torch.rand(part.shape, generator=generator(seed + 1)) < 0.5
    mask = sliced.mask(chosen)
    assert torch.equal(sliced.part(mask), chosen)
    assert not mask[:, ~keep_in].any()
    behind = torch.nonzero(keep_in).flatten()[int(keep_in.sum()) // m * m :]
    assert mask[:, behind].all()


@settings(deadline=None)
@given(keep=st.lists(st.booleans(), min_size=8, max_size=8), fill=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_whether_a_pattern_holds_is_what_tensorrt_asks_for(keep: list[bool], fill: float, seed: int) -> None:
    keep_in = torch.tensor(keep)
    mask = (torch.rand((2, 8, 2, 1), generator=generator(seed)) < fill) & keep_in.view(1, -1, 1, 1)
    sliced = oracle.blocks(mask.numpy()[:, keep], [True] * sum(keep), 4)
    wanted = sum(keep) % 4 == 0 and all(np.count_nonzero(block) <= 2 for block in sliced)
    assert pattern_holds(mask, keep_in=keep_in, structure=Structure(name="2:4")) == wanted
    if not all(keep):
        mask[:, keep.index(False)] = True
        assert not pattern_holds(mask, keep_in=keep_in, structure=Structure(name="2:4"))


def check_counts(net: SmartNetwork, *, progress: float) -> None:
    """Every layer keeps exactly what the schedule says, and with a pattern N or more of each block."""
    pattern = net.structure.pattern.weights
    for path in net.path_names:
        inputs = net.kept_inputs(path)
        for name, mask in net.weight_masks(path).items():
            keep_in = inputs[name]
            assert pattern is not None
            blocks = oracle.blocks(mask.numpy(), keep_in.tolist(), pattern.block)
            size = len(blocks) * pattern.block
            kept = [sum(block) for block in blocks]
            wanted = gradual_count(
                size, target=net.structure.kept_weights((size // pattern.block, pattern.block)), progress=progress
            )
            assert sum(kept) == wanted, f"{path} {name}: {sum(kept)} of {size} weights instead of {wanted}"
            assert not mask[:, ~keep_in].any()
            if isinstance(pattern, NOfM):
                assert min(kept) >= pattern.n, f"{path} {name}: a block of {min(kept)}"
                if progress == 1:
                    assert int(mask.sum()) == sum(kept), f"{path} {name}: weights are kept behind the blocks"


def in_turn(names: str, structures: Sequence[str], others: Sequence[tuple[str, ...]]) -> pytest.MarkDecorator:
    """Each structure with everything; slow but for one of each, in turn: the whole is minutes of training."""
    cases = [
        pytest.param(structure, *other, marks=() if (first + second) % len(others) == 0 else pytest.mark.slow)
        for first, structure in enumerate(structures)
        for second, other in enumerate(others)
    ]
    return pytest.mark.parametrize(names, cases)


MODES = ("gradual", "regrow", "static")  # the others start or close as one of these, see test_mask_modes.py
PLANS = list(itertools.product(MODES, SCORES))


@in_turn("structure, mode, score", ["channel", *STRUCTURES], PLANS)
def test_counts_are_exact_at_each_of_twenty_updates_and_masks_then_never_move(
    structure: str, mode: str, score: str
) -> None:
    net = smart(width=8, structure=structure, align=4, scope="all")
    closing = mode == "gradual"
    epochs = 57 if closing else 22
    loop = Loop(net, MaskPlan(mode=mode, score=score), epochs=epochs, per_epoch=1)  # type: ignore[arg-type]
    last, begin = loop.learner.frozen_from, GRADUAL_BEGIN * loop.total
    targets = [net.structure.kept(group.size) for group in net.groups]
    updates, frozen = 0, None
    for number in range(1, loop.total + 1):
        loop.step(number)
        progress = (number - begin) / (last - begin) if closing and number < last else 1.0
        if not closing or begin < number <= last:
            updates += 1
            check_counts(net, progress=progress)
        expected = [
            gradual_count(g.size, target=t, progress=progress) for g, t in zip(net.groups, targets, strict=True)
        ]
        assert loop.counts() == dict.fromkeys(net.path_names, expected)
        if number >= max(last, 1):
            now = [mask for path in net.path_names for mask in (*net.masks(path), *net.weight_masks(path).values())]
            frozen = frozen or now
            assert all(torch.equal(a, b) for a, b in zip(frozen, now, strict=True)), "a frozen mask moved"
            assert loop.gates() == 0
    assert updates >= 20
    assert not any(m._forward_pre_hooks for m in net.modules()), "a frozen layer's inputs are still looked at"
    unused_are_zero(net)


@in_turn("structure, mode, score", ["channel+2:4", "unstructured"], PLANS)
def test_hidden_linear_layers_are_masked_like_convolutions(structure: str, mode: str, score: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 16),
        nn.ReLU(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )
    net = convert(network, example_input=IMAGES[:2], structure=structure, align=4)
    assert net.weight_layers == ("4", "6")
    loop = Loop(net, MaskPlan(mode=mode, score=score), epochs=6, per_epoch=4)  # type: ignore[arg-type]
    for number in range(1, loop.total + 1):
        loop.step(number)
    check_counts(net, progress=1.0)
    assert any(
        not torch.equal(net.weight_mask("clean", name), net.weight_mask("robust", name)) for name in net.weight_layers
    )


def unused_are_zero(net: SmartNetwork) -> None:
    for name in net.weight_layers:
        weight = net.path("clean").network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        neither = ~(net.weight_mask("clean", name) | net.weight_mask("robust", name))
        assert not weight[neither].any(), f"{int((weight[neither] != 0).sum())} unused weights of {name} are not zero"


@pytest.mark.parametrize("structure", STRUCTURES)
def test_densities_are_exact(structure: str) -> None:
    net = smart(width=8, structure=structure, align=4)
    loop = Loop(net, MaskPlan(mode="static"), epochs=2, per_epoch=1)
    loop.step(1)
    found, report = densities(net), {path: structure_report(net, path=path) for path in net.path_names}
    pattern = net.structure.pattern.weights
    if isinstance(pattern, NOfM) and not net.groups:
        assert found.kept == dict.fromkeys(net.path_names, pattern.n / pattern.m)
    for path in net.path_names:
        trained = dict(net.path(path).network.named_parameters())
        biases = sum(p.numel() for p in trained.values() if p.dim() == 1)
        dropped = sum(g.size - int(m.sum()) for g, m in zip(net.groups, net.masks(path), strict=True))
        used = sum(layer.kept for layer in report[path]) + biases - 2 * dropped  # of each, batch-norm scale and shift
        assert found.parameters[path] == used / sum(p.numel() for p in trained.values())
        for layer in report[path]:
            weight = trained[f"{layer.name}.weight"]
            rest = weight.numel() // (layer.in_channels[0] * layer.out_channels[0])
            assert layer.weights == layer.in_channels[1] * layer.out_channels[1] * rest
            if layer.name in net.weight_layers and isinstance(pattern, NOfM):
                assert layer.kept * pattern.m == layer.weights * pattern.n
            assert (layer.reason == "") == (layer.name in net.weight_layers)


@in_turn("structure, mode", STRUCTURES, [(mode,) for mode in MODES])
def test_the_two_paths_have_masks_of_their_own(structure: str, mode: str) -> None:
    net = smart(width=16, structure=structure, align=8)
    loop = Loop(net, MaskPlan(mode=mode), epochs=4, per_epoch=5)
    for number in range(1, loop.total + 1):
        loop.step(number)
    different = sum(
        int((a != b).sum())
        for a, b in zip(net.weight_masks("clean").values(), net.weight_masks("robust").values(), strict=True)
    )
    assert different > 0


@pytest.mark.parametrize("structure", ["2:4", "unstructured"])
def test_what_is_masked_is_out_of_the_path_and_stays_in_the_other(structure: str) -> None:
    net = smart(width=8, structure=structure).eval()
    layer = net.weight_layers[0]
    before = {path: net.path(path)(IMAGES) for path in net.path_names}
    keep = torch.zeros_like(net.weight_mask("robust", layer))
    net.set_weight_mask("robust", layer, keep)
    assert torch.equal(net.path("clean")(IMAGES), before["clean"])
    with torch.no_grad():
        net.path("robust").network.get_submodule(layer).weight.zero_()  # type: ignore[operator]
    expected = net.path("clean")(IMAGES)
    assert torch.equal(net.path("robust")(IMAGES), expected)


def test_a_weight_gate_learns_where_the_mask_is_zero() -> None:
    net = smart(width=8, structure="2:4").train()
    loop = Loop(net, MaskPlan(mode="regrow"), epochs=8, per_epoch=3)
    loop.step(1)
    for path in net.path_names:
        for name, mask in net.weight_masks(path).items():
            dead = int((loop.wanted.of_weights(path, name)[~mask] == 0).sum())
            assert dead == 0, f"{path} {name}: {dead} weights can never come back"


def test_a_gate_has_the_gradient_of_the_mask() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 3))
    net = convert(network, example_input=torch.zeros(1, 4, 8, 8), structure="2:4")
    layer = net.path("clean").network.get_submodule("1")
    assert isinstance(layer, Expert)
    assert isinstance(layer.weight, Tensor)
    layer.watch_weight_gate(True)
    images = torch.rand(3, 4, 8, 8, generator=generator(0))
    net([Pass("clean", images)])[0].scores.square().sum().backward()
    assert layer.weight_gate is not None
    assert layer.weight_gate.grad is not None
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight_gate.grad, layer.weight.grad * layer.weight)  # dL/dm = w dL/dw at m = 1


def test_magnitude_is_the_weight_times_the_size_of_its_input() -> None:
    """Two filters of equal weights: what a path keeps is where its input is large."""

    def network(module: Functional, images: Tensor) -> Tensor:
        scaled = images.repeat(1, 4, 1, 1) * torch.tensor([1.0, 4.0, 2.0, 3.0]).view(1, -1, 1, 1)
        return module.call("fc", module.call("b", scaled + 0 * module.call("a", images)).mean(dim=(2, 3)))

    plain = Functional(network, a=nn.Conv2d(1, 4, 1), b=nn.Conv2d(4, 4, 1), fc=nn.Linear(4, 3))
    net = convert(plain, example_input=IMAGES[:2], structure="2:4")
    with torch.no_grad():
        plain.get_submodule("b").weight.fill_(1.0)  # type: ignore[operator]  # shared by the paths
    loop = Loop(net, MaskPlan(), epochs=2, per_epoch=1)
    loop.optimizer.param_groups[0]["lr"] = 0.0
    loop.step(1)
    for path in net.path_names:
        assert net.weight_mask(path, "b").flatten(1).tolist() == [[False, True, False, True]] * 4


def reasons(network: nn.Module, structure: str, **options: int) -> dict[str, str]:
    return convert(network, example_input=torch.zeros(1, 3, 8, 8), structure=structure, **options).dense_layers  # type: ignore[arg-type]


class Many(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Conv2d(8, 8, 1, groups=2),
            nn.Conv2d(8, 6, 1),
            nn.Conv2d(6, 16, 1),
            nn.Conv2d(16, 16, 1),
            nn.Flatten(),
            nn.Linear(16 * 16, 32),
            nn.Linear(32, 5),
        )


def test_layers_that_stay_dense_say_why() -> None:
    common = {
        "0": "it reads the image",
        "1": "depthwise: one input channel a filter",
        "2": "a convolution in 2 groups",
        "8": "it makes the scores",
    }
    assert reasons(Many(), "unstructured") == common
    odd = {"4": "its 6 input channels are no multiple of 4"}
    assert reasons(Many(), "2:4") == common | odd
    few = "input and {} output channels, where fewer than 16 gain nothing"
    assert reasons(Many(), "2:4", min_channels=16) == common | odd | {"3": "8 " + few.format(6)}


class TwoStems(nn.Module):
    """Two layers read the image, one of them through a pooling; a third reads both of them."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.both = nn.Conv2d(16, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images)
        coarse = nn.functional.interpolate(self.coarse(nn.functional.avg_pool2d(images, 2)), scale_factor=2)
        x = self.both(torch.relu(self.norm(torch.cat([fine, coarse], dim=1))))
        scores: Tensor = self.fc(torch.relu(x).mean(dim=(2, 3)))
        return scores


def test_every_layer_that_reads_the_image_stays_dense() -> None:
    first = "it reads the image"
    assert reasons(TwoStems(), "unstructured") == {"fine": first, "coarse": first, "fc": "it makes the scores"}


def test_the_input_channels_that_count_are_those_that_slicing_leaves() -> None:
    net = smart(width=6, structure="channel+2:4", density=0.5, align=4)
    assert net.dense_layers["blocks.0.conv1"] == "its 6 input channels are no multiple of 4"
    assert "blocks.0.conv2" in net.weight_layers, "of its 6 input channels 4 are kept"
    assert "blocks.1.conv2" in net.weight_layers, "of its 12 input channels 8 are kept"


def test_a_network_with_nothing_to_mask_is_refused_with_the_reasons() -> None:
    with pytest.raises(NetworkError, match=r"^2:4 can mask the weights of no layer of Sequential \(0: it reads .*"):
        reasons(nn.Sequential(nn.Conv2d(3, 8, 8), nn.Flatten(), nn.Linear(8, 5)), "2:4")


def test_replacing_moves_as_many_weights_as_the_rate_says() -> None:
    net = smart(width=8, structure="2:4")
    loop = Loop(net, MaskPlan(mode="regrow"), epochs=8, per_epoch=3)
    moved = []
    for number in range(1, loop.total + 1):
        before = {path: net.weight_masks(path) for path in net.path_names}
        loop.step(number)
        rate = 0.5 * (1 - number / loop.learner.frozen_from)
        changed = 0
        for path in net.path_names:
            for name, mask in net.weight_masks(path).items():
                here = int((mask != before[path][name]).sum()) // 2
                changed += here
                if number % 3 == 0 and number < loop.learner.frozen_from:
                    assert here == min(int(rate * mask.numel() / 2), mask.numel() // 4), name
        assert changed == 0 or number % 3 == 0, "masks moved inside an epoch"
        moved.append(changed)
    assert any(moved)
    assert not any(moved[loop.learner.frozen_from - 1 :])


def test_weights_are_chosen_at_most_a_hundred_times(monkeypatch: pytest.MonkeyPatch) -> None:
    net = smart(width=8, structure="2:4")
    loop = Loop(net, MaskPlan(), epochs=1000, per_epoch=1)
    calls: list[float] = []
    monkeypatch.setattr(
        "smart_train.masking.moving_weights.WeightMasks.shrink",
        lambda _, path, place, progress, **__: calls.append(progress) if (path, place) == ("clean", 0) else None,
    )
    for number in range(1, loop.total + 1):
        loop.learner.after_step(number, optimizer=loop.optimizer)
    assert 50 < len(calls) <= 100
    assert calls == sorted(calls)
    assert calls[-1] == 1.0
    assert math.isclose(calls[1] - calls[0], calls[-1] - calls[-2])
