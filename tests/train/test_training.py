from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smart_train import Attack, CheckpointError, ConfigError, Structure, load_checkpoint, load_data
from smart_train.checkpoint.network_state import network_state
from smart_train.choices import MASK_MODES
from smart_train.data.augment import Augmentation
from smart_train.masking.accounting import densities
from smart_train.masking.plan import MaskPlan
from smart_train.training.config import TrainConfig
from smart_train.training.loop import Trainer
from smart_train.training.results import TrainResult
from smart_train.training.selection import Measurement
from smart_train.training.state import state_path
from train.networks import different, image_set, tiny_config


class Stopped(Exception):  # noqa: N818  # no error: the test pulls the plug
    pass


def train(output: Path, config: TrainConfig, *, resume: bool = False, stop_after: int | None = None) -> TrainResult:
    done = 0

    def on_step(_: str) -> None:
        nonlocal done
        done += 1
        if done == stop_after:
            raise Stopped

    return Trainer(config, image_set(), output=output, resume=resume).run(on_step=on_step)


def tensors(value: Any, where: str = "") -> dict[str, Tensor]:
    """All tensors, and as text all other values, of a saved file by their place in it; times aside."""
    found = {}
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if key in {"seconds", "train_seconds"}:
            continue
        place = f"{where}/{key}"
        if isinstance(item, Tensor):
            found[place] = item
        elif isinstance(item, dict | list):
            found |= tensors(item, place)
        else:
            found[place] = torch.tensor(list(repr(item).encode()))
    return found


def differences(first: Path, second: Path) -> list[str]:
    """Compare ckpt.pt and ckpt.last.pt of two trainings."""
    words = []
    for a, b in ((first, second), (state_path(first), state_path(second))):
        words += different(*(tensors(torch.load(p, weights_only=True)) for p in (a, b)))
    return words


STOPS = [1, 3, 4, 7, 12]
EACH_RUN = {("gradual", 7), ("regrow", 4), ("static", 1)}  # the other modes keep no more from step to step


# Every mode in each run, at a stop before, while and after its masks move; the other pairs are slow, at two trainings
# each.
@pytest.mark.parametrize(
    ("mode", "stop_after"),
    [
        pytest.param(mode, stop, marks=() if (mode, stop) in EACH_RUN else pytest.mark.slow)
        for mode in ("gradual", "regrow", "static")
        for stop in STOPS
    ],
)
def test_a_training_stopped_anywhere_resumes_to_the_bit(tmp_path: Path, mode: str, stop_after: int) -> None:
    plan = MaskPlan(mode=mode, score="gradient")
    config = tiny_config(masks=plan, augmentation=Augmentation(crop_pad=1, flip=True))
    train(tmp_path / "whole.pt", config)
    with pytest.raises(Stopped):
        train(tmp_path / "parts.pt", config, stop_after=stop_after)
    train(tmp_path / "parts.pt", config, resume=True)
    assert not differences(tmp_path / "whole.pt", tmp_path / "parts.pt")


@pytest.mark.parametrize(
    ("structure", "mode", "score"),
    [  # the slow ones are the same modes on other structures
        pytest.param("2:4", "gradual", "magnitude", marks=pytest.mark.slow),
        ("2:4", "regrow", "gradient"),
        ("channel+2:4", "gradual", "gradient"),
        pytest.param("channel+2:4", "regrow", "magnitude", marks=pytest.mark.slow),
        pytest.param("unstructured", "regrow", "magnitude", marks=pytest.mark.slow),
        pytest.param("unstructured", "static", "magnitude", marks=pytest.mark.slow),
    ],
)
def test_masks_of_single_weights_resume_to_the_bit_too(tmp_path: Path, structure: str, mode: str, score: str) -> None:
    config = tiny_config(
        structure=Structure(name=structure, align=4),
        masks=MaskPlan(mode=mode, score=score),  # type: ignore[arg-type]  # of the tables
        model_arguments={"width": 8},
    )
    train(tmp_path / "whole.pt", config)
    with pytest.raises(Stopped):
        train(tmp_path / "parts.pt", config, stop_after=5)
    train(tmp_path / "parts.pt", config, resume=True)
    assert not differences(tmp_path / "whole.pt", tmp_path / "parts.pt")
    found = load_checkpoint(tmp_path / "whole.pt")
    assert found.training["history"][-1]["clean_density"] == 0.5
    assert densities(found.net).kept == {"clean": 0.5, "robust": 0.5}


