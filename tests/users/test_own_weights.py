"""What users reported of weights that they brought along: each failed before it was mended."""

from __future__ import annotations

import argparse
import codecs
import logging
import pickle
import pickletools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from smart_train import TrainConfig, Trainer, load_checkpoint
from smart_train.architectures.custom import import_factory
from smart_train.checkpoint.bystanders import EncodedTexts
from smart_train.checkpoint.format import save_checkpoint
from smart_train.data.images import Split
from smart_train.errors import CheckpointError, ConfigError
from smart_train.training.initial_files import normalisation
from smart_train.training.initial_weights import load_initial_weights_, read_initial_weights
from train.networks import image_set, tiny_config

STAND_IN = '''
"""The part of torchvision.models that is used, by the names and arguments that version 0.25 has."""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.fc(self.second(self.bn(self.conv(x)).relu()).relu().mean((2, 3)))

def list_models(module=None):
    return ["resnet18", "resnet34"]

def get_model(name, weights=None, **config):
    assert weights is None
    return Net(**config)
'''


def net(classes: int, channels: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, classes))


def load(network: nn.Module, path: Path, *, classes: int = 5, channels: int = 3) -> None:
    load_initial_weights_(network, read_initial_weights(path), num_classes=classes, in_channels=channels)


def equal(one: dict[str, Tensor], other: dict[str, Tensor], *, but: str = "nothing") -> bool:
    return all(torch.equal(one[name], other[name]) for name in one if not name.startswith(but))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.model."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    source, target = net(5), net(5)
    torch.save({f"{prefix}{name}": value for name, value in source.state_dict().items()}, tmp_path / "w.pth")
    load(target, tmp_path / "w.pth")
    assert equal(source.state_dict(), target.state_dict())


def test_a_network_whose_own_names_begin_with_model_keeps_them(tmp_path: Path) -> None:
    source, target = nn.ModuleDict({"model": net(5)}), nn.ModuleDict({"model": net(5)})
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load(target, tmp_path / "w.pth")
    assert equal(source.state_dict(), target.state_dict())


def test_a_head_for_other_classes_starts_anew_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, target = net(1000), net(5)
    head = target[3].weight.detach().clone()  # type: ignore[operator]
    torch.save(source.state_dict(), tmp_path / "w.pth")
    with caplog.at_level(logging.WARNING):
        load(target, tmp_path / "w.pth")
    assert equal(source.state_dict(), target.state_dict(), but="3.")
    assert torch.equal(target[3].weight, head)  # type: ignore[arg-type]
    assert caplog.messages == [
        "note: 7 of 9 tensors are from w.pth; 3.weight and 3.bias, for its 1000 classes, start anew for 5"
    ]


@pytest.mark.parametrize(("given", "wanted"), [(3, 1), (1, 3)])
def test_filters_for_colours_become_filters_for_grey_and_back(tmp_path: Path, given: int, wanted: int) -> None:
    source, target = net(5, given), net(5, wanted)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load(target, tmp_path / "w.pth", channels=wanted)
    grey = torch.rand(2, 1, 8, 8)
    images = {1: grey, 3: grey.expand(-1, 3, -1, -1)}
    # A grey picture in three equal channels scores as it does in one.
    torch.testing.assert_close(source.eval()(images[given]), target.eval()(images[wanted]))


def test_files_of_safetensors_are_read(tmp_path: Path) -> None:
    source, target = net(5), net(5)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load(target, tmp_path / "w.safetensors")
    assert equal(source.state_dict(), target.state_dict())
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(CheckpointError, match="damaged one; copy it again"):
        read_initial_weights(tmp_path / "bad.safetensors")


