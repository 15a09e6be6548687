"""Networks that users bring: named by them and never by a file, started from weights of theirs."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from networks.convnext import ConvNeXt
from networks.mobile import MobileNet
from smart_eval.cli import main as smart_eval
from smart_train import CheckpointError, ConfigError, Structure, convert, load_checkpoint
from smart_train.architectures.custom import call_factory, import_factory
from smart_train.choices import CUSTOM
from smart_train.cli import main as smart_train
from smart_train.errors import NetworkError
from smart_train.masking.moving_channels import magnitude
from smart_train.masking.plan import MaskPlan
from smart_train.training.loop import Trainer
from train.networks import few_digits, image_set, resnet, tiny_config

CODE = """
import pathlib
from torch import nn

pathlib.Path(__file__).with_name("imported").touch()

def build(*, num_classes, in_channels, width=4, norm=True, note="", **others):
    if others:
        raise RuntimeError("no such\\nthing: " + ", ".join(others))
    layers = [nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

def text(**_):
    return "no network"

def late(**arguments):
    from own_nets_beside import build
    return build(**arguments)

def half(*, num_classes, in_channels):
    return build(num_classes=num_classes, in_channels=in_channels).half()

value = 3
"""
FEW = ["--align", "1", "--epochs", "2", "--batch-size", "128", "--eps", "0.1", "--steps", "1", "--train-images", "256"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with a user's package in it."""
    (tmp_path / "own_nets").mkdir()
    (tmp_path / "own_nets" / "__init__.py").touch()
    (tmp_path / "own_nets" / "tiny.py").write_text(CODE)
    (tmp_path / "own_nets" / "broken.py").write_text("import no_such_module_anywhere")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_nets")]:
        del sys.modules[name]


def invoke(*arguments: str, command: Any = smart_train) -> Result:
    return CliRunner().invoke(command, arguments)


def one_sentence(done: Result, *words: str, start: str) -> None:
    assert (done.exit_code, done.stdout) == (1, ""), done.output
    assert done.stderr.startswith(f"error: {start} ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.slow
def test_the_command_lines_take_a_network_by_its_factory(folder: Path) -> None:
    path_before = list(sys.path)
    own = ["--model", "own_nets.tiny:build"]
    trained = invoke("--data", few_digits(), *own, "--model-arg", "width=6", *FEW, "--json", "-o", "ckpt.pt")
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["paths"]["clean"]["density"] == 0.5
    assert sys.path == path_before
    raw = torch.load("ckpt.pt", weights_only=True)
    assert raw["architecture"] == {"name": CUSTOM, "arguments": {"width": 6}}
    assert raw["training"]["model"] == CUSTOM
    assert raw["factory"] == "own_nets.tiny:build"
    assert Path("ckpt.pt").read_bytes().count(b"own_nets") == 1

    (folder / "own_nets" / "imported").unlink()
    for name in ("own_nets.tiny", "own_nets"):
        del sys.modules[name]
    one_sentence(
        invoke("ckpt.pt", command=smart_eval),
        "holds no code",
        "--model own_nets.tiny:build, as in its training",
        start="no factory",
    )
    assert not (folder / "own_nets" / "imported").exists()
    given = ("ckpt.pt", *own, "--data", few_digits())
    evaluated = invoke(*given, "--steps", "1", "--examples", "20", "--json", command=smart_eval)
    assert evaluated.exit_code == 0, evaluated.output
    one_sentence(invoke("ckpt.pt", *own, "--model-arg", "width=5", command=smart_eval), "tensor '", start="expected")
    one_sentence(
        invoke("ckpt.pt", "--model-arg", "width=5", command=smart_eval),
        "--model-arg needs --model beside it",
        start="--model-arg",
    )
    resumed = invoke("--data", few_digits(), *own, "--model-arg", "width=6", *FEW, "--resume", "-o", "ckpt.pt")
    assert resumed.exit_code == 0, resumed.output


def test_results_of_other_code_are_not_taken(folder: Path) -> None:
    own = ["--model", "own_nets.tiny:build"]
    assert invoke("--data", few_digits(), *own, *FEW, "-o", "ckpt.pt").exit_code == 0
    options = ["ckpt.pt", *own, "--data", few_digits(), "--attack", "clean", "--examples", "40", "--json"]
    kept = ["-o", "results.jsonl", "--resume"]
    first = invoke(*options, *kept, command=smart_eval).stdout
    assert invoke(*options, *kept, command=smart_eval).stdout == first
    assert Path("results.jsonl").read_bytes().count(b"\n") == 2, "the paths, once"
    (folder / "own_nets" / "tiny.py").write_text(CODE.replace("nn.ReLU()", "nn.Hardswish()"))
    for name in ("own_nets.tiny", "own_nets"):
        del sys.modules[name]
    importlib.invalidate_caches()
    changed = invoke(*options, *kept, command=smart_eval).stdout
    assert changed == invoke(*options, command=smart_eval).stdout
    assert Path("results.jsonl").read_bytes().count(b"\n") == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_nets.tiny", "PACKAGE.MODULE:FACTORY, FILE.py:FACTORY"),
        ("own_nets.none:build", "No module named 'own_nets.none'"),
        ("own_nets.broken:build", "no_such_module_anywhere"),
        ("own_nets.tiny:nothing", "has no attribute 'nothing'"),
        ("own_nets.tiny:value", "own_nets.tiny:value is nothing to call but of type int"),
        ("own_nets.tiny:text", "got str"),
        ("own_nets.tiny:half", "got torch.float16 in 0.weight"),
        ("own_nets.tiny:build depth=3", "depth=3 (RuntimeError: no such thing: depth)"),
    ],
)
def test_what_is_wrong_with_a_factory_is_one_sentence(folder: Path, name: str, words: str) -> None:
    model, _, argument = name.partition(" ")
    given = ["--model-arg", argument] if argument else []
    done = invoke("--data", few_digits(), "--model", model, *given, *FEW, "-o", "ckpt.pt")
    assert done.exit_code in {1, 2}
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("ckpt.pt").exists()