CHILD = """
import sys, torch
from pathlib import Path
from smart_train.training.loop import Trainer
from train.networks import image_set, tiny_config
torch.set_num_threads(1)
Trainer(tiny_config(), image_set(), output=Path(sys.argv[1])).run(on_step=lambda _: print("step", flush=True))
"""


# At the end of an epoch in every run; a process and the rest of its training for each of the other moments.
@pytest.mark.parametrize("steps", [pytest.param(2, marks=pytest.mark.slow), 6, pytest.param(9, marks=pytest.mark.slow)])
def test_a_killed_process_leaves_files_to_resume_from(trained: Path, tmp_path: Path, steps: int) -> None:
    """After the last step of an epoch (3 to each) the kill falls into measuring or writing."""
    output = tmp_path / "ckpt.pt"
    search = os.pathsep.join(p for p in sys.path if p)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(output)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        for _ in range(steps):
            assert process.stdout.readline() == b"step\n"
        process.kill()
    for path in (output, state_path(output)):
        if path.exists():
            torch.load(path, weights_only=True)
    train(output, tiny_config(), resume=True)
    assert not differences(trained, output)


def test_resuming_a_finished_training_changes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "ckpt.pt"
    first = train(output, tiny_config())
    before = output.read_bytes()
    again = train(output, tiny_config(), resume=True)
    assert (again.accuracy, again.best_epoch) == (first.accuracy, first.best_epoch)
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("batch_size", "mode"),
    [(48, mode) for mode in MASK_MODES] + [(16, "gradual")],  # 1 step, in which all happens; and 3
)
def test_one_epoch_is_enough_for_a_checkpoint_with_exact_masks(tmp_path: Path, mode: str, batch_size: int) -> None:
    config = tiny_config(masks=MaskPlan(mode=mode), epochs=1, batch_size=batch_size)
    assert train(tmp_path / "ckpt.pt", config).best_epoch == 1
    net = load_checkpoint(tmp_path / "ckpt.pt").net
    for path in net.path_names:
        assert [int(m.sum()) for m in net.masks(path)] == [net.structure.kept(g.size) for g in net.groups]


def test_the_best_epoch_has_frozen_masks_and_the_best_validation_score(trained: Path) -> None:
    found = load_checkpoint(trained)
    history = found.training["history"]
    scores = {
        row["epoch"]: (row["clean_path_clean_accuracy"] + row["robust_path_robust_accuracy"]) / 2
        for row in history
        if row["clean_density"] == 0.5
    }
    assert set(scores) == {2, 3, 4}, "with 4 epochs the masks are frozen from the second on"
    assert found.training["best_epoch"] == max(scores, key=lambda epoch: (scores[epoch], epoch))
    for path in found.net.path_names:
        assert [int(m.sum()) for m in found.net.masks(path)] == [2, 4, 8]
        assert found.metrics[path]["split"] == "test"
    assert densities(found.net).kept == {"clean": 0.5, "robust": 0.5}
    assert found.training["data"]["digest"] == image_set().digest


def test_after_a_training_its_network_is_the_best_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validate, falling = Measurement.validate, iter((0.5, 0.4, 0.3, 0.2))

    def ever_worse(*arguments: Any, **options: Any) -> tuple[dict[str, float], float]:
        return validate(*arguments, **options)[0], next(falling)

    monkeypatch.setattr(Measurement, "validate", ever_worse)
    trainer = Trainer(tiny_config(masks=MaskPlan(mode="static")), image_set(), output=tmp_path / "ckpt.pt")
    last: dict[str, Tensor] = {}
    result = trainer.run(on_epoch=lambda _: last.update(tensors(network_state(trainer.net))))
    assert result.best_epoch == 1
    found = tensors(network_state(trainer.net))
    assert not different(found, tensors(network_state(load_checkpoint(result.checkpoint).net)))
    assert different(found, last)


def test_data_and_files_may_be_named(tmp_path: Path) -> None:
    config = TrainConfig(model_arguments={"width": 4}, epochs=1, train_images=64, test_images=10, batch_size=32)
    named = Trainer(config, "digits", output=os.fspath(tmp_path / "named.pt")).run()
    given = Trainer(config, load_data("digits"), output=tmp_path / "given.pt").run()
    assert named.checkpoint == tmp_path / "named.pt"
    assert named.checkpoint.read_bytes() == given.checkpoint.read_bytes()