def test_files_from_before_torch_1_6_are_read(tmp_path: Path) -> None:
    source, target = net(5), net(5)
    torch.save(source.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load(target, tmp_path / "old.pth")
    assert equal(source.state_dict(), target.state_dict())


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


@pytest.mark.parametrize("new", [True, False])
def test_options_of_timm_s_script_are_read_and_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    source, target = net(5), net(5)
    args = argparse.Namespace(model="resnet18", lr=0.1, mean=[0.5])
    torch.save(
        {"epoch": 3, "arch": "resnet18", "state_dict": source.state_dict(), "args": args, "metric": 76.5},
        tmp_path / "model_best.pth.tar",
        _use_new_zipfile_serialization=new,
    )
    load(target, tmp_path / "model_best.pth.tar")
    assert equal(source.state_dict(), target.state_dict())
    torch.save(
        {"state_dict": source.state_dict(), "args": Harmful()},
        tmp_path / "bad.pth",
        _use_new_zipfile_serialization=new,
    )
    with pytest.raises(CheckpointError, match="was not run or loaded"):
        read_initial_weights(tmp_path / "bad.pth")
    assert not (tmp_path / "harm").exists()


def test_an_old_file_that_claims_more_numbers_than_it_has_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "old.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[:-8])
    assert data.count(b"cpu") == 1
    huge = data.replace(b"cpuq", b"cpuq", 1)
    where = huge.index(b"cpu") + 3
    at = huge.index(b"K\x03", where)  # BININT1 3: how many numbers the storage has
    (tmp_path / "huge.pth").write_bytes(huge[:at] + b"J\xff\xff\xff\x7f" + huge[at + 2 :])
    for name in ("cut.pth", "huge.pth"):
        with pytest.raises(CheckpointError, match="is damaged or no "):
            read_initial_weights(tmp_path / name)


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16 * 36, 5), nn.Linear(5, 5))
    torch.save(other.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load(net(5), tmp_path / "w.pth")
    said = str(caught.value)
    assert said.startswith(
        "w.pth does not fit the network, 2 of whose 9 tensors it has: 0.weight has shape (16, 3, 3, 3)"
    )
    assert "; and " in said
    assert said.endswith("give a state dict of the same network")


@pytest.mark.parametrize(
    ("wanted", "mean", "std"),
    [
        ("none", (0.0,), (1.0,)),
        ("imagenet", ((0.485 + 0.456 + 0.406) / 3,), ((0.229 + 0.224 + 0.225) / 3,)),
        ("0.5/0.25", (0.5,), (0.25,)),
    ],
)
def test_the_normalisation_is_the_user_s_choice_and_stays_in_the_checkpoint(
    tmp_path: Path, wanted: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    config = tiny_config(epochs=1)
    config = TrainConfig(**{**vars(config), "normalize": wanted})
    Trainer(config, image_set(), output=tmp_path / "a.pt").run()
    found = load_checkpoint(tmp_path / "a.pt")
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(std)
    assert found.training["normalize"] == wanted


@pytest.mark.parametrize("wrong", ["imagnet", "0.5", "0.5/0", "1,2/3/4", "nan/1"])
def test_a_bad_normalisation_is_one_sentence(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"^(unknown normalisation|expected means) "):
        TrainConfig(normalize=wrong)


def test_a_normalisation_for_other_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^0.1,0.2/1 normalises 2 channels, and the images have 1$"):
        normalisation("0.1,0.2/1", image_set(), factory=None, initial=None)


def test_weights_of_an_unknown_normalisation_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(net(5).state_dict(), tmp_path / "w.pth")
    with caplog.at_level(logging.WARNING):
        normalisation(None, image_set(), factory=None, initial=read_initial_weights(tmp_path / "w.pth"))
    assert "say --normalize imagenet, none or MEAN/STD" in caplog.messages[0]


@pytest.fixture
def torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(package.parent))
    for name in ("torchvision", "torchvision.models"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("torchvision")
def test_networks_of_torchvision_are_known_by_name_and_read_back_without_it_being_said() -> None:
    factory = import_factory("torchvision:resnet18")
    network = factory(num_classes=5, in_channels=3)
    assert sum(p.numel() for p in network.parameters()) > 0
    assert getattr(factory, "mean", None) == (0.485, 0.456, 0.406)
    with pytest.raises(ConfigError, match="unknown network of torchvision 'resnt18'; did you mean resnet18"):
        import_factory("torchvision:resnt18")
    with pytest.raises(ConfigError, match="takes 3 channels, the images have 1"):
        factory(num_classes=5, in_channels=1)


@pytest.mark.usefixtures("torchvision")
def test_a_checkpoint_of_torchvision_s_network_needs_no_model_option(tmp_path: Path) -> None:
    grey = image_set()
    parts = {
        name: Split(split.images.repeat(3, axis=3), split.labels)
        for name, split in (("train", grey.train), ("validation", grey.validation), ("test", grey.test))
    }
    images = replace(grey, **parts)  # type: ignore[arg-type]  # its three splits
    factory = import_factory("torchvision:resnet18")
    config = TrainConfig(**{**vars(tiny_config(epochs=1)), "model": "custom", "model_arguments": {}})
    torch.save(factory(num_classes=1000, in_channels=3).state_dict(), tmp_path / "resnet18.pth")
    Trainer(config, images, output=tmp_path / "a.pt", factory=factory, initial=tmp_path / "resnet18.pth").run()
    found = load_checkpoint(tmp_path / "a.pt")
    assert found.mean == (0.485, 0.456, 0.406)
    save_checkpoint(found, tmp_path / "b.pt")
    assert load_checkpoint(tmp_path / "b.pt").architecture == "custom"


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("arguments", [{"checkpoint_path": "w.pth"}, {"weights": 1}, {"pretrained": True}])
def test_a_stranger_s_checkpoint_loads_no_files_through_a_library(arguments: dict[str, object]) -> None:
    factory = import_factory("torchvision:resnet18")
    with pytest.raises(ConfigError, match="takes numbers, true and false as arguments, and none that loads weights"):
        factory(num_classes=5, in_channels=3, **arguments)


def test_tensors_that_claim_more_than_the_file_has_take_no_memory(tmp_path: Path) -> None:
    torch.save({"0.weight": torch.zeros(1).expand(2**31)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="claim more numbers than the file holds"):
        read_initial_weights(tmp_path / "w.pth")


def test_a_file_that_is_a_zip_to_torch_alone_is_checked_as_one(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:-10])  # zipfile.is_zipfile says no, torch looks at the first bytes
    with pytest.raises(CheckpointError, match="is damaged or no "):
        read_initial_weights(tmp_path / "cut.pth")


def test_only_the_last_module_is_a_head(tmp_path: Path) -> None:
    source, target = net(5), nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5 * 36, 5))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"0\.weight has shape \(8, 3, 3, 3\)"):
        load(target, tmp_path / "w.pth")


