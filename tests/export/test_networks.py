"""Every named network's way to the device: fold, convert, run in ONNX Runtime, build with TensorRT."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import fx, nn

from export.rtx import assert_builds
from export.test_fold import randomise_, relative
from smart_devices import resolve_target
from smart_export.build import build_bundle
from smart_export.folding import ChannelAffine, affines_to_convolutions_, fold, fold_dense, unmasked
from smart_export.graph import Converter, onnx_from_module, save_graph
from smart_export.precision import TOLERANCE_FP32
from smart_runtime import SmartModel
from smart_train import Checkpoint, SmartNetwork, convert
from smart_train.accuracy import to_tensor
from smart_train.architectures.build import build_network
from smart_train.checkpoint.format import Samples
from smart_train.choices import Scope

# Every comparison holds to what is asked of a bundle: 50 layers of float32 sums in another order differ by up to 2e-5.
DEEP = ["wrn40-2", "resnet50"]
NAMES = ["resnet18", "wrn16-8", "preact-resnet18-raw", *DEEP]
SHAPE = (3, 16, 16)
IMAGES = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))


def smart(name: str, *, scope: Scope = "block", width: int = 8, align: int = 1) -> SmartNetwork:
    plain = build_network(name, num_classes=4, in_channels=3, arguments={"width": width}, generator_seed=0)
    net = convert(plain, example_input=IMAGES[:2], scope=scope, align=align, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    randomise_(net, seed=1)
    calm_(net)
    return net


@torch.no_grad()
def calm_(net: SmartNetwork) -> None:
    """Give batch norms the statistics of images: with random ones, 40 layers of residual stream grow beyond float32."""
    for path in net.path_names:
        norms = [m for m in net.path(path).modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        net.path(path).train()(torch.rand(64, *SHAPE, generator=torch.Generator().manual_seed(2)))
    net.eval()


# Scope "all" masks what "block" does and more; the deep networks go without the smaller one of the two.
@pytest.mark.parametrize(
    ("name", "scope"),
    [
        pytest.param(name, scope, marks=pytest.mark.slow if name in DEEP and scope == "block" else ())
        for name in NAMES
        for scope in ("block", "all")
    ],
)
def test_masked_and_folded_agree(name: str, scope: Scope) -> None:
    net = smart(name, scope=scope)
    with torch.no_grad():
        for path in net.path_names:
            folded = fold(net, path=path)
            assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
            expected = net.path(path)(IMAGES)
            assert torch.isfinite(expected).all()
            assert relative(expected, folded(IMAGES)) <= TOLERANCE_FP32
            affines_to_convolutions_(folded)
            assert not any(isinstance(m, ChannelAffine) for m in folded.modules())
            assert relative(expected, folded(IMAGES)) <= TOLERANCE_FP32
        dense = unmasked(net, path="clean")
        expected = dense(IMAGES)
        assert torch.isfinite(expected).all()
        assert relative(expected, fold_dense(dense)(IMAGES)) <= TOLERANCE_FP32


def checkpoint(name: str) -> Checkpoint:
    net = smart(name, align=4)
    pictures = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return Checkpoint(
        architecture=name,
        arguments={"width": 8},
        input_shape=SHAPE,
        class_names=("a", "b", "c", "d"),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        net=net,
        samples=Samples(
            images=pictures,
            labels=torch.zeros(8, dtype=torch.int64),
            adversarial=dict.fromkeys(net.path_names, pictures),
            eps=0.0,
            attack="none",
        ),
        metrics={path: {} for path in net.path_names},
    )


# Slow: graphs for a Jetson, with scales and shifts that no convolution takes in, are in test_any_network.py for others.
JETSON = [pytest.param((name, "jetson-orin"), marks=pytest.mark.slow) for name in ("resnet50", "wrn16-8")]


@pytest.fixture(scope="module", params=[*JETSON, ("wrn16-8", "cpu")])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path, str]:
    name, target = request.param
    found = checkpoint(name)
    output = tmp_path_factory.mktemp("networks") / "bundle"
    build_bundle(found, output=output, target=resolve_target(target), random_images=8)
    return found, output, target


def operators(file: Path) -> set[str]:
    return {node.op_type for node in onnx.load(str(file), load_external_data=False).graph.node}


def test_the_runtime_answers_like_the_masked_paths(exported: tuple[Checkpoint, Path, str]) -> None:
    found, bundle, _ = exported
    with SmartModel.load(bundle) as model:
        for path in found.net.path_names:
            model.path = path
            with torch.no_grad():
                expected = found.net.path(path)(to_tensor(found.samples.images))
            assert relative(expected, torch.from_numpy(model(found.samples.images.numpy()))) <= TOLERANCE_FP32


def test_nothing_but_plain_operators_is_left(exported: tuple[Checkpoint, Path, str]) -> None:
    found, bundle, target = exported
    plain = {"Conv", "Relu", "Add", "Sub", "Div", "ReduceMean", "Gemm"}
    more = {"resnet50": {"MaxPool"}, "wrn16-8": {"Mul"} if target != "cpu" else set()}[found.architecture]
    for graph in ("clean", "robust", "dense"):
        file = bundle / graph / "model.onnx"
        onnx.checker.check_model(str(file), full_check=True)
        assert operators(file) == plain | more, graph


@pytest.mark.trt
def test_tensorrt_rtx_builds_it_without_a_gpu(exported: tuple[Checkpoint, Path, str]) -> None:
    _, bundle, _ = exported
    assert_builds(bundle / "robust/model.onnx", shape=SHAPE)


def as_values(model: onnx.ModelProto) -> dict[str, object]:
    """Return a graph's parts, whatever order its tensors are in."""
    graph = model.graph
    return {
        "nodes": [node.SerializeToString() for node in graph.node],
        "weights": {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in graph.initializer},
        "shapes": {v.name: v.type.SerializeToString() for v in (*graph.value_info, *graph.input, *graph.output)},
    }


