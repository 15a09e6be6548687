"""Networks adapted to nothing of ours, masked, folded and in ONNX Runtime: one function, on every path."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from export.rtx import assert_builds
from export.test_fold import randomise_, relative
from export.test_networks import SHAPE, calm_
from networks import ACCEPTED, KEPT_WHOLE, NETWORKS, PLAIN
from smart_export.cli import main as smart_export
from smart_export.errors import ExportError
from smart_export.folding import fold, fold_dense, padded_masks, to_half_, unmasked
from smart_export.graph import Converter, onnx_from_module
from smart_export.layers import network_cost
from smart_export.precision import FP16, FP32, INT8, TOLERANCE_FP32
from smart_export.quantise import quantised
from smart_export.verify import agreement
from smart_train import Attack, SmartNetwork, Structure, convert
from smart_train.choices import CUSTOM, Scope
from smart_train.data.load import load_data
from smart_train.masking.accounting import structure_report, used_parameters
from smart_train.masking.finding import find_groups
from smart_train.masking.slicing import slice_network
from smart_train.training.config import TrainConfig
from smart_train.training.loop import Trainer

IMAGES = torch.rand(256, *SHAPE, generator=torch.Generator().manual_seed(0))
# What is masked, and where: a scope is for channels only.
CASES: list[tuple[str, Scope]] = [
    ("channel", "block"), ("channel", "all"), ("channel+2:4", "block"), ("channel+2:4", "all"), ("2:4", "block"),
    ("unstructured", "block"),
]  # fmt: skip
CARDS = ["8.6", "8.9", "12.0"]  # compute capabilities


@torch.no_grad()
def stir_(net: SmartNetwork, *, seed: int) -> None:
    """Give every path masks, statistics, scales and shifts that no fold gets right by luck."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            for parameter in module.parameters(recurse=False):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    randomise_(net, seed=seed)
    for path in net.path_names:
        for layer, mask in net.weight_masks(path).items():
            net.set_weight_mask(path, layer, torch.rand(mask.shape, generator=generator) < 0.6)
    calm_(net)


@functools.cache
def smart(name: str, structure: str, scope: Scope) -> SmartNetwork:
    torch.manual_seed(0)
    plain = NETWORKS[name](num_classes=5, in_channels=3)
    density = None if structure == "2:4" else 0.4
    net = convert(
        plain, example_input=IMAGES[:2], structure=structure, density=density, scope=scope,
        align=4 if "+" in structure else 1, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3],
    )  # fmt: skip
    stir_(net, seed=1)
    return net


@functools.cache
def graphs(name: str, structure: str, scope: Scope, precision: str) -> Mapping[str, bytes]:
    """Return each path's ONNX graph, weights and all; int8 as for a graphics card, calibrated on noise."""
    if precision == INT8:
        return {
            path: ir.to_proto(
                quantised(ir.from_proto(onnx.load_from_string(graph)), IMAGES[:8].numpy(), recipe="tensorrt")
            ).SerializeToString()
            for path, graph in graphs(name, structure, scope, FP32).items()
        }
    net = smart(name, structure, scope)
    converter = Converter(input_shape=SHAPE, opset=20)
    made = {}
    for path in net.path_names:
        folded = fold(net, path=path)
        if precision == FP16:
            to_half_(folded)
        made[path] = ir.to_proto(converter(folded)).SerializeToString()
    return made


@pytest.mark.parametrize("scope", ["block", "all"])
@pytest.mark.parametrize("name", NETWORKS)
def test_so_many_groups_may_be_masked(name: str, scope: Scope) -> None:
    torch.manual_seed(0)
    found = find_groups(NETWORKS[name](num_classes=5, in_channels=3), IMAGES[:2], scope=scope)
    assert len(found.groups) == ACCEPTED[name][scope == "all"], found.kept_whole
    whole = [why for why in found.kept_whole.values() if "scope block" not in why]
    count, words = KEPT_WHOLE.get(name, (0, ""))
    assert len(whole) == count
    assert all(words in why for why in whole)


