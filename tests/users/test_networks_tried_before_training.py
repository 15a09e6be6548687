"""Networks of users' own that stopped hours later, with a traceback: they work, or one sentence says why at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from smart_train import NetworkError, convert
from smart_train.choices import CUSTOM
from smart_train.cli import main as smart_train
from smart_train.data.extra import ExtraImages
from smart_train.training.loop import Trainer
from smart_train.training.refinements import Refinements
from smart_train.training.trial_run import try_out
from train.networks import different, few_digits, image_set, tiny_config
from users.own_networks import Small

CODE = """
import collections
import torch
from torch import nn

Outputs = collections.namedtuple("Outputs", "logits aux")

class Net(nn.Module):
    def __init__(self, *, num_classes, in_channels, kind=""):
        super().__init__()
        self.kind, self.seen = kind, None
        self.first, self.second = nn.Conv2d(in_channels, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
        self.norm, self.drop, self.head = nn.BatchNorm2d(16), nn.Dropout(0.2), nn.Linear(16, num_classes)
        if kind == "script":
            self.second = torch.jit.script(self.second)
        if kind == "hook":
            self.second.register_forward_hook(lambda module, given, output: output * 1.5)
        if kind == "watching hook":
            self.second.register_forward_hook(lambda module, given, output: None)

    def forward(self, images):
        features = self.norm(self.second(self.first(images).relu())).relu()
        if self.kind == "keeps":
            self.seen = features
        if self.kind == "breaks in training" and self.training:
            raise KeyError("no such\\nkey")
        pooled = features.mean((2, 3))
        if self.kind == "control flow" and float(pooled.detach().sum()) > 1e9:
            pooled = pooled * 2
        scores = self.head(self.drop(pooled))
        if self.kind == "tuple" and self.training:
            return Outputs(scores, scores)
        if self.kind == "dictionary" and self.training:
            return {"out": scores}
        return scores

def build(**given):
    return Net(**given)
"""
FEW = ["--data", few_digits(), "--align", "1", "--epochs", "2", "--batch-size", "128", "--eps", "0.1", "--steps", "1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "tried_net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("tried_net", None)


def train(kind: str, *more: str) -> Result:
    model = ["--model", "tried_net:build", "--model-arg", f"kind={kind}"]
    return CliRunner().invoke(smart_train, [*FEW, "--train-images", "256", *model, *more, "-o", "ckpt.pt"])


REFUSED = {
    "tuple": "Net gives Outputs with 2 outputs in training mode instead of scores",
    "dictionary": "Net gives dict with 1 outputs in training mode instead of scores",
    "script": "second is made by torch.jit.script, whose weights several paths cannot share",
    "hook": "what the forward hook of 'network.second' does is lost in 'clean'",
    "control flow": "torch.onnx.export cannot convert the network",
    "breaks in training": "the network's own code stopped, called by Net.forward on 2 images: KeyError: 'no such",
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_stop_hours_later_stops_at_once_in_one_sentence(folder: Path, kind: str) -> None:
    done = train(kind)
    assert (done.exit_code, done.stdout) == (1, ""), done.output
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: {REFUSED[kind]}"), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["tried_net.py"]


@pytest.mark.parametrize("kind", ["keeps", "watching hook"])
def test_what_harms_nothing_trains(folder: Path, kind: str) -> None:
    done = train(kind)
    assert done.exit_code == 0, done.output
    assert (folder / "ckpt.pt").exists()


def test_the_trial_may_be_left_out(folder: Path) -> None:
    done = train("control flow", "--no-trial")
    assert done.exit_code == 0, done.output
    assert "trying the whole way" not in done.stderr


def small(**given: Any) -> nn.Module:
    torch.rand(3)  # a factory draws from the global state
    network = Small(**given)
    network.norm = nn.Sequential(network.norm, nn.Dropout(0.3))
    return network


@pytest.mark.parametrize("more", [{}, {"extra_share": 0.5, "awp": 0.01, "awp_from": 2, "average": "swa"}])
def test_a_trial_leaves_the_training_as_it_was_to_the_bit(tmp_path: Path, more: dict[str, Any]) -> None:
    states = []
    extra = ExtraImages(image_set().train, "0" * 64) if more else None
    for tried in (False, True):
        torch.manual_seed(3)
        output = tmp_path / f"{tried}.pt"
        config = tiny_config(model=CUSTOM, model_arguments={}, epochs=2, refinements=Refinements(**more))
        trainer = Trainer(config, image_set(), output=output, factory=small, extra=extra)
        if tried:
            try_out(trainer, factory=small, export=lambda _: None)
        trainer.run()
        states.append(trainer.net.state_dict())
    assert different(*states) == []


def test_an_exception_of_the_networks_own_code_is_one_sentence_wherever_it_comes() -> None:
    def picky(features: Tensor) -> Tensor:
        if float(features.detach().abs().max()) > 1e3:
            raise ValueError("values beyond\nanything")
        return features

    path = convert(Small(pooled=picky), example_input=torch.zeros(2, 3, 16, 16), align=1).path("clean").eval()
    with pytest.raises(NetworkError, match=r"^the network's own code stopped, .* ValueError: values beyond anything;"):
        path(torch.full((1, 3, 16, 16), 1e9))


def test_a_lack_of_memory_stays_one() -> None:
    def hungry(raised: Exception) -> Callable[[Tensor], Tensor]:
        def forward(features: Tensor) -> Tensor:
            if features.shape[0] == 9:
                raise raised
            return features

        return forward

    for error in (MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: no memory")):
        path = convert(Small(pooled=hungry(error)), example_input=torch.zeros(2, 3, 16, 16), align=1).path("clean")
        with pytest.raises(type(error)) as caught:
            path(torch.zeros(9, 3, 16, 16))
        assert caught.value is error
