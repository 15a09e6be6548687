"""Published checkpoints load into the networks of the same architecture, and each path can start from a file."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from networks import published
from smart_train import ConfigError, Trainer, load_checkpoint
from smart_train.architectures.build import build_network
from smart_train.cli import main
from smart_train.errors import CheckpointError
from smart_train.options import parse_init
from smart_train.training.initial_files import normalisation, read_initial_files
from smart_train.training.initial_weights import load_initial_weights_, read_initial_weights
from train.networks import image_set, tiny_config

WIDTH = 8
PUBLISHED: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: published.ResNet18(width=WIDTH),
    "preact-resnet18": lambda: published.ResNet18(width=WIDTH, block=published.PreBlock, last=True),
    "preact-resnet18-raw": lambda: published.ResNet18(width=WIDTH, block=published.RawBlock),
    "wrn28-10": lambda: published.WideResNet(blocks=4, width=WIDTH),
    "wrn40-2": lambda: published.WideResNet(blocks=6, width=WIDTH, unused=True),
}


def ours(name: str, path: Path) -> nn.Module:
    network = build_network(name, num_classes=10, in_channels=3, arguments={"width": WIDTH}, generator_seed=1)
    load_initial_weights_(network, read_initial_weights(path), num_classes=10, in_channels=3)
    return network.eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_gives_our_network_the_scores_of_theirs(name: str, tmp_path: Path) -> None:
    theirs = published.settled(PUBLISHED[name]())
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        expected, scores = theirs(images), ours(name, tmp_path / "theirs.pt")(images)
    torch.testing.assert_close(scores, expected)


def state() -> dict[str, Tensor]:
    return published.settled(PUBLISHED["preact-resnet18"]()).state_dict()


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


MU = {"mu": torch.full((1, 3, 1, 1), 0.25), "sigma": torch.full((1, 3, 1, 1), 0.5)}
WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "state_dict": lambda tensors: {"epoch": 3, "state_dict": tensors},
    "model_state_dict": lambda tensors: {"epoch": 3, "model_state_dict": tensors},
    "net": lambda tensors: {"net": prefixed(tensors, "module."), "acc": 83.0},
    "best and last": lambda tensors: {"best": {name: -tensor for name, tensor in tensors.items()}, "last": tensors},
    "normalised inside": lambda tensors: prefixed({**MU, **tensors}, "module."),
    "normalised by a wrapper": lambda tensors: {**MU, **prefixed(tensors, "model.")},
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_what_training_scripts_put_around_the_weights_is_taken_off(wrapped: str, tmp_path: Path) -> None:
    expected = state()
    torch.save(WRAPPED[wrapped](expected), tmp_path / "theirs.pt")
    found = ours("preact-resnet18", tmp_path / "theirs.pt").state_dict()
    assert torch.equal(found["blocks.2.shortcut.weight"], expected["layer2.0.shortcut.0.weight"])
    assert torch.equal(found["bn.running_var"], expected["bn.running_var"])


def test_images_are_normalised_as_the_buffers_in_the_file_say(tmp_path: Path) -> None:
    torch.save(prefixed({**MU, **state()}, "module."), tmp_path / "theirs.pt")
    found = read_initial_weights(tmp_path / "theirs.pt")
    assert normalisation(None, image_set(), factory=None, initial=found) == ((0.25,), (0.5,))
    assert normalisation("none", image_set(), factory=None, initial=found) == ((0.0,), (1.0,))
    torch.save({**state(), "mu": torch.zeros(3), "sigma": torch.zeros(3)}, tmp_path / "zero.pt")
    with pytest.raises(
        ConfigError, match=r"standard deviations from 0.001 to 10, got mu and sigma in zero\.pt; images"
    ):
        normalisation(None, image_set(), factory=None, initial=read_initial_weights(tmp_path / "zero.pt"))


@pytest.mark.parametrize(
    ("given", "wanted", "said"),
    [
        ("preact-resnet18-raw", "preact-resnet18", "no bn.weight; no bn.bias"),
        ("preact-resnet18", "preact-resnet18-raw", "bn.weight is not in the network"),
        ("wrn40-2", "wrn28-10", "blocks.4.conv1.weight has shape"),
    ],
)
def test_a_file_of_another_architecture_is_refused(given: str, wanted: str, said: str, tmp_path: Path) -> None:
    torch.save(PUBLISHED[given]().state_dict(), tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match=said):
        ours(wanted, tmp_path / "theirs.pt")


def test_a_name_of_a_thousand_wrappers_is_refused_in_a_sentence(tmp_path: Path) -> None:
    torch.save(prefixed(state(), "model." * 1000), tmp_path / "deep.pt")
    with pytest.raises(CheckpointError, match=r"deep\.pt does not fit the network"):
        ours("preact-resnet18", tmp_path / "deep.pt")


def test_the_resnet_in_the_wheel_of_pyautoattack_is_read(tmp_path: Path) -> None:
    found = importlib.util.find_spec("pyautoattack")
    file = Path(found.origin).parent / "examples" / "model_test.pt" if found and found.origin else None
    if file is None or not file.is_file():
        pytest.skip("the example of pyautoattack is not installed")
    network = build_network("resnet18", num_classes=10, in_channels=3, arguments={}, generator_seed=0)
    load_initial_weights_(network, read_initial_weights(file), num_classes=10, in_channels=3)
    raw = torch.load(file, map_location="cpu", weights_only=True)
    kept = network.state_dict()
    assert torch.equal(kept["blocks.7.conv2.weight"], raw["layer4.1.conv2.weight"])
    assert sum(name.endswith("running_mean") for name in kept) == 20


def test_the_file_for_all_paths_and_those_of_some_are_told_apart() -> None:
    assert parse_init(["a.pt"]) == {"": Path("a.pt")}
    assert parse_init(["robust=b.pt", "a.pt"]) == {"robust": Path("b.pt"), "": Path("a.pt")}
    assert parse_init(["./robust=b.pt", "clean=x=y.pt"]) == {"": Path("robust=b.pt"), "clean": Path("x=y.pt")}
    for wrong, said in [(["a", "b"], "for all paths; give one"), (["c=a", "c=b"], "for path c;"), (["c="], "got 'c='")]:
        with pytest.raises(ConfigError, match=said):
            parse_init(wrong)


def plain(seed: int) -> nn.Module:
    """What `tiny_config` trains, with batch norms that tell where they come from."""
    config = tiny_config()
    network = build_network(
        config.model, num_classes=3, in_channels=1, arguments=config.model_arguments, generator_seed=seed
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(seed / 8)  # type: ignore[union-attr]  # it tracks them
            nn.init.constant_(module.weight, 1 + seed / 8)
    return network


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {"1": plain(1), "2": plain(2), "1 with other batch norms": plain(1)}
    made["1 with other batch norms"].load_state_dict(
        {name: tensor for name, tensor in plain(2).state_dict().items() if "bn" in name or "shortcut.1" in name},
        strict=False,
    )
    for name, network in made.items():
        torch.save(network.state_dict(), tmp_path / f"{name}.pt")
    return {name: tmp_path / f"{name}.pt" for name in made}


def starts(trainer: Trainer) -> dict[str, float]:
    """Return what the batch norms of each path start with, and the weights that both share."""
    trees = {path: trainer.net.path(path).network.state_dict() for path in trainer.net.path_names}
    found = {path: float(tree["bn.running_mean"][0]) * 8 for path, tree in trees.items()}
    assert all(tree["bn.weight"][0] == 1 + found[path] / 8 for path, tree in trees.items())
    one, other = trees.values()
    assert torch.equal(one["conv.weight"], other["conv.weight"])
    by_seed = [seed for seed in (1, 2) if torch.equal(one["conv.weight"], plain(seed).state_dict()["conv.weight"])]
    return {**found, "shared": by_seed[0]}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"": "1"}, (1, 1, 1)),
        ({"robust": "1"}, (1, 1, 1)),
        ({"clean": "1", "robust": "2"}, (1, 2, 1)),
        ({"robust": "2", "clean": "1"}, (1, 2, 2)),
        ({"robust": "2", "": "1"}, (1, 2, 1)),
        ({"clean": "2", "robust": "2", "": "1"}, (2, 2, 1)),
    ],
)
def test_weights_are_shared_and_batch_norms_each_path_s_own(
    given: dict[str, str], found: tuple[int, ...], files: dict[str, Path], tmp_path: Path
) -> None:
    initial = {path: files[name] for path, name in given.items()}
    trainer = Trainer(tiny_config(), image_set(), output=tmp_path / "a.pt", initial=initial)
    assert starts(trainer) == dict(zip(("clean", "robust", "shared"), found, strict=True))


def test_it_is_said_where_batch_norms_were_made_for_other_weights(
    files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for other in ("1 with other batch norms", "2"):
            initial = {"": files["1"], "robust": files[other]}
            Trainer(tiny_config(), image_set(), output=tmp_path / "a.pt", initial=initial)
    said = [message for message in caplog.messages if "batch norms" in message]
    assert len(said) == 1
    assert said[0].startswith("note: path robust starts with the batch norms of 2.pt, where ")


def test_both_files_are_remembered_and_resuming_holds_to_them(files: dict[str, Path], tmp_path: Path) -> None:
    output, initial = tmp_path / "a.pt", {"": files["1"], "robust": files["2"]}
    Trainer(tiny_config(epochs=1), image_set(), output=output, initial=initial).run()
    record = load_checkpoint(output).training
    read = read_initial_files(initial, paths=("clean", "robust"))
    assert read.shared is not None
    assert record["init_sha256"] == read.shared.sha256
    assert record["init_sha256_of_paths"] == {"robust": read.batch_norms["robust"].sha256}
    other = {**initial, "robust": files["1 with other batch norms"]}
    with pytest.raises(ConfigError, match="init_sha256_of_paths"):
        Trainer(tiny_config(epochs=1), image_set(), output=output, initial=other, resume=True)


def test_a_resumed_command_starts_from_the_same_files_wherever_it_is_typed(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = image_set()
    parts = {"train": images.train, "test": images.test}
    arrays = {f"{part}_{kind}": getattr(found, kind) for part, found in parts.items() for kind in ("images", "labels")}
    np.savez(tmp_path / "data.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    options = ["--data", "npz:data.npz", "--model", tiny_config().model, "--model-arg", "width=4", "--epochs", "1"]
    run = CliRunner().invoke
    first = run(main, [*options, "--batch-size", "16", "--init", "1.pt", "--init", "robust=2.pt", "-o", "ckpt.pt"])
    assert first.exit_code == 0, first.output
    record = load_checkpoint("ckpt.pt").training
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = run(main, ["--resume", "../ckpt.pt", "--init", str(files["1"]), "--init", f"robust={files['2']}"])
    assert again.exit_code == 0, again.output
    assert run(main, ["--resume", "../ckpt.pt"]).exit_code == 0
    assert load_checkpoint("../ckpt.pt").training == record
    other = run(main, ["--resume", "../ckpt.pt", "--init", str(files["1"])])
    assert other.exit_code == 1
    assert "--init is not what the training of ../ckpt.pt was started with" in other.output


def test_what_cannot_be_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    config = tiny_config()

    def start(initial: dict[str, Path], **options: Any) -> None:
        Trainer(replace(config, **options), image_set(), output=tmp_path / "a.pt", initial=initial)

    with pytest.raises(ConfigError, match=r"^no path rubust to start from .*: this method has clean and robust; for a"):
        start({"rubust": files["1"]})
    with pytest.raises(ConfigError, match=r"^no path clean to start from .*: this method has robust; for a"):
        start({"clean": files["1"]}, method="pgd-at")
    with pytest.raises(ConfigError, match="--permute and --init PATH=FILE cannot be combined"):
        start({"": files["1"], "robust": files["2"]}, structure=replace(config.structure, name="2:4"), permute=True)
    torch.save(PUBLISHED["resnet18"]().state_dict(), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"^other\.pt does not fit the network"):
        start({"": files["1"], "robust": tmp_path / "other.pt"})