# Every network with half of the cases, and every case with half of the networks; the other halves are slow.
@pytest.mark.parametrize(
    ("name", "structure", "scope"),
    [
        pytest.param(name, *case, marks=() if (first + second) % 2 == 0 else pytest.mark.slow)
        for first, name in enumerate(NETWORKS)
        for second, case in enumerate(CASES)
    ],
)
def test_masked_and_folded_agree(name: str, structure: str, scope: Scope) -> None:
    net = smart(name, structure, scope)
    images = IMAGES[:64]
    with torch.no_grad():
        for path in net.path_names:
            expected = net.path(path)(images)
            assert torch.isfinite(expected).all()
            folded = fold(net, path=path)
            assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
            assert relative(expected, folded(images)) <= TOLERANCE_FP32
            if net.groups:
                assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in net.path(path).parameters())
            keeps = padded_masks(net, path=path, align=8)
            assert relative(expected, fold(net, path=path, keeps=keeps)(images)) <= TOLERANCE_FP32
        dense = unmasked(net, path="clean")
        assert relative(dense(images), fold_dense(dense)(images)) <= TOLERANCE_FP32


@pytest.mark.parametrize("name", NETWORKS)
def test_a_path_is_said_to_use_as_many_parameters_as_are_left(name: str) -> None:
    net = smart(name, "channel", "all")
    used, first = used_parameters(net, path="clean"), net.path("clean").network
    count = sum(int(used[n].sum()) * (p.numel() // used[n].numel()) for n, p in first.named_parameters())
    sliced = slice_network(first, net.groups, net.masks("clean"))
    assert count == sum(p.numel() for p in sliced.parameters())


def runs(name: str, structure: str, scope: Scope) -> None:
    """Hold both paths in ONNX Runtime against the masked ones, on 256 images of noise."""
    net = smart(name, structure, scope)
    for path, graph in graphs(name, structure, scope, FP32).items():
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        got: np.ndarray = session.run(None, {"image": IMAGES.numpy()})[0]
        with torch.no_grad():
            found = agreement(net.path(path)(IMAGES).numpy(), got)
        assert found.holds, f"{path}: {found}"


def builds(graph: bytes, folder: Path, *, capabilities: Sequence[str], sparse: bool) -> None:
    """Have TensorRT-RTX build a plan of a graph."""
    file = folder / "model.onnx"
    file.write_bytes(graph)
    assert_builds(file, shape=SHAPE, capabilities=capabilities, sparse_weights=sparse)


# The three of a network in a row, since they need the same graphs.
@pytest.mark.parametrize("engine", ["onnxruntime", *(pytest.param(p, marks=pytest.mark.trt) for p in (FP32, INT8))])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in PLAIN else ()) for name in NETWORKS]
)
def test_an_engine_takes_it(name: str, engine: str, tmp_path: Path) -> None:
    """ONNX Runtime all of it; TensorRT-RTX what every run can afford of the matrix below, cards and flags in turn."""
    if engine == "onnxruntime":
        runs(name, "channel", "all")
        return
    number = list(NETWORKS).index(name)
    graph = list(graphs(name, "channel", "all", engine).values())[number % 2]
    builds(graph, tmp_path, capabilities=[CARDS[number % 3]], sparse=number % 4 > 1)


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["channel+2:4", "2:4", "unstructured"])
def test_masked_and_onnx_runtime_agree_on_single_weights_too(structure: str) -> None:
    runs("inverted residual", structure, "block")


@pytest.mark.slow
@pytest.mark.parametrize(("structure", "scope"), CASES)
@pytest.mark.parametrize("name", NETWORKS)
def test_masked_and_onnx_runtime_agree_on_everything(name: str, structure: str, scope: Scope) -> None:
    runs(name, structure, scope)


@pytest.mark.trt
@pytest.mark.slow
@pytest.mark.parametrize("precision", [FP32, FP16, INT8])
@pytest.mark.parametrize("structure", ["channel", "channel+2:4"])
@pytest.mark.parametrize("name", NETWORKS)
def test_tensorrt_rtx_builds_everything(name: str, structure: str, precision: str, tmp_path: Path) -> None:
    for graph in graphs(name, structure, "all", precision).values():
        for capabilities in (*([card] for card in CARDS), CARDS):
            for sparse in (False, True):
                builds(graph, tmp_path, capabilities=capabilities, sparse=sparse)


def test_a_network_that_cannot_be_traced_whole_keeps_that_part_as_one_call() -> None:
    folded = fold(smart("functional", "channel", "all"), path="clean")
    assert [str(node.target) for node in folded.graph.nodes if node.op == "call_module"] == ["network"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(smart_export, arguments)


@pytest.mark.slow
def test_the_command_line_exports_checks_and_describes_a_network_of_ones_own(tmp_path: Path) -> None:
    checkpoint, bundle = tmp_path / "ckpt.pt", tmp_path / "bundle"
    config = TrainConfig(
        model=CUSTOM, model_arguments={"width": 8}, structure=Structure(align=1, scope="all"),
        attack=Attack(eps=0.1, steps=1), epochs=1, batch_size=128, train_images=128, device="cpu",
    )  # fmt: skip
    Trainer(config, load_data("digits"), output=checkpoint, factory=NETWORKS["convnext"]).run()
    own = ["--model", "networks.convnext:ConvNeXt"]
    for arguments in (["build", str(checkpoint), "--target", "x86-cpu", "-o", str(bundle)], ["info", str(checkpoint)]):
        refused = invoke(*arguments)
        assert refused.exit_code == 1
        assert "holds no code" in refused.stderr
        done = invoke(*arguments, *own)
        assert done.exit_code == 0, done.output
    refused = invoke("check", str(bundle), "--source", str(checkpoint))
    assert refused.exit_code == 1
    assert "holds no code" in refused.stderr
    done = invoke("check", str(bundle), "--source", str(checkpoint), *own, "--json")
    assert done.exit_code == 0, done.output
    assert all(row["max_rel_diff"] <= TOLERANCE_FP32 for row in json.loads(done.stdout)["paths"].values())


@dataclass(frozen=True)
class Step:
    """One block of a random network: its kind and its width."""

    kind: str
    width: int
    norm: str
    bias: bool


class RandomNet(nn.Module):
    """A stem and blocks of any kind: chains, sums, concatenations, depthwise and grouped convolutions."""

    def __init__(self, steps: list[Step], *, stem: int, flat: bool) -> None:
        super().__init__()
        self.steps, self.flat = steps, flat
        self.stem = nn.Conv2d(2, stem, 3, padding=1)
        self.blocks = nn.ModuleList()
        width = stem
        for step in steps:
            self.blocks.append(self._block(step, width))
            width = {"chain": step.width, "concat": width + step.width}.get(step.kind, width)
        self.head = nn.Linear(width * (25 if flat else 1), 3)

    @staticmethod
    def _norm(kind: str, width: int) -> nn.Module:
        return nn.BatchNorm2d(width) if kind == "batch" else nn.Identity()

    def _block(self, step: Step, width: int) -> nn.Module:
        inner = width if step.kind == "depthwise" else step.width
        groups = 2 if step.kind == "grouped" else inner if step.kind == "depthwise" else 1
        inner += inner % 2 if step.kind == "grouped" else 0
        layers: list[nn.Module] = []
        if step.norm == "before":
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Conv2d(width, inner, 1, bias=step.bias), self._norm(step.norm, inner), nn.ReLU()]
        if groups > 1:
            layers += [nn.Conv2d(inner, inner, 3, padding=1, groups=groups), self._norm(step.norm, inner), nn.GELU()]
        if step.kind not in {"chain", "concat"}:
            layers += [nn.Conv2d(inner, width, 3, padding=1, bias=step.bias), self._norm(step.norm, width)]
        return nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.stem(images))
        for step, block in zip(self.steps, self.blocks, strict=True):
            made = block(features)
            if step.kind == "concat":
                features = torch.cat([features, made], dim=1)
            else:
                features = made if step.kind == "chain" else features + made
        scores: Tensor = self.head(features.flatten(1) if self.flat else features.mean(dim=(2, 3)))
        return scores