def test_a_factory_may_import_what_lies_beside_it_when_it_is_called(folder: Path) -> None:
    (folder / "own_nets_beside.py").write_text("from own_nets.tiny import build")
    path_before = list(sys.path)
    network = import_factory("own_nets.tiny:late")(num_classes=3, in_channels=1)
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
    assert sys.path == path_before


def test_a_recipe_alone_imports_nothing(folder: Path) -> None:
    Path("recipe.toml").write_text('model = "own_nets.tiny:build"\nepochs = 1\n[model_arg]\nwidth = 6\nnorm = false\n')
    arguments = ["--recipe", "recipe.toml", "--data", few_digits(), *FEW, "-o", "ckpt.pt"]
    one_sentence(invoke(*arguments), "type it on the command line too", start="--model own_nets.tiny:build")
    assert not (folder / "own_nets" / "imported").exists()
    done = invoke(*arguments, "--model", "own_nets.tiny:build")
    assert done.exit_code == 0, done.output
    loaded = load_checkpoint(Path("ckpt.pt"), factory=import_factory("own_nets.tiny:build"))
    assert loaded.arguments == {"width": 6, "norm": False}


def train_own(output: Path, factory: Callable[..., nn.Module], **changes: object) -> Path:
    config = tiny_config(model=CUSTOM, model_arguments={"width": 8}, epochs=1, **changes)
    Trainer(config, image_set(), output=output, factory=factory).run()
    return output


@pytest.mark.parametrize("factory", [ConvNeXt, MobileNet])
def test_a_checkpoint_of_ones_own_network_is_read_with_its_factory(
    tmp_path: Path, factory: Callable[..., nn.Module]
) -> None:
    output = train_own(tmp_path / "ckpt.pt", factory, structure=Structure(density=0.5, align=1, scope="all"))
    found = load_checkpoint(output, factory=factory)
    again = load_checkpoint(output, factory=factory)
    images = torch.rand(3, *found.input_shape, generator=torch.Generator().manual_seed(0))
    for path in found.net.path_names:
        kept = [found.net.structure.kept(g.size, bundle=g.bundle) for g in found.net.groups]
        assert [int(m.sum()) for m in found.net.masks(path)] == kept
        assert torch.equal(found.net.path(path)(images), again.net.path(path)(images))
    with pytest.raises(CheckpointError, match="holds no code"):
        load_checkpoint(output)
    with pytest.raises(CheckpointError, match="tensor"):
        load_checkpoint(output, factory=MobileNet if factory is ConvNeXt else ConvNeXt)


def test_a_factory_that_cannot_do_without_values_is_called_with_them(tmp_path: Path) -> None:
    def factory(**given: Any) -> nn.Module:
        network = MobileNet(**given)
        assert bool(network.get_parameter("classifier.0.weight").any())  # stops on the meta device
        return network

    found = load_checkpoint(train_own(tmp_path / "ckpt.pt", MobileNet), factory=factory)
    assert found.arguments == {"width": 8}


def test_what_a_stranger_writes_for_ones_own_network_is_refused(tmp_path: Path) -> None:
    raw = torch.load(
        train_own(tmp_path / "ckpt.pt", ConvNeXt, structure=Structure(density=0.5, align=1, scope="all")),
        weights_only=True,
    )
    group = next(g for g in raw["groups"] if any(m["module"].endswith("scale") for m in g["members"]))
    scale = next(m for m in group["members"] if m["module"].endswith("scale"))
    depthwise = next(m for m in group["members"] if m["module"].endswith("depthwise"))
    for member, key, value in (
        (scale, "module", "first.0.norm.weight"),
        (scale, "axis", "out"),
        (scale, "indices", scale["indices"] + 5),
        (depthwise, "axis", "in"),
    ):
        before, member[key] = member[key], value
        torch.save(raw, tmp_path / "bad.pt")
        with pytest.raises(CheckpointError, match="in a group"):
            load_checkpoint(tmp_path / "bad.pt", factory=ConvNeXt)
        member[key] = before


def test_a_named_network_takes_no_factory(tmp_path: Path) -> None:
    output = tmp_path / "ckpt.pt"
    Trainer(tiny_config(epochs=1), image_set(), output=output).run()
    with pytest.raises(CheckpointError, match="leave --model out"):
        load_checkpoint(output, factory=MobileNet)


def test_calling_a_factory_leaves_the_random_state_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    networks = [call_factory(MobileNet, num_classes=3, in_channels=1, arguments={}, generator_seed=7) for _ in range(2)]
    assert torch.equal(torch.rand(3), expected)
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)


def plain_state(seed: int = 11) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in resnet(seed=seed).state_dict().items()}


def start(output: Path, initial: Path, mode: str = "gradual") -> Trainer:
    config = tiny_config(epochs=1, masks=MaskPlan(mode=mode))
    return Trainer(config, image_set(), output=output, initial=initial)


FORMS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "alone": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "lr": [0.1]},
    "wrapped": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "parameters": lambda state: {n: nn.Parameter(t) if t.is_floating_point() else t for n, t in state.items()},
    "double": lambda state: {n: t.double() if t.is_floating_point() else t for n, t in state.items()},
    "no counters": lambda state: {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")},
    "more counters": lambda state: state | {"conv.num_batches_tracked": torch.tensor(3)},
}


@pytest.fixture
def wide_resnet8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the network of `tiny_config` the one that `resnet` builds."""
    monkeypatch.setattr("smart_train.training.plain_network.build_network", lambda *_, **__: resnet(seed=0))
    monkeypatch.setattr("smart_train.checkpoint.format.build_network", lambda *_, **__: resnet(seed=0))


@pytest.mark.usefixtures("wide_resnet8")
@pytest.mark.parametrize("form", FORMS)
def test_a_training_starts_from_the_weights_of_a_file(tmp_path: Path, form: str) -> None:
    state = plain_state()
    torch.save(FORMS[form](state), tmp_path / "plain.pt")
    net = start(tmp_path / "ckpt.pt", tmp_path / "plain.pt").net
    for path in net.path_names:
        got = net.path(path).network.state_dict()
        assert all(torch.equal(got[name], state[name]) for name in state if not name.endswith("tracked"))
        assert all(bool(mask.all()) for mask in net.masks(path))  # gradual starts dense as ever


@pytest.mark.usefixtures("wide_resnet8")
@pytest.mark.parametrize("mode", ["static", "regrow"])
def test_the_first_masks_are_those_of_the_largest_magnitudes(tmp_path: Path, mode: str) -> None:
    torch.save(plain_state(), tmp_path / "plain.pt")
    net = start(tmp_path / "ckpt.pt", tmp_path / "plain.pt", mode).net
    for path in net.path_names:
        for i, mask in enumerate(net.masks(path)):
            scores = magnitude(net, path, i)
            assert int(mask.sum()) == net.structure.kept(mask.numel())
            assert float(scores[mask].min()) >= float(scores[~mask].max())


@pytest.mark.usefixtures("wide_resnet8")
def test_the_record_says_what_was_started_from_by_its_digest(tmp_path: Path) -> None:
    initial = tmp_path / "plain.pt"
    torch.save(plain_state(), initial)
    output = tmp_path / "ckpt.pt"
    start(output, initial).run()
    assert load_checkpoint(output).training["init_sha256"] == hashlib.sha256(initial.read_bytes()).hexdigest()
    assert str(initial).encode() not in output.read_bytes()
    torch.save(plain_state(seed=12), initial)
    with pytest.raises(ConfigError, match="init_sha256"):
        Trainer(tiny_config(epochs=1), image_set(), output=output, initial=initial, resume=True)


BAD: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda s: {n: t for n, t in s.items() if n != "fc.weight"}, "has: no fc.weight; "),
    "extra": (lambda s: s | {"fc2.weight": torch.ones(2)}, "has: fc2.weight is not in the network; "),
    "shape": (lambda s: s | {"fc.weight": torch.ones(2, 2)}, r"fc.weight has shape \(2, 2\) instead of "),
    "type": (lambda s: s | {"fc.weight": s["fc.weight"].long()}, "fc.weight is torch.int64"),
    "nan": (lambda s: s | {"fc.bias": s["fc.bias"] * float("nan")}, "fc.bias has values that are not finite"),
    "a list": (lambda _: [1, 2], "tensors by name"),
    "empty": (lambda _: {}, "tensors by name"),
    "code": (lambda s: {"state_dict": s, "args": Path("x")}, "not run or loaded"),
}


@pytest.mark.usefixtures("wide_resnet8")
@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    make, words = BAD[kind]
    torch.save(make(plain_state()), tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match=words) as caught:
        start(tmp_path / "ckpt.pt", tmp_path / "plain.pt")
    assert "\n" not in str(caught.value)


def test_a_smart_edge_checkpoint_is_no_file_to_start_from(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"is a smart-edge checkpoint, whose paths .* save what a path has, torch"
    ):
        start(tmp_path / "ckpt.pt", trained)
    torch.save(load_checkpoint(trained).net.path("robust").network.state_dict(), tmp_path / "robust.pt")
    start(tmp_path / "ckpt.pt", tmp_path / "robust.pt")


class Pair(nn.Module):
    """Two convolutions of one size, a batch norm and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.second(torch.relu(self.first(torch.relu(self.stem(images))))))
        scores: torch.Tensor = self.head(self.norm(features).mean((2, 3)))
        return scores


@pytest.mark.parametrize("structure", ["channel", "2:4"])
def test_layers_that_share_a_parameter_are_refused(structure: str) -> None:
    """Both of their masks would act on it."""
    network = Pair()
    network.second.weight = network.first.weight
    with pytest.raises(NetworkError, match=r"got first\.weight and second\.weight that share one"):
        convert(network, example_input=torch.zeros(2, 3, 12, 12), structure=structure, density=None)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("structure", ["channel", "2:4"])
def test_a_weight_that_is_computed_before_each_call_is_refused(structure: str) -> None:
    network = Pair()
    nn.utils.weight_norm(network.first)
    with pytest.raises(NetworkError, match="got first whose weight is computed"):
        convert(network, example_input=torch.zeros(2, 3, 12, 12), structure=structure, density=None)


def test_a_group_of_one_channel_is_none() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.head = nn.Conv2d(3, 1, 3), nn.Linear(1, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.head(torch.relu(self.one(images)).mean((2, 3)))
            return scores

    with pytest.raises(NetworkError, match="it has one channel"):
        convert(Flat(), example_input=torch.zeros(2, 3, 12, 12), density=0.5)


def test_a_factory_that_leaves_python_is_refused() -> None:
    def leave(**_: object) -> nn.Module:
        sys.exit(0)

    with pytest.raises(ConfigError, match=r"^the factory failed, given num_classes="):
        call_factory(leave, num_classes=5, in_channels=3, arguments={}, generator_seed=0)


def test_a_factory_that_does_not_heed_the_classes_is_refused_before_training(tmp_path: Path) -> None:
    def thirteen(*, num_classes: int, in_channels: int) -> nn.Module:
        layers = [nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 13))

    with pytest.raises(ConfigError, match=r"^the network gives 13 scores for \d+ classes"):
        Trainer(tiny_config(model=CUSTOM, model_arguments={}), image_set(), output=tmp_path / "x.pt", factory=thirteen)


def test_a_layer_whose_weights_something_else_reads_keeps_them_all() -> None:
    class Peeking(Pair):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * self.first.weight.mean()

    net = convert(Peeking(), example_input=torch.zeros(2, 3, 12, 12), structure="2:4", density=None)
    assert net.weight_layers == ("second",)
    assert "something else reads them" in net.dense_layers["first"]


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_a_lazy_layer_is_refused() -> None:
    def lazy(*, num_classes: int, in_channels: int) -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

    with pytest.raises(ConfigError, match=r"0\.weight belongs to a lazy layer, which does not know its size"):
        call_factory(lazy, num_classes=5, in_channels=3, arguments={}, generator_seed=0)