def written(model: object, folder: Path) -> dict[str, object]:
    folder.mkdir()
    save_graph(model, folder)  # type: ignore[arg-type]
    return as_values(onnx.load(str(folder / "model.onnx")))


@pytest.mark.slow
def test_a_graph_that_is_taken_over_is_the_one_that_conversion_would_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = smart("resnet18")
    conversions = []

    def counted(module: fx.GraphModule, *, input_shape: tuple[int, int, int], opset: int) -> object:
        conversions.append(module)
        return onnx_from_module(module, input_shape=input_shape, opset=opset)

    monkeypatch.setattr("smart_export.graph.onnx_from_module", counted)
    converter = Converter(input_shape=SHAPE, opset=20)
    modules = [fold(net, path="clean"), fold(net, path="robust"), fold_dense(unmasked(net, path="clean"))]
    for i, module in enumerate(modules):
        got = written(converter(module), tmp_path / f"taken{i}")
        fresh = written(onnx_from_module(module, input_shape=SHAPE, opset=20), tmp_path / f"fresh{i}")
        for part in fresh:
            assert got[part] == fresh[part], (i, part)
    assert conversions == modules[:1]


class Flattened(nn.Module):
    """Its graph holds numbers of channels (the reshape's), and its batch norm is on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 16 * 16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.last(torch.relu(self.conv(images))))
        scores: torch.Tensor = self.fc(features.flatten(1))
        return scores


def test_a_graph_that_depends_on_numbers_of_channels_is_not_taken_over(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = convert(Flattened(), example_input=IMAGES[:2], align=1)
    randomise_(net, seed=0)
    converter = Converter(input_shape=SHAPE, opset=20)
    for i, module in enumerate([fold(net, path="clean"), fold_dense(unmasked(net, path="clean"))]):
        got = written(converter(module), tmp_path / f"taken{i}")
        assert got == written(onnx_from_module(module, input_shape=SHAPE, opset=20), tmp_path / f"fresh{i}")


def test_the_dense_network_of_a_masked_stream_is_finite() -> None:
    """A batch norm on a masked stream has seen zeros only: a variance of 0 at each block would end in infinity."""
    net = smart("wrn40-2", scope="all")
    variances = [m.running_var for m in net.path("clean").modules() if isinstance(m, nn.BatchNorm2d)]
    assert any(v is not None and bool((v == 0).any()) for v in variances)
    dense = unmasked(net, path="clean")
    with torch.no_grad():
        assert float(dense(IMAGES).abs().max()) < 1e4