@pytest.mark.parametrize("parallel", [False, True])
def test_a_running_average_of_a_network_is_read(tmp_path: Path, parallel: bool) -> None:
    source, target = net(5), net(5)
    averaged = AveragedModel(nn.DataParallel(source) if parallel else source)
    averaged.update_parameters(averaged.module)
    torch.save(averaged.state_dict(), tmp_path / "ema.pth")
    assert "n_averaged" in averaged.state_dict()
    load(target, tmp_path / "ema.pth")
    assert equal(source.state_dict(), target.state_dict())


def beside_the_weights() -> dict[str, Any]:
    """What training scripts keep of how far they are and how well it goes."""
    return {
        "epoch": np.int64(3),
        "best": np.float64(76.5),
        "last": np.float32(0.1),
        "curve": np.arange(300.0),
        "each": [np.float64(0.5) + i for i in range(300)],
        "args": argparse.Namespace(data="/data/imagenet", lr=np.float32(0.1)),
    }


@pytest.mark.parametrize("new", [True, False])
def test_figures_of_numpy_beside_the_weights_are_read_past(tmp_path: Path, new: bool) -> None:
    source, target = net(5), net(5)
    torch.save(
        {"state_dict": source.state_dict(), **beside_the_weights()},
        tmp_path / "best.pth",
        _use_new_zipfile_serialization=new,
    )
    load(target, tmp_path / "best.pth")
    assert equal(source.state_dict(), target.state_dict())


class Encoded:
    """Bytes as NumPy's figures have them, in a codec of one's choice."""

    def __init__(self, codec: str) -> None:
        self.codec = codec

    def __reduce__(self) -> tuple[Any, ...]:
        return codecs.encode, ("\u00e9" * 3, self.codec)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("codec", ["punycode", "idna", "utf-8", "unicode_escape"])
def test_no_other_codec_runs_than_that_of_numpy_s_bytes(tmp_path: Path, codec: str, new: bool) -> None:
    path = tmp_path / "best.pth"
    torch.save({"state_dict": net(5).state_dict(), "best": Encoded(codec)}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match="was not run or loaded"):
        read_initial_weights(path)


def test_the_encoding_function_is_followed_through_the_memo() -> None:
    def seen(pickled: bytes) -> None:
        texts = EncodedTexts()
        for opcode, argument, _ in pickletools.genops(pickled):
            texts.step(opcode, argument)

    plain = pickle.dumps([Encoded("latin1"), Encoded("latin1")], protocol=2)
    seen(plain)
    assert plain.count(b"encode") == 1  # the second time it comes from the memo
    with pytest.raises(ValueError, match="another way than NumPy's"):
        seen(pickle.dumps([Encoded("latin1"), Encoded("punycode")], protocol=2))