STEPS = st.builds(
    Step,
    kind=st.sampled_from(["chain", "sum", "concat", "depthwise", "grouped"]),
    width=st.integers(2, 9),
    norm=st.sampled_from(["batch", "none", "before"]),
    bias=st.booleans(),
)


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(STEPS, min_size=1, max_size=4),
    stem=st.integers(2, 7),
    flat=st.booleans(),
    scope=st.sampled_from(["block", "all"]),
    density=st.floats(0.05, 1),
    align=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_random_networks_with_random_masks_agree(
    *, steps: list[Step], stem: int, flat: bool, scope: Scope, density: float, align: int, seed: int
) -> None:
    torch.manual_seed(seed)
    images = torch.rand(9, 2, 5, 5)
    plain = RandomNet(steps, stem=stem, flat=flat)
    net = convert(plain, example_input=images[:2], density=density, align=align, scope=scope)
    randomise_(net, seed=seed)
    with torch.no_grad():
        for path in net.path_names:
            kept = [int(mask.sum()) for mask in net.masks(path)]
            assert kept == [net.structure.kept(group.size, bundle=group.bundle) for group in net.groups]
            expected = net.path(path)(images)
            assert relative(expected, fold(net, path=path)(images)) <= TOLERANCE_FP32
            keeps = padded_masks(net, path=path, align=3)
            assert relative(expected, fold(net, path=path, keeps=keeps)(images)) <= TOLERANCE_FP32


def test_a_parametrised_layer_stays_as_it_is_and_folds() -> None:
    """Its class is no longer Conv2d: nothing of a mask or of a batch norm may go into it."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    nn.utils.parametrizations.weight_norm(network[4])
    net = convert(network, example_input=torch.zeros(2, 3, 12, 12), density=0.5)
    images = torch.rand(4, 3, 12, 12)
    for path in net.path_names:
        module = net.path(path).eval()
        with torch.no_grad():
            assert torch.allclose(module(images), fold(net, path=path)(images), atol=1e-5)
        assert {row.name for row in structure_report(net, path=path)} == {"0", "2", "4", "9"}


def test_a_linear_layer_over_tokens_in_the_batch_axis_counts_all_of_them() -> None:
    """As in attention over windows: the first axis of what it gives is not the image's."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(8, 16)

        def forward(self, features: Tensor) -> Tensor:
            mixed: Tensor = self.mix(features.permute(0, 2, 3, 1).reshape(-1, 8))
            return mixed.reshape(features.shape[0], -1, 16).mean(1)

    network = nn.Sequential(nn.Conv2d(3, 8, 1), Tokens())
    cost = network_cost(network, dense=network, input_shape=(3, 6, 4))
    assert {layer.name: layer.macs for layer in cost.layers} == {"0": 3 * 8 * 24, "1.mix": 8 * 16 * 24}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, on the way to its refusal
def test_a_network_that_torch_cannot_export_is_refused_in_one_sentence() -> None:
    class Choosing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) if float(images.sum()) > 0 else images.sum((2, 3))

    with pytest.raises(ExportError, match=r"^torch\.onnx\.export cannot convert the network \(") as caught:
        onnx_from_module(Choosing(), input_shape=(3, 4, 4), opset=20)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore::UserWarning")  # as above
def test_a_network_that_casts_is_refused_in_fp16_and_nothing_else_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.conv(images.float()).mean((2, 3))
            return scores

    module = fx.symbolic_trace(Casting().eval())
    to_half_(module)
    with pytest.raises(ExportError, match=r"\(RuntimeError: .*nor cast to float32 in an fp16 export") as caught:
        onnx_from_module(module, input_shape=(3, 4, 4), opset=20)
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr().err == ""
