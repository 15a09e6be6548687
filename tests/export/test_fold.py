"""A folded path is the masked path: against torch, and against the formulas in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reference import resnet
from smart_export.folding import ChannelAffine, fold, fold_dense, padded, unmasked
from smart_train import Checkpoint, SmartNetwork, convert
from smart_train.architectures.build import build_network

TOLERANCE = 1e-5  # float32 sums in another order


def randomise_(net: SmartNetwork, *, seed: int) -> None:
    """Give every path statistics and masks that no fold gets right by luck."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                if module.affine:
                    uniform(module.weight, 0.5, 1.5)
                    uniform(module.bias, -1, 1)
                uniform(module.running_mean, -1, 1)
                uniform(module.running_var, 0.3, 2)
    for path in net.path_names:
        for i, group in enumerate(net.groups):
            keep = torch.zeros(group.size, dtype=torch.bool)
            kept = net.structure.kept(group.size, bundle=group.bundle)
            keep[torch.randperm(group.size, generator=generator)[:kept]] = True
            net.set_mask(path, i, keep)
    net.eval()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max().clamp(min=1))


class Preactivated(nn.Module):
    """Batch norms before convolutions, biases, a convolution without batch norm, a flatten before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.plain = nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4 * 3 * 3, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x + self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))
        scores: Tensor = self.fc(torch.relu(self.plain(x)).flatten(1))
        return scores


@settings(deadline=None, max_examples=12, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    width=st.integers(2, 9),
    density=st.floats(0.05, 1),
    align=st.integers(1, 5),
    scope=st.sampled_from(["block", "all"]),
    channels=st.integers(1, 4),
)
def test_masked_and_folded_agree_on_any_masks(
    *, seed: int, width: int, density: float, align: int, scope: str, channels: int
) -> None:
    plain = build_network(
        "resnet8", num_classes=4, in_channels=channels, arguments={"width": width}, generator_seed=seed
    )
    net = convert(
        plain,
        example_input=torch.zeros(2, channels, 8, 8),
        density=density,
        align=align,
        scope=scope,  # type: ignore[arg-type]  # hypothesis chose it
        mean=[0.3] * channels,
        std=[0.4] * channels,
    )
    randomise_(net, seed=seed)
    images = torch.rand(5, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for path in net.path_names:
            expected = net.path(path)(images)
            assert relative(expected, fold(net, path=path)(images)) <= TOLERANCE
            keeps = [padded(mask, align=4) for mask in net.masks(path)]
            assert relative(expected, fold(net, path=path, keeps=keeps)(images)) <= TOLERANCE


@pytest.mark.parametrize("scope", ["block", "all"])
def test_a_network_that_was_not_written_for_it_folds_too(scope: str) -> None:
    torch.manual_seed(0)
    net = convert(Preactivated(), example_input=torch.zeros(2, 2, 6, 6), align=1, scope=scope)  # type: ignore[arg-type]
    randomise_(net, seed=3)
    images = torch.rand(7, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for path in net.path_names:
            folded = fold(net, path=path)
            assert relative(net.path(path)(images), folded(images)) <= TOLERANCE
            assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
            assert (
                sum(isinstance(m, ChannelAffine) for m in folded.modules()) == 1
            )  # norm1 has no convolution of its own


class Unusual(nn.Module):
    """Batch norms with and without scale and shift, behind convolutions, before one, and behind linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6, affine=False)
        self.norm2 = nn.BatchNorm2d(6, affine=False)
        self.conv = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8, 12)
        self.norm4 = nn.BatchNorm1d(12)
        self.second = nn.Linear(12, 10, bias=False)
        self.norm5 = nn.BatchNorm1d(10, affine=False)
        self.fc = nn.Linear(10, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm2(torch.relu(self.norm1(self.stem(images))))
        x = torch.relu(self.norm3(self.conv(x))).mean(dim=(2, 3))
        x = torch.relu(self.norm4(self.hidden(x)))
        scores: Tensor = self.fc(torch.relu(self.norm5(self.second(x))))
        return scores


@pytest.mark.parametrize("scope", ["block", "all"])
def test_batch_norms_without_scale_and_behind_linear_layers_are_folded(scope: str) -> None:
    torch.manual_seed(0)
    net = convert(Unusual(), example_input=torch.zeros(2, 2, 6, 6), align=1, scope=scope)  # type: ignore[arg-type]
    randomise_(net, seed=4)
    images = torch.rand(7, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for path in net.path_names:
            folded = fold(net, path=path)
            assert relative(net.path(path)(images), folded(images)) <= TOLERANCE
            assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
            assert sum(isinstance(m, ChannelAffine) for m in folded.modules()) == 1  # norm2 reads a ReLU


class Reused(nn.Module):
    """One convolution that serves two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.norm2 = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 6, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.shared(torch.relu(self.stem(images)))))
        x = torch.relu(self.norm2(self.shared(x)))
        scores: Tensor = self.fc(torch.relu(self.norm3(self.last(x))).mean(dim=(2, 3)))
        return scores


def test_a_convolution_that_is_used_twice_takes_in_neither_batch_norm() -> None:
    torch.manual_seed(0)
    net = convert(Reused(), example_input=torch.zeros(2, 1, 6, 6), align=1)
    randomise_(net, seed=5)
    images = torch.rand(7, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for path in net.path_names:
            assert relative(net.path(path)(images), fold(net, path=path)(images)) <= TOLERANCE


def test_the_masked_path_is_what_the_formulas_say(checkpoint: Checkpoint) -> None:
    net = checkpoint.net
    images = checkpoint.samples.images[:16].permute(0, 3, 1, 2).numpy() / 255.0
    for path in net.path_names:
        masks = {group.points[0].layer: net.mask(path, i).numpy() for i, group in enumerate(net.groups)}
        tensors = {name: t.numpy() for name, t in net.path(path).network.state_dict().items()}
        expected = resnet.forward(tensors, images, mean=checkpoint.mean, std=checkpoint.std, masks=masks)
        with torch.no_grad():
            masked = net.path(path)(torch.from_numpy(images.astype(np.float32))).numpy()
            folded = fold(net, path=path)(torch.from_numpy(images.astype(np.float32))).numpy()
        scale = max(1.0, float(np.abs(expected).max()))
        assert np.abs(expected - masked).max() / scale <= TOLERANCE
        assert np.abs(expected - folded).max() / scale <= TOLERANCE


def test_folding_really_removes_the_channels(checkpoint: Checkpoint) -> None:
    net = checkpoint.net
    folded = fold(net, path="robust")
    for i, group in enumerate(net.groups):
        kept = int(net.mask("robust", i).sum())
        assert kept == group.size // 2
        convolution = folded.get_submodule(f"network.{group.name}")
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.out_channels == convolution.weight.shape[0] == kept


def test_a_checkpoint_or_its_file_folds_like_its_network(checkpoint: Checkpoint, checkpoint_file: Path) -> None:
    images = torch.rand(2, *checkpoint.input_shape, generator=torch.Generator().manual_seed(0))
    wanted = fold(checkpoint.net, path="robust")(images)
    for model in (checkpoint, checkpoint_file, str(checkpoint_file)):
        assert torch.equal(fold(model, path="robust")(images), wanted)


def test_folding_leaves_the_network_as_it_was(checkpoint: Checkpoint) -> None:
    before = {name: t.clone() for name, t in checkpoint.net.state_dict().items()}
    fold(checkpoint.net, path="clean")
    fold_dense(unmasked(checkpoint.net, path="clean"))
    after = checkpoint.net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(not bool(m.all()) for m in checkpoint.net.masks("clean"))


def test_the_dense_baseline_is_the_unmasked_path(checkpoint: Checkpoint) -> None:
    dense = unmasked(checkpoint.net, path="clean")
    images = torch.rand(4, *checkpoint.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative(dense(images), fold_dense(dense)(images)) <= TOLERANCE
        assert relative(dense(images), checkpoint.net.path("clean")(images)) > 1e-3  # the masks did matter


@given(mask=st.lists(st.booleans(), min_size=1, max_size=40).filter(any), align=st.integers(1, 50))
def test_padding_keeps_the_mask_and_reaches_the_next_multiple(mask: list[bool], align: int) -> None:
    keep = padded(torch.tensor(mask), align=align).numpy()
    kept = sum(mask)
    assert keep[np.array(mask)].all()
    assert keep.sum() == min(-(-kept // align) * align, len(mask))
