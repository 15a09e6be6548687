"""What users reported whose classes have names in other scripts, or whose terminal knows ASCII only."""

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
from PIL import Image
from torch import nn

from runtime.bundles import CLASS_NAMES, HEIGHT, WIDTH, random_images, write_bundle
from smart_common.errors import few, shortened
from smart_common.names import MAX_NAME, is_name, is_printable
from smart_runtime.bundle.bundle import Bundle
from smart_train.checkpoint.format import Checkpoint, Samples, load_checkpoint, save_checkpoint
from smart_train.choices import CUSTOM
from smart_train.data.load import load_data
from smart_train.errors import CheckpointError, DataError
from train.networks import resnet, smart

PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"  # with a zero-width non-joiner
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # three people and two zero-width joiners
GOOD = [
    "Katze",
    "\u732b\u3000\u72ac",
    PERSIAN,
    FAMILY,
    "\u0915\u094d\u200d\u0937",
    "a\u00a0b",
    "so\u00adft",
    "\u200f\u05e9\u05dc\u05d5\u05dd",
]
HOSTILE = ["\u202eevil", "a\u2066b", "a\x1b[2J", "a\nb", "a\u2028b", "\udc80", "", "x" * (MAX_NAME + 1)]


def checkpoint(names: tuple[str, ...]) -> Checkpoint:
    net = smart(density=1.0)
    images = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    return Checkpoint(
        architecture=CUSTOM,
        arguments={},
        input_shape=(1, 8, 8),
        class_names=names,
        mean=(0.0,),
        std=(1.0,),
        net=net,
        samples=Samples(
            images, torch.zeros(1, dtype=torch.int64), dict.fromkeys(net.path_names, images), 0.1, "pgd20x1"
        ),
        metrics={path: {} for path in net.path_names},
    )


def factory(*, num_classes: int, in_channels: int) -> nn.Module:
    assert in_channels == 1
    return resnet(classes=num_classes)


def others(name: str, count: int) -> tuple[str, ...]:
    return (name, *(f"class{i}" for i in range(1, count)))


def arrays(names: tuple[str, ...]) -> dict[str, Any]:
    images, labels = np.zeros((20, 8, 8, 1), np.uint8), np.arange(20) % len(names)
    return {
        "train_images": images,
        "train_labels": labels,
        "test_images": images,
        "test_labels": labels,
        "class_names": np.array(names),
    }


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_a_class_may_have_a_name_in_any_script(tmp_path: Path, name: str) -> None:
    names = others(name, 3)
    np.savez(tmp_path / "a.npz", **arrays(names))
    assert load_data(tmp_path / "a.npz").class_names == names
    save_checkpoint(checkpoint(names), tmp_path / "ckpt.pt")
    assert load_checkpoint(tmp_path / "ckpt.pt", factory=factory).class_names == names
    bundle = with_names(tmp_path / "bundle", others(name, len(CLASS_NAMES)))
    assert Bundle.open(bundle).manifest.class_names[0] == name
    assert few([name]) == " ".join(name.split())


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:20])
def test_a_name_that_steers_the_terminal_is_refused_before_it_is_saved(tmp_path: Path, name: str) -> None:
    names = others(name, 3)
    np.savez(tmp_path / "a.npz", **arrays(names))
    with pytest.raises(DataError, match="printable class names"):
        load_data(tmp_path / "a.npz")
    save_checkpoint(checkpoint(others("good", 3)), tmp_path / "ckpt.pt")
    before = (tmp_path / "ckpt.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"class name .* rename the class"):
        save_checkpoint(checkpoint(names), tmp_path / "ckpt.pt")
    assert (tmp_path / "ckpt.pt").read_bytes() == before
    assert is_printable(shortened(name))
    assert not is_name(name)


def with_names(path: Path, names: tuple[str, ...]) -> Path:
    def named(document: dict[str, Any]) -> None:
        document["additional_metadata"]["smart_edge"]["class_names"] = list(names)

    return write_bundle(path, change=named)


NARROW = {
    "PYTHONIOENCODING=ascii": {"PYTHONIOENCODING": "ascii"},
    "LC_ALL=C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
}


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["", "--json"])
@pytest.mark.parametrize("narrow", NARROW.values(), ids=NARROW)
def test_names_that_the_terminal_lacks_are_escaped(tmp_path: Path, narrow: dict[str, str], as_json: list[str]) -> None:
    bundle = with_names(tmp_path / "bundle", tuple(f"{PERSIAN} {i}" for i in range(len(CLASS_NAMES))))
    Image.fromarray(random_images(1, seed=3)[0]).resize((WIDTH, HEIGHT)).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "smart_runtime.cli", "infer", str(bundle), str(tmp_path / "a.png")]
    done = subprocess.run([*command, *as_json], capture_output=True, env=os.environ | narrow, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    out = done.stdout.decode("ascii" if not as_json else "utf-8", errors="replace")
    if as_json:
        assert json.loads(out)["results"][0]["predictions"][0]["class"].startswith(PERSIAN)
    else:
        assert ascii(PERSIAN)[1:-1] in out


def test_an_error_with_such_a_name_is_one_line(tmp_path: Path) -> None:
    for name in (f"{PERSIAN} 1", f"{PERSIAN} 2"):
        for i in range(6):
            file = tmp_path / "own" / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "smart_train.cli", "--data", f"folder:{tmp_path / 'own'}", "-o", str(tmp_path / "c.pt")],
        capture_output=True,
        env=os.environ | NARROW["PYTHONIOENCODING=ascii"],
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: cannot read "), done.stderr
    assert done.stderr.count(b"\n") == 1
    assert ascii(PERSIAN)[1:-1].encode() in done.stderr
