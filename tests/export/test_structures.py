"""Masks of single weights in folded graphs: exact zeros, in the pattern of the sliced weights, in ONNX files too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from export.rtx import assert_builds
from reference import masks as oracle
from smart_devices import resolve_target
from smart_export import build_bundle
from smart_export.folding import fold, fold_dense, padded, padded_masks, unmasked
from smart_export.graph import Converter
from smart_runtime import SmartModel
from smart_train import SmartNetwork, convert, load_checkpoint
from smart_train.accuracy import to_tensor
from smart_train.architectures.build import build_network
from smart_train.cli import main as smart_train
from smart_train.masking.learner import MaskLearner
from smart_train.masking.n_of_m import NOfM
from smart_train.masking.plan import MaskPlan
from train.networks import randomise_, smart

TOLERANCE = 1e-5  # float32 sums in another order
STRUCTURES = ["2:4", "1:4", "channel+2:4", "channel+1:2", "unstructured"]
PATHS = ["clean", "robust"]


def random_net(structure: str, *, width: int = 16, align: int = 4, scope: str = "all", seed: int = 0) -> SmartNetwork:
    """A network with random masks of its structure, and batch norms that no fold gets right by luck."""
    plain = build_network("resnet8", num_classes=4, in_channels=1, arguments={"width": width}, generator_seed=seed)
    example = torch.zeros(2, 1, 8, 8)
    net = convert(plain, example_input=example, structure=structure, align=align, scope=scope)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    MaskLearner(net, plan=MaskPlan(mode="static"), total_steps=1, steps_per_epoch=1, generator=generator)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low in ((module.weight, -1.0), (module.bias, -1.0), (module.running_mean, -1.0)):
                    assert tensor is not None
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * 2 + low)
                assert module.running_var is not None
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return net.eval()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max().clamp(min=1))


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def sliced_masks(net: SmartNetwork, path: str) -> dict[str, Tensor]:
    """Each layer's weight mask in the order of the sliced weight: slicing done by hand, on the masks' own channels."""
    found = {}
    kept = {group.name: keep for group, keep in zip(net.groups, net.masks(path), strict=True)}
    outputs = {
        member.module: kept[group.name] for group in net.groups for member in group.members if member.axis == "out"
    }
    for name, mask in net.weight_masks(path).items():
        keep_in, keep_out = net.kept_inputs(path)[name], outputs.get(name)
        found[name] = (mask if keep_out is None else mask[keep_out])[:, keep_in]
    return found


def check_pattern(net: SmartNetwork, weights: dict[str, np.ndarray], *, exact: bool) -> None:
    pattern = net.structure.pattern.weights
    assert isinstance(pattern, NOfM)
    for name, weight in weights.items():
        assert weight.shape[1] % pattern.m == 0, name
        counts = [np.count_nonzero(b) for b in oracle.blocks(weight, [True] * weight.shape[1], pattern.m)]
        assert max(counts) <= pattern.n, f"{name}: {max(counts)} of {pattern.m}"
        if exact:
            assert set(counts) == {pattern.n}, f"{name}: {sorted(set(counts))} of {pattern.m}"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_folding_is_exact_and_leaves_exactly_the_masks_zeros(structure: str, path: str) -> None:
    net = random_net(structure)
    folded = fold(net, path=path)
    weights = {name: folded.get_submodule(f"network.{name}").weight for name in net.weight_layers}
    with torch.no_grad():
        assert relative(net.path(path)(images()), folded(images())) <= TOLERANCE
    for name, mask in sliced_masks(net, path).items():
        weight = weights[name]
        assert isinstance(weight, Tensor)
        different = int(((weight != 0) != mask).sum())
        assert different == 0, f"{different}/{mask.numel()} zeros of {name} are not those of the mask"
    if isinstance(net.structure.pattern.weights, NOfM):
        check_pattern(net, {n: w.detach().numpy() for n, w in weights.items() if isinstance(w, Tensor)}, exact=True)


@pytest.mark.slow
@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    structure=st.sampled_from(["channel+2:4", "channel+1:2", "channel+2:3", "2:4"]),
    align=st.sampled_from([4, 8, 16, 32]),
    scope=st.sampled_from(["block", "all"]),
)
def test_padding_tears_no_block(seed: int, structure: str, align: int, scope: str) -> None:
    net = random_net(structure, width=20, align=12 if structure == "channel+2:3" else 4, scope=scope, seed=seed)
    for path in PATHS:
        keeps = padded_masks(net, path=path, align=align)
        assert all(bool(keep[mask].all()) for keep, mask in zip(keeps, net.masks(path), strict=True))
        folded = fold(net, path=path, keeps=keeps)
        with torch.no_grad():
            assert relative(net.path(path)(images()), folded(images())) <= TOLERANCE
        modules = {name: folded.get_submodule(f"network.{name}").weight for name in net.weight_layers}
        check_pattern(net, {n: w.detach().numpy() for n, w in modules.items() if isinstance(w, Tensor)}, exact=False)


def test_whole_blocks_are_padded_where_they_can() -> None:
    mask = torch.tensor([c in "kK" for c in "kk..kk....kkkk.."])
    assert padded(mask, align=16, block=4).tolist() == mask.tolist(), "4 of 8 dropped channels can be added"
    got = padded(mask, align=12, block=4)
    assert "".join("k" if keep else "." for keep in got) == "kk..kkkkkkkkkk.."
    assert int(padded(mask, align=12).sum()) == 12
    net = random_net("channel+2:4", width=20)
    added = [
        int(keep.sum()) - int(mask.sum())
        for keep, mask in zip(padded_masks(net, path="clean", align=8), net.masks("clean"), strict=True)
    ]
    assert any(added)


# Slow where another one has its pattern, or its sliced channels, in a graph.
@pytest.mark.parametrize(
    "structure",
    [s if s in {"channel+2:4", "unstructured"} else pytest.param(s, marks=pytest.mark.slow) for s in STRUCTURES],
)
def test_zeros_are_exact_in_onnx_too(structure: str) -> None:
    net = random_net(structure)
    converter = Converter(input_shape=(1, 8, 8), opset=20)  # the second path takes over the first one's graph
    for path in PATHS:
        model = converter(fold(net, path=path))
        tensors = {n: v.const_value.numpy() for n, v in model.graph.initializers.items() if v.const_value is not None}
        for name, mask in sliced_masks(net, path).items():
            weight = tensors[f"network.{name}.weight"]
            assert np.array_equal(weight != 0, mask.numpy()), f"{path} {name}"


def test_a_graph_in_which_equal_tensors_became_one_is_not_taken_over() -> None:
    net = smart().eval()  # all batch norms of path clean are new, so that the biases they fold into are equal
    randomise_(net.path("robust").network, seed=1)
    converter = Converter(input_shape=(1, 8, 8), opset=20)
    for path in PATHS:
        folded = fold(net, path=path)
        model = converter(folded)
    tensors = {n: v.const_value.numpy() for n, v in model.graph.initializers.items() if v.const_value is not None}
    biases = {name: p.detach().numpy() for name, p in folded.named_parameters() if name.endswith("bias")}
    assert len(biases) > 5
    for name, bias in biases.items():
        assert np.array_equal(tensors[name], bias), name


@pytest.mark.parametrize("structure", ["2:4", "unstructured"])
def test_the_dense_baseline_has_no_masks(structure: str) -> None:
    net = random_net(structure)
    dense = unmasked(net, path="clean")
    with torch.no_grad():
        assert relative(dense(images()), fold_dense(dense)(images())) <= TOLERANCE
        assert relative(dense(images()), net.path("clean")(images())) > 1e-3
    weight = fold_dense(dense).get_submodule(f"network.{net.weight_layers[0]}").weight
    assert isinstance(weight, Tensor)
    assert bool((weight != 0).all())


# Slow: the pattern alone, which is also a part of channel+2:4.
@pytest.fixture(scope="module", params=[pytest.param("2:4", marks=pytest.mark.slow), "channel+2:4", "unstructured"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and a bundle of a network that `smart-train --structure` trained on digits."""
    folder = tmp_path_factory.mktemp("structures")
    small = ["--epochs", "2", "--model-arg", "width=8", "--align", "4", "--eps", "0.1", "--steps", "1"]
    arguments = [*small, "--structure", request.param, "-o", str(folder / "ckpt.pt"), "--json"]
    done = CliRunner().invoke(smart_train, arguments)
    assert done.exit_code == 0, done.stderr
    assert f"note: {request.param} masks weights of 8 layers; not of conv: it reads the image; fc: " in done.stderr
    assert json.loads(done.stdout)["paths"]["clean"]["density"] == 0.5
    build_bundle(
        load_checkpoint(folder / "ckpt.pt"), output=folder / "bundle", target=resolve_target("jetson-orin")
    )  # every graph is verified in ONNX Runtime against its masked path
    return folder / "ckpt.pt", folder / "bundle"


