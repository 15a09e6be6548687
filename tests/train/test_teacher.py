from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from smart_export.report import checkpoint_lines
from smart_train import CheckpointError, ConfigError, NetworkError, load_checkpoint, save_checkpoint
from smart_train.checkpoint.described_masks import describe_masks
from smart_train.checkpoint.format import describe
from smart_train.cli import main as smart_train
from smart_train.data.images import ImageSet, make_image_set
from smart_train.data.source import Arrays
from smart_train.training.loop import Trainer
from smart_train.training.refinements import Refinements
from smart_train.training.state import state_path
from smart_train.training.teacher import read_teacher, teacher_file
from train.networks import image_set, resnet, tiny_config
from train.one_step import run_until

VFD = tiny_config(method="vfd", epochs=2)
LINE = (
    *("--method", "vfd", "--model-arg", "width=4", "--align", "1", "--density", "0.5", "--eps", "0.1", "--steps", "1"),
    *("--epochs", "1", "--batch-size", "16", "--device", "cpu"),
)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(smart_train, arguments)


def other_images(*, classes: int = 3, side: int = 8) -> ImageSet:
    labels = np.arange(30) % classes
    images = np.random.default_rng(0).integers(0, 256, (30, side, side, 1), dtype=np.uint8)
    return make_image_set(Arrays(images, labels, images, labels), kind="npz", where="made up")


def test_a_checkpoint_teaches_by_its_clean_path_or_the_one_that_is_named(trained: Path) -> None:
    net = load_checkpoint(trained).net
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for given, path in ((trained, "clean"), (f"{trained}:robust", "robust")):
        found = read_teacher(given, image_set())
        assert not found.network.training
        assert not any(parameter.requires_grad for parameter in found.network.parameters())
        torch.testing.assert_close(found.network(images), net.path(path)(images), rtol=0, atol=0)
        assert found.record() == {"sha256": hashlib.sha256(trained.read_bytes()).hexdigest(), "path": path}


def test_a_file_may_have_a_colon_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a:b").touch()
    assert teacher_file(tmp_path / "a:b") == (tmp_path / "a:b", "")
    assert teacher_file(f"{tmp_path}/a:b:clean") == (tmp_path / "a:b", "clean")
    assert teacher_file("c:d/e.pt") == (Path("c:d/e.pt"), "")


@pytest.mark.parametrize(
    ("suffix", "data", "words"),
    [
        (":dense", image_set(), "ckpt.pt has no path dense, it has clean, robust; name one, as in --teacher ckpt.pt:"),
        ("", other_images(classes=4), "was trained on 3 classes that are not the 4 of the data"),
        ("", other_images(side=9), "takes images of 1x8x8, and these are 1x9x9"),
    ],
)
def test_a_teacher_of_something_else_is_refused(trained: Path, suffix: str, data: ImageSet, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_teacher(f"{trained}{suffix}", data)


@pytest.mark.parametrize(
    "renamed", [{"robust": "robust"}, {"robust": "robust", "left": "clean"}], ids=["the only one", "two"]
)
def test_without_a_clean_path_the_only_one_teaches(trained: Path, tmp_path: Path, renamed: dict[str, str]) -> None:
    found = load_checkpoint(trained)
    paths = {f"path_{new}": found.net._paths[f"path_{old}"] for new, old in renamed.items()}
    found.net._paths = nn.ModuleDict(paths)

    def by_name(values: Any) -> dict[str, Any]:
        return {new: values[old] for new, old in renamed.items()}

    samples = replace(found.samples, adversarial=by_name(found.samples.adversarial))
    other = replace(found, samples=samples, metrics=by_name(found.metrics), roles=by_name(found.roles))
    save_checkpoint(other, tmp_path / "a.pt")
    if len(renamed) == 1:
        assert read_teacher(tmp_path / "a.pt", image_set()).path == "robust"
    else:
        with pytest.raises(ConfigError, match=r"a\.pt has no path clean, it has robust, left; name one"):
            read_teacher(tmp_path / "a.pt", image_set())


def test_a_module_teaches_too_and_is_known_by_its_tensors() -> None:
    first, second = read_teacher(resnet(width=6), image_set()), read_teacher(resnet(width=6), image_set())
    assert first.record() == second.record()
    assert first.record() != read_teacher(resnet(width=6, seed=1), image_set()).record()
    with pytest.raises(ConfigError, match="the teacher gives 4 scores for 3 classes"):
        read_teacher(resnet(classes=4), image_set())
    with pytest.raises(NetworkError, match="expected a network that takes images of shape"):
        read_teacher(nn.Linear(3, 3), image_set())


def test_a_method_that_needs_a_teacher_says_so_and_others_take_none(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^method vfd learns from a teacher and has none; name the checkpoint of"):
        Trainer(VFD, image_set(), output=tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=r"^method smart has no use for a teacher; leave --teacher out, or "):
        Trainer(tiny_config(), image_set(), output=tmp_path / "a.pt", teacher=trained)
    distilling = tiny_config(epochs=1, refinements=Refinements(distill=0.5, temperature=2.0))
    with pytest.raises(ConfigError, match=r"^--distill learns from a teacher and has none; name the checkpoint of"):
        Trainer(distilling, image_set(), output=tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="nope"):
        Trainer(VFD, image_set(), output=tmp_path / "a.pt", teacher=tmp_path / "nope.pt")


def test_any_method_may_learn_from_a_teacher_s_answers(trained: Path, tmp_path: Path) -> None:
    config = tiny_config(epochs=1, refinements=Refinements(distill=0.25, temperature=2.0))
    trainer = Trainer(config, image_set(), output=tmp_path / "a.pt", teacher=f"{trained}:robust")
    batch = next(trainer.batches.epoch(1))
    told = (load_checkpoint(trained).net.path("robust")(batch.images) / 2.0).softmax(dim=1)
    expected = 0.75 * nn.functional.one_hot(batch.labels, 3) + 0.25 * told
    torch.testing.assert_close(batch.targets, expected)


def test_a_training_goes_on_with_its_own_teacher_alone(trained: Path, tmp_path: Path) -> None:
    run_until(Trainer(VFD, image_set(), output=tmp_path / "a.pt", teacher=trained), epoch=1)
    for other in (f"{trained}:robust", resnet()):
        with pytest.raises(ConfigError, match=r"a\.last\.pt was started with another teacher"):
            Trainer(VFD, image_set(), output=tmp_path / "a.pt", resume=True, teacher=other)
    assert str(trained).encode() not in state_path(tmp_path / "a.pt").read_bytes()
    run_until(Trainer(VFD, image_set(), output=tmp_path / "a.pt", resume=True, teacher=trained), epoch=2)


def test_the_command_takes_a_teacher_and_remembers_it(
    trained: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "teacher.pt").write_bytes(trained.read_bytes())
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_report", interrupted)
        done = invoke(*LINE, "--data", data, "--teacher", "teacher.pt:robust", "-o", "a.pt")
    assert done.exit_code == 130, done.output
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = invoke("--resume", str(tmp_path / "a.pt"), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["best_epoch"] == 1
    assert "note: vfd is a reconstruction; say so wherever its figures appear" in done.stderr
    trained_now = load_checkpoint(tmp_path / "a.pt")
    masks = describe_masks(trained_now.net, training=trained_now.training)
    assert "trained with vfd (a reconstruction) for 1 epochs" in "\n".join(
        checkpoint_lines(describe(trained_now), masks)
    )
    record = trained_now.training
    assert record["caveat"] == "reconstruction"
    assert record["teacher"] == {"sha256": hashlib.sha256(trained.read_bytes()).hexdigest(), "path": "robust"}


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt
