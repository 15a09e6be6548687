"""A frame scored otherwise alone than in a batch: trained, exported and loaded as if nothing were wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor, nn

from runtime.bundles import write_bundle
from smart_export.build import build_bundle
from smart_export.errors import VerificationError
from smart_export.proof import require_batch_independence
from smart_runtime import BundleError, SmartModel
from smart_runtime.bundle.bundle import write_checksums
from smart_runtime.engines import Batch, Engine, Scores
from smart_runtime.engines.onnxruntime import OnnxRuntimeEngine
from smart_train import NetworkError, SmartNetwork, convert
from smart_train.masking import network as masking
from users.own_networks import SHAPE, Small, checkpoint_of

EXAMPLE = torch.zeros(2, *SHAPE)


def with_zero_head() -> nn.Module:
    """As many recipes start: until the first step, all scores are 0 whatever the batch does before the head."""
    network = Small(norm=nn.BatchNorm2d(16, track_running_stats=False))
    nn.init.zeros_(network.head.weight)
    return network


class Attention(nn.Module):
    """Mixes the images of a batch instead of the positions of an image."""

    def forward(self, features: Tensor) -> Tensor:
        return features.softmax(0) * features


MIXERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "statistics of the batch": (
        lambda: Small(norm=nn.BatchNorm2d(16, track_running_stats=False)), r"first in norm \(BatchNorm2d\)"
    ),
    "statistics of the batch before a head of zeros": (with_zero_head, r"first in norm \(BatchNorm2d\)"),
    "mean of the batch": (lambda: Small(after=lambda y: y - y.mean(0)), "first in the forward of Small"),
    "softmax over the batch": (lambda: Small(after=lambda y: y.softmax(0)), "first in the forward of Small"),
    "squeeze at the end": (
        lambda: Small(after=torch.squeeze), r"a batch of 1 gives scores of shape \(5,\) instead of \(1, 5\), first in"
    ),
    "squeeze on the way": (lambda: Small(pooled=torch.squeeze), r"shape \(5,\) instead of \(1, 5\)"),
    "a layer": (lambda: Small(norm=Attention()), r"first in norm \(Attention\)"),
    "a layer in a layer": (
        lambda: Small(norm=nn.Sequential(nn.ReLU(inplace=True), Attention())), r"first in norm\.1 \(Attention\)"
    ),
}  # fmt: skip


def mixer(name: str) -> tuple[nn.Module, str]:
    torch.manual_seed(0)
    build, words = MIXERS[name]
    return build(), words


@pytest.mark.parametrize("name", MIXERS)
def test_a_network_that_mixes_the_images_of_a_batch_is_refused_with_the_layer(name: str) -> None:
    network, words = mixer(name)
    with pytest.raises(NetworkError, match=f"^an image's scores depend on the batch it comes in: .*{words}"):
        convert(network, example_input=EXAMPLE, align=1, scope="all")


def test_a_network_for_batches_of_one_size_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"^Small takes no batch of 8: it stopped with RuntimeError"):
        convert(Small(after=lambda y: y.view(2, 5)), example_input=EXAMPLE, align=1)


def test_a_network_whose_image_alone_has_nan_scores_is_refused() -> None:
    network = Small(after=lambda y: (y - y.mean(0)) / (y - y.mean(0)).norm(dim=0))  # over one image that is 0 / 0
    words = (
        "^an image's scores depend on the batch it comes in: in a batch of 1 they are NaN beside those in a batch of 8"
    )
    with pytest.raises(NetworkError, match=words):
        convert(network, example_input=EXAMPLE, align=1)


UNTRAINED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a logarithm": (
        lambda: Small(after=lambda y: y.log()),
        "NaN scores for images in .0, 1., first in the forward of ",
    ),
    "a layer": (lambda: Small(norm=nn.Threshold(9.0, math.inf)), r"first in norm \(Threshold\)"),
    "an overflow": (lambda: Small(after=lambda y: y * 1e30 * 1e30), "infinite scores .* first in the forward of Small"),
}


@pytest.mark.parametrize("name", UNTRAINED)
def test_an_untrained_network_with_scores_that_are_not_finite_is_refused(name: str) -> None:
    torch.manual_seed(0)
    build, words = UNTRAINED[name]
    with pytest.raises(NetworkError, match=f"^the untrained network gives .*{words}"):
        convert(build(), example_input=EXAMPLE, align=1)


def test_a_network_that_throws_dice_is_told_from_one_that_mixes_images() -> None:
    with pytest.raises(NetworkError, match=r"^Small gives other scores each time, in eval mode too"):
        convert(Small(after=F.dropout), example_input=EXAMPLE, align=1)


def unchecked(monkeypatch: pytest.MonkeyPatch, name: str) -> SmartNetwork:
    """A network of an older version's checkpoint, which checked nothing."""
    monkeypatch.setattr(masking, "check_batch_independence", lambda *_: None)
    return convert(mixer(name)[0], example_input=EXAMPLE, align=1, scope="all")


def test_an_older_checkpoint_of_such_a_network_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checkpoint_of(unchecked(monkeypatch, "mean of the batch"))
    with pytest.raises(NetworkError, match=r"^an image's scores depend on the batch it comes in: .*"):
        build_bundle(found, output=tmp_path / "bundle", target="cpu", baseline=False, random_images=4)
    assert not (tmp_path / "bundle").exists()


def test_the_graph_itself_is_tried_in_batches_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checkpoint_of(unchecked(monkeypatch, "mean of the batch"))
    monkeypatch.setattr(
        "smart_export.stages.require_batch_independence",
        lambda answer, *given, **named: (
            isinstance(answer, Engine) and require_batch_independence(answer, *given, **named)
        ),
    )
    with pytest.raises(VerificationError, match=r"^in the graph 'clean' an image's scores depend on the batch"):
        build_bundle(found, output=tmp_path / "bundle", target="cpu", baseline=False, random_images=4)
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_whose_graph_mixes_images_is_not_loaded(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    file = bundle / "clean" / "model.onnx"
    model = onnx.load(str(file), load_external_data=False)
    name, model.graph.node[-1].output[0] = model.graph.node[-1].output[0], "plain"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "axes"))
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["plain", "axes"], ["mean"], keepdims=1))
    model.graph.node.append(onnx.helper.make_node("Sub", ["plain", "mean"], [name]))
    file.write_bytes(model.SerializeToString())
    write_checksums(bundle)
    with pytest.raises(BundleError, match=r"^in the path 'clean' an image's scores depend on the batch it comes in"):
        SmartModel.load(bundle)


def test_a_good_bundle_is_loaded_after_an_image_alone_and_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    usual = OnnxRuntimeEngine.run

    def watched(engine: OnnxRuntimeEngine, batch: Batch) -> Scores:
        sizes.append(len(batch))
        return usual(engine, batch)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", watched)
    SmartModel.load(write_bundle(tmp_path / "bundle")).close()
    assert sizes == [1, 2] * 2