@pytest.mark.parametrize("path", PATHS)
def test_what_smart_train_gives_is_sparse_in_the_bundle(trained: tuple[Path, Path], path: str) -> None:
    checkpoint, bundle = load_checkpoint(trained[0]), trained[1]
    model = onnx.load(str(bundle / path / "model.onnx"))
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = {name: tensors[f"network.{name}.weight"] for name in checkpoint.net.weight_layers}
    if isinstance(checkpoint.net.structure.pattern.weights, NOfM):
        check_pattern(checkpoint.net, weights, exact=False)
    total = sum(w.size for w in weights.values())
    assert 0.45 <= sum(np.count_nonzero(w) for w in weights.values()) / total <= 0.5
    with SmartModel.load(bundle, path=path) as served, torch.no_grad():
        expected = checkpoint.net.path(path)(to_tensor(checkpoint.samples.images))
        assert relative(expected, torch.from_numpy(served(checkpoint.samples.images.numpy()))) <= 1e-4


@pytest.mark.trt
@pytest.mark.parametrize("path", PATHS)
def test_tensorrt_rtx_builds_it_with_sparse_weights(trained: tuple[Path, Path], path: str) -> None:
    assert_builds(trained[1] / path / "model.onnx", shape=(1, 8, 8), sparse_weights=True)