def test_samples_are_validation_images_with_adversarial_ones_within_eps(trained: Path) -> None:
    samples = load_checkpoint(trained).samples
    data = image_set()
    np.testing.assert_array_equal(samples.images.numpy(), data.validation.images[:256])
    np.testing.assert_array_equal(samples.labels.numpy(), data.validation.labels[:256])
    for path, adversarial in samples.adversarial.items():
        change = (adversarial.int() - samples.images.int()).abs()
        assert int(change.max()) <= samples.eps * 255, f"{path}: a change of {int(change.max())} levels"
        assert int(change.max()) == int(samples.eps * 255), f"{path}: eps is not used up"


def test_a_seed_gives_the_same_network_and_another_seed_another(trained: Path, tmp_path: Path) -> None:
    train(tmp_path / "same.pt", tiny_config())
    assert not differences(trained, tmp_path / "same.pt")
    train(tmp_path / "other.pt", tiny_config(seed=1))
    assert differences(trained, tmp_path / "other.pt")


def test_training_works_in_bfloat16_and_with_fgsm(tmp_path: Path) -> None:
    config = tiny_config(precision="bf16-mixed", attack=Attack(name="fgsm-rs", eps=0.1, steps=1), epochs=1)
    train(tmp_path / "ckpt.pt", config)
    net = load_checkpoint(tmp_path / "ckpt.pt").net
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_other_options_are_refused_on_resume(trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "ckpt.pt"
    for file, copy in ((trained, output), (state_path(trained), state_path(output))):
        copy.write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match=r"another learning_rate, seed; repeat"):
        Trainer(tiny_config(seed=1, learning_rate=0.2), image_set(), output=output, resume=True)
    with pytest.raises(ConfigError, match="another data_digest"):
        Trainer(tiny_config(), image_set(seed=1), output=output, resume=True)


@pytest.mark.parametrize(
    "damage", ["truncated", "another file", "no optimizer", "no config", "bad thread count", "no best epoch"]
)
def test_a_damaged_state_is_refused_in_one_sentence(trained: Path, tmp_path: Path, damage: str) -> None:
    output = tmp_path / "ckpt.pt"
    output.write_bytes(trained.read_bytes())
    state = dict(torch.load(state_path(trained), weights_only=True))
    content = state_path(trained).read_bytes()
    if damage == "no best epoch":
        output.unlink()
    for key in {"no optimizer": ["optimizer"], "no config": ["config"]}.get(damage, []):
        del state[key]
    if damage == "bad thread count":
        state["threads"] = 10**9
    torch.save(state, state_path(output))
    if damage == "truncated":
        state_path(output).write_bytes(content[:-100])
    if damage == "another file":
        state_path(output).write_bytes(trained.read_bytes())
    words = "no best epoch at" if damage == "no best epoch" else "damaged|is no training state"
    with pytest.raises(CheckpointError, match=rf"^[^\n]*({words})[^\n]*$"):
        Trainer(tiny_config(), image_set(), output=output, resume=True)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_epoch(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^the loss is not finite"):
        train(tmp_path / "ckpt.pt", tiny_config(learning_rate=1e30))
    assert not (tmp_path / "ckpt.pt").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"batch_size": 3},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1.0},
        {"weight_decay": float("nan")},
        {"seed": -1},
    ],
    ids=str,
)
def test_a_bad_option_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^expected .* got .*"):
        tiny_config(**options)


@pytest.mark.parametrize(("option", "name"), [("method", "luck"), ("precision", "half")])
def test_an_unknown_choice_is_refused(option: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^unknown {option} '{name}'; there are "):
        tiny_config(**{option: name})


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most the 48 training images, got 64"):
        Trainer(tiny_config(batch_size=64), image_set(), output=tmp_path / "ckpt.pt")


def test_the_record_is_plain_json(trained: Path) -> None:
    json.dumps(load_checkpoint(trained).training, allow_nan=False)


def test_permuted_channels_are_recorded_with_their_gain(tmp_path: Path) -> None:
    config = tiny_config(structure=Structure(name="2:4"), permute=True, model_arguments={"width": 8}, epochs=1)
    train(tmp_path / "ckpt.pt", config)
    found = load_checkpoint(tmp_path / "ckpt.pt")
    gains = found.training["permutation"]
    assert list(gains) == list(found.net.weight_layers)
    assert sum(gain["after"] - gain["before"] for gain in gains.values()) > 0
    with pytest.raises(ConfigError, match=r"^channels cannot be permuted for channel: "):
        train(tmp_path / "other.pt", tiny_config(permute=True))
