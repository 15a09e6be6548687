from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reference import masks as oracle
from smart_train import ConfigError, SmartNetwork
from smart_train.choices import MASK_MODES, SCORES
from smart_train.masking.accounting import used_parameters
from smart_train.masking.layers import Expert, batch_norm_parameters
from smart_train.masking.moving_channels import magnitude
from smart_train.masking.passes import Pass
from smart_train.masking.plan import GRADUAL_BEGIN, MaskPlan, gradual_count, strongest
from train.loop import IMAGES, LABELS, Loop
from train.networks import smart

SCORE = st.floats(0, 1, width=32)
LEARNT = ("gradual", "regrow", "static")
SHORT = ("magnitude", 1, 7)
CLOSING = ("gradual", "shared")  # the modes that start dense


@given(size=st.integers(1, 300), data=st.data(), steps=st.integers(1, 50))
def test_the_schedule_is_the_cubic_one_and_ends_at_the_target(size: int, data: st.DataObject, steps: int) -> None:
    target = data.draw(st.integers(1, size))
    counts = [gradual_count(size, target=target, progress=step / steps) for step in range(steps + 1)]
    assert counts == [oracle.cubic(size, target=target, step=step, steps=steps) for step in range(steps + 1)]
    assert (counts[0], counts[-1]) == (size, target)
    assert gradual_count(size, target=target, progress=-0.5) == size


@given(rows=st.lists(st.tuples(SCORE, st.booleans()), min_size=1, max_size=40), data=st.data())
def test_the_strongest_are_chosen_and_of_equals_the_first(rows: list[tuple[float, bool]], data: st.DataObject) -> None:
    scores, among = [s for s, _ in rows], [a for _, a in rows]
    count = data.draw(st.integers(0, sum(among)))
    got = strongest(torch.tensor(scores), among=torch.tensor(among), count=count)
    assert got.tolist() == oracle.strongest(scores, among, count)


def test_magnitude_is_filter_norm_times_batch_norm_scale() -> None:
    net = smart(scope="all")
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -1, 1, generator=torch.Generator().manual_seed(parameter.numel()))
    network = net.path("robust").network
    arrays = {name: p.detach().double().numpy() for name, p in network.named_parameters()}

    def strength(layer: str, norm: str) -> np.ndarray:
        norms = np.sqrt((arrays[f"{layer}.weight"] ** 2).sum(axis=(1, 2, 3)))
        result: np.ndarray = norms * np.abs(arrays[f"{norm}.weight"])
        return result

    names = [group.name for group in net.groups]
    inner = magnitude(net, "robust", names.index("blocks.1.conv1"))
    np.testing.assert_allclose(inner.numpy(), strength("blocks.1.conv1", "blocks.1.bn1"), rtol=1e-5)
    stream = magnitude(net, "robust", names.index("conv"))
    np.testing.assert_allclose(
        stream.numpy(), strength("conv", "bn") + strength("blocks.0.conv2", "blocks.0.bn2"), rtol=1e-5
    )


def all_masks(net: SmartNetwork) -> list[Tensor]:
    return [mask for path in net.path_names for mask in net.masks(path)]


def unused_weights(net: SmartNetwork) -> dict[str, Tensor]:
    """The shared weights that no path uses, by brute force over both paths."""
    first, own = net.path("clean").network, batch_norm_parameters(net.path("clean").network)
    used = [used_parameters(net, path=path) for path in net.path_names]
    return {
        n: p[~(used[0][n] | used[1][n]).expand(p.shape)].detach() for n, p in first.named_parameters() if n not in own
    }


@pytest.mark.parametrize(
    ("mode", "score", "epochs", "per_epoch"),
    [  # the slow ones start or close as one of the others
        pytest.param(
            mode, score, *length, marks=() if mode in LEARNT or (score, *length) == SHORT else pytest.mark.slow
        )
        for mode in MASK_MODES
        for score in SCORES
        for length in [(4, 5), (1, 1), (1, 2), (1, 7), (2, 1), (3, 1)]
    ],
)
def test_counts_reach_their_target_and_masks_then_never_move(
    mode: str, score: str, epochs: int, per_epoch: int
) -> None:
    net = smart(width=8, density=0.3, scope="all")
    loop = Loop(net, MaskPlan(mode=mode, score=score), epochs=epochs, per_epoch=per_epoch)  # type: ignore[arg-type]
    targets = [net.structure.kept(group.size) for group in net.groups]
    assert targets == [3, 3, 5, 5]
    assert loop.learner.frozen_from <= loop.total, "no epoch would be eligible"
    frozen: list[Tensor] = []
    for number in range(1, loop.total + 1):
        before = loop.counts()
        loop.step(number)
        after = loop.counts()
        if mode in CLOSING:
            assert all(a <= b for p in after for a, b in zip(after[p], before[p], strict=True)), "a channel came back"
            if number < GRADUAL_BEGIN * loop.total:
                assert after == {path: [g.size for g in net.groups] for path in net.path_names}
        else:
            assert after == dict.fromkeys(net.path_names, targets)
        if number >= max(loop.learner.frozen_from, 1):
            assert after == dict.fromkeys(net.path_names, targets)
            assert loop.gates() == 0
            frozen = frozen or all_masks(net)
            assert all(torch.equal(a, b) for a, b in zip(frozen, all_masks(net), strict=True)), "a frozen mask moved"
            for name, values in unused_weights(net).items():
                assert not values.any(), f"{int((values != 0).sum())}/{values.numel()} unused in {name} are not zero"
    assert frozen


@pytest.mark.parametrize("mode", [mode for mode in MASK_MODES if mode != "shared"])
def test_the_two_paths_have_masks_of_their_own(mode: str) -> None:
    net = smart(width=16, density=0.3)
    loop = Loop(net, MaskPlan(mode=mode, score="gradient"), epochs=4, per_epoch=5)
    for number in range(1, loop.total + 1):
        loop.step(number)
    assert any(not torch.equal(a, b) for a, b in zip(net.masks("clean"), net.masks("robust"), strict=True))


@pytest.mark.parametrize("score", SCORES)
def test_a_mask_moves_by_its_own_path_alone(score: str) -> None:
    """The other path's batch norms and gate gradients are another's business."""

    def masks(disturb: bool) -> list[Tensor]:
        net = smart(width=16, density=0.3)
        loop = Loop(net, MaskPlan(score=score), epochs=1, per_epoch=10)  # type: ignore[arg-type]
        for number in range(1, 11):
            (clean,) = net([Pass("clean", IMAGES)])
            loss = nn.functional.cross_entropy(clean.scores, LABELS)
            if disturb:
                robust = net.path("robust")
                noise = torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(number))
                own = [p for n, p in robust.named_parameters() if n.removeprefix("network.") in
                       batch_norm_parameters(robust.network)]  # fmt: skip
                gates = [m.gate for m in robust.modules() if isinstance(m, Expert) and m.gate is not None]
                grads = torch.autograd.grad(nn.functional.cross_entropy(robust(noise), LABELS), own + gates)
                for tensor, grad in zip(own + gates, grads, strict=True):
                    tensor.grad = grad
            loss.backward()  # type: ignore[no-untyped-call]
            loop.learner.after_backward()
            loop.optimizer.step()
            loop.optimizer.zero_grad()
            loop.learner.after_step(number, optimizer=loop.optimizer)
        return net.masks("clean")

    for quiet, disturbed in zip(masks(False), masks(True), strict=True):
        assert torch.equal(quiet, disturbed), f"{int((quiet != disturbed).sum())}/{len(quiet)} mask bits differ"


def test_regrowth_is_alive_where_the_mask_is_zero_and_replaces_channels() -> None:
    net = smart(width=16, density=0.25)
    loop = Loop(net, MaskPlan(mode="regrow"), epochs=8, per_epoch=3)
    start = all_masks(net)
    loop.step(1)
    for path in net.path_names:
        for i, mask in enumerate(net.masks(path)):
            wanted = loop.wanted.of_channels(path, i)
            assert (wanted[~mask] != 0).all(), f"{path}: {int((wanted[~mask] == 0).sum())} channels can never come back"
    moved = []
    for number in range(2, loop.total + 1):
        before = all_masks(net)
        loop.step(number)
        changed = sum(int((a != b).sum()) for a, b in zip(before, all_masks(net), strict=True))
        assert changed == 0 or number % 3 == 0, "masks moved inside an epoch"
        moved.append(changed)
    assert any(moved)
    assert any(not torch.equal(a, b) for a, b in zip(start, all_masks(net), strict=True))
    assert not any(moved[loop.learner.frozen_from - 1 :])


def test_an_overflowing_step_leaves_the_running_means_finite() -> None:
    net = smart(width=8)
    loop = Loop(net, MaskPlan(mode="regrow", score="gradient"), epochs=4, per_epoch=2)
    experts = [module for module in net.modules() if isinstance(module, Expert)]
    for module in experts:
        if module.gate is not None:
            module.gate.grad = torch.full_like(module.gate, torch.inf)
        if module.effective:
            assert isinstance(module.weight, Tensor)
            module.effective_gradient = torch.full_like(module.weight, torch.inf)
    assert any(module.effective for module in experts)
    loop.learner.after_backward()
    state = loop.learner.state()
    assert all(bool(t.isfinite().all()) for p in state["channels"].values() for t in p)
    assert all(bool(t.isfinite().all()) for p in state["wanted"].values() for t in p.values())


@pytest.mark.parametrize("options", [{"mode": "random"}, {"score": "luck"}], ids=str)
def test_an_unknown_plan_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="out of"):
        MaskPlan(**options)  # type: ignore[arg-type]
