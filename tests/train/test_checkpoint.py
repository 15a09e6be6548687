from __future__ import annotations

import contextlib
import copy
import io
import os
import pickle
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from smart_train import Checkpoint, CheckpointError, ConfigError, Structure, load_checkpoint, save_checkpoint
from smart_train.architectures.build import ARCHITECTURES, build_network
from smart_train.checkpoint.format import describe
from smart_train.checkpoint.network_state import network_state
from smart_train.checkpoint.reader import save_atomically
from smart_train.training.loop import Trainer
from smart_train.training.state import state_path
from train.networks import different, image_set, tiny_config

Raw = dict[str, Any]


@pytest.fixture(scope="module")
def raw(trained: Path) -> Raw:
    return dict(torch.load(trained, weights_only=True))


def refused(path: Path, words: str = "expected |is damaged or no ") -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def save(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def flat(net_state: Raw) -> dict[str, Tensor]:
    parts = {"shared": net_state["shared"], **net_state["paths"]}
    return {f"{part}/{name}": t for part, tensors in parts.items() for name, t in tensors.items()}


def test_what_is_written_is_read_again(trained: Path, tmp_path: Path) -> None:
    first = load_checkpoint(trained)
    save_checkpoint(first, tmp_path / "again.pt")
    second = load_checkpoint(tmp_path / "again.pt")
    assert not different(flat(network_state(first.net)), flat(network_state(second.net)))
    for path in first.net.path_names:
        assert all(torch.equal(a, b) for a, b in zip(first.net.masks(path), second.net.masks(path), strict=True))
        images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(first.net.path(path)(images), second.net.path(path)(images))
    plain = ("architecture", "arguments", "input_shape", "class_names", "mean", "std", "training", "metrics")
    assert {n: getattr(first, n) for n in plain} == {n: getattr(second, n) for n in plain}
    assert torch.equal(first.samples.images, second.samples.images)
    assert describe(first) == describe(second)
    assert not any(m.training for m in second.net.modules())


def test_a_path_may_be_text(trained: Path, tmp_path: Path) -> None:
    save_checkpoint(load_checkpoint(str(trained)), f"{tmp_path}/again.pt")
    assert (tmp_path / "again.pt").is_file()


def test_a_checkpoint_names_no_path_of_the_machine(trained: Path) -> None:
    content = trained.read_bytes()
    assert str(trained.parent).encode() not in content
    assert os.fsencode(Path.home()) not in content


def places(value: object, where: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Every place in nested dictionaries and lists."""
    yield where
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*where, key))


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(200):
        value = [value]
    return value


def doubling() -> list[Any]:
    """Thirty short lists, each twice in the next: a billion values for whoever walks through them."""
    value: list[Any] = [1]
    for _ in range(30):
        value = [value, value]
    return value


NASTY: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "true": lambda: True,
    "zero": lambda: 0,
    "negative": lambda: -1,
    "huge": lambda: 10**400,
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "word": lambda: "a/b.c",
    "empty list": list,
    "empty dict": dict,
    "numbers as keys": lambda: {1: 2},
    "deep": deep,
    "doubling": doubling,
    "scalar tensor": lambda: torch.tensor(1.0),
    "nan tensor": lambda: torch.full((4,), float("nan")),
    "claimed tensor": lambda: torch.zeros(1).expand(10**12),
    "claimed indices": lambda: torch.zeros(1, dtype=torch.int64).expand(8, 10**11),
    "sparse tensor": lambda: torch.eye(3).to_sparse(),
    "meta tensor": lambda: torch.empty(10**12, device="meta"),
    "complex tensor": lambda: torch.zeros(3, dtype=torch.complex64),
    "quantised tensor": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8),
    "parameter": lambda: torch.nn.Parameter(torch.ones(4)),
    "shape": lambda: torch.Size([1, 2]),
    "dtype": lambda: torch.float32,
}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:.*quantize.*:DeprecationWarning", "ignore:.*quantized.*:UserWarning")
def test_any_value_anywhere_is_refused_in_one_sentence_or_harmless(
    raw: Raw, tmp_path: Path, data: st.DataObject
) -> None:
    damaged = copy.deepcopy(raw)
    *outer, last = data.draw(st.sampled_from([p for p in places(raw) if p]))
    nasty = data.draw(st.sampled_from(["delete", *NASTY]))
    inside: Any = damaged
    for key in outer:
        inside = inside[key]
    if nasty == "delete":
        del inside[last]
    else:
        inside[last] = NASTY[nasty]()
    path = save(damaged, tmp_path / "damaged.pt")
    try:
        found = load_checkpoint(path)
    except CheckpointError as error:
        words = str(error)
    else:
        words = ""
        assert isinstance(found, Checkpoint)
        describe(found)
        assert found.net.path("clean")(torch.zeros(1, *found.input_shape)).shape == (1, len(found.class_names))
    assert "\n" not in words
    assert len(words) < 2000


def test_very_many_tuples_are_refused_before_a_dictionary_of_them_is_filled(tmp_path: Path) -> None:
    """They can be made to share one hash, and then it takes minutes."""
    refused(save({(i, i): None for i in range(2000)}, tmp_path / "x.pt"))


@pytest.mark.filterwarnings("ignore:.*quantize.*:DeprecationWarning", "ignore:.*quantized.*:UserWarning")
@pytest.mark.parametrize("nasty", NASTY)
def test_a_file_that_holds_only_that_is_refused(tmp_path: Path, nasty: str) -> None:
    refused(save(NASTY[nasty](), tmp_path / "x.pt"))
    refused(save({"format": NASTY[nasty]()}, tmp_path / "x.pt"))


def changed(raw: Raw, where: str, value: object) -> Raw:
    damaged: Any = copy.deepcopy(raw)
    *outer, last = [int(k) if k.isdigit() else k for k in where.split("/")]
    inside = damaged
    for key in outer:
        inside = inside[key]
    inside[last] = value
    return dict(damaged)


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        ("format_version", 3, "update smart-edge"),
        ("architecture/name", "resnet1001", "unknown model 'resnet1001'; did you mean resnet"),
        ("architecture/arguments", {"depth": 3}, "has no argument depth, only width"),
        ("architecture/arguments", {"width": 10**9}, "width from 1"),
        ("architecture/arguments", {"width": 8}, "tensor"),
        ("class_names", ["a", "b"], "tensor"),
        ("paths", ["clean", "dense"], "path names"),
        ("structure/density", 0.0, "density"),
        ("normalisation/std", [0.0], "std above 0"),
        ("samples/eps", 3.0, "eps in"),
        ("samples/labels", torch.zeros(12, dtype=torch.int64) + 3, "labels of its classes"),
        ("masks/clean/0", torch.zeros(4, dtype=torch.bool), "keep 2 of 4 channels"),
        ("groups/0/members/0/indices", torch.tensor([[0], [1], [2], [2]]), "in one group"),
        ("groups/0/members/0/indices", torch.tensor([[0], [1], [2], [4]]), "channel numbers"),
        ("groups/0/points", [], "mask point"),
        ("groups", [], "one or more groups"),
        ("class_names", ["a", "b", "\x1b[31m"], "names"),
        ("training", {"method": "\x1b[31m"}, "plain values"),
        ("metrics/clean", {"eps": "x"}, "'eps'"),
        ("training", {"seconds": float("inf")}, "plain values"),
        ("training", deep(), "'training'"),
        ("training", {"x": doubling()}, "less depth and length"),
        ("training", {"x": ["y" * 10_000] * 1000}, "less depth and length"),
        ("training", {"\x1b[31m": 1}, "plain values"),
        ("architecture/arguments", {f"a{i}": 1 for i in range(17)}, "at most 16 model arguments"),
        ("architecture/name", "x" * 2000, "up to 1024 characters"),
        ("class_names", ["a"], "from 2 to 65536"),
        ("class_names", ["a"] * 70_000, "from 2 to 65536"),
        ("class_names", ["a", "b", "c" * 2000], "up to 1024 characters"),
        ("paths", ["clean", "clean"], "different path names"),
        ("paths", ["clean"] * 17, "from 1 to 16"),
        ("structure/density", 1.0, "keep 4 of 4 channels"),
        ("masks/clean/0", torch.tensor([True, False, False, False]), "keep 2 of 4 channels"),
        ("masks/robust/1", torch.ones(8, dtype=torch.bool), "keep 4 of 8 channels"),
        ("groups/0/name", "a\nb", "printable text"),
        ("groups/0/points", [{"layer": "blocks.0.bn1", "producer": "blocks.0.conv1"}] * 1000, "no more than"),
        ("metrics/clean", {"clean_accuracy": 1.5}, r"clean_accuracy in \[0, 1\]"),
        ("metrics/robust", {"robust_interval": [0.0, 2.0]}, r"robust_interval in \[0, 1\]"),
        ("metrics/robust", {"robust_interval": [0.0]}, "2 numbers 'robust_interval'"),
        ("metrics/clean", {"examples": -1}, "a count 'examples'"),
        ("samples/attack", "\x1b[31m", "printable text"),
        ("samples/labels", torch.zeros(257, dtype=torch.int64), "from 1 to 256 samples"),
        ("samples/labels", torch.zeros(12, dtype=torch.int64) - 1, "labels of its classes"),
        ("samples/eps", -0.1, "eps in"),
        ("samples/eps", 0.0, "samples of path clean within eps"),
    ],
)
def test_each_lie_is_named_before_anything_is_built(
    raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, where: str, value: object, words: str
) -> None:
    monkeypatch.setattr("smart_train.checkpoint.format.SmartNetwork", None)  # whoever builds one meets a TypeError
    refused(save(changed(raw, where, value), tmp_path / "x.pt"), words)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with masks of single weights, beside those of channels."""
    output = tmp_path_factory.mktemp("single") / "ckpt.pt"
    structure = Structure(name="channel+2:4", align=4)
    Trainer(tiny_config(structure=structure, model_arguments={"width": 8}), image_set(), output=output).run()
    return output


def test_masks_of_single_weights_are_written_and_read_again(single: Path, tmp_path: Path) -> None:
    first = load_checkpoint(single)
    save_checkpoint(first, tmp_path / "again.pt")
    second = load_checkpoint(tmp_path / "again.pt")
    assert second.net.weight_layers == first.net.weight_layers != ()
    assert second.net.dense_layers == first.net.dense_layers
    assert first.net.dense_layers == {"conv": "it reads the image", "fc": "it makes the scores"}
    for path in first.net.path_names:
        assert not different(first.net.weight_masks(path), second.net.weight_masks(path))
        images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(first.net.path(path)(images), second.net.path(path)(images))
    assert describe(first) == describe(second)


def flipped(mask: Tensor) -> Tensor:
    return mask.clone().index_put((torch.tensor(0), torch.tensor(0)), ~mask[0, 0])


LAYER = "blocks.1.conv2"


def rolled(raw: Raw) -> None:
    """As many weights, but in the place of channels that are not kept."""
    raw["weight_masks"]["clean"][LAYER] = raw["weight_masks"]["clean"][LAYER].roll(1, dims=1)


WEIGHT_MASK_LIES: dict[str, tuple[Callable[[Raw], object], str]] = {
    "none at all": (lambda raw: raw.pop("weight_masks"), "weight_masks"),
    "of one path": (lambda raw: raw["weight_masks"].pop("robust"), "robust"),
    "of no layer": (lambda raw: raw.update(weight_masks={"clean": {}, "robust": {}}), "one or more"),
    "of another layer on each path": (lambda raw: raw["weight_masks"]["clean"].pop(LAYER), "same layers"),
    "of no layer of the network": (
        lambda raw: [masks.update({"x": masks.pop(LAYER)}) for masks in raw["weight_masks"].values()],
        "same layers",
    ),
    "of another shape": (
        lambda raw: raw["weight_masks"]["clean"].update({LAYER: torch.ones(2, dtype=torch.bool)}),
        f"tensor '{LAYER}'",
    ),
    "of numbers": (
        lambda raw: raw["weight_masks"]["clean"].update({LAYER: raw["weight_masks"]["clean"][LAYER].float()}),
        f"tensor '{LAYER}'",
    ),
    "one bit": (
        lambda raw: raw["weight_masks"]["clean"].update({LAYER: flipped(raw["weight_masks"]["clean"][LAYER])}),
        "weight mask of blocks.1.conv2 on path clean that keeps what channel.2:4 says",
    ),
    "in other channels": (rolled, "keeps what channel.2:4 says"),
    "another pattern": (lambda raw: raw["structure"].update(name="channel+1:4"), "keeps what channel.1:4 says"),
    "another structure": (
        lambda raw: raw["structure"].update(name="block"),
        "unknown structure 'block'; there are ",
    ),
    "reasons that clear a terminal": (lambda raw: raw.update(dense_layers={"fc": "\x1b[2J"}), "dense_layers"),
    "reasons as numbers": (lambda raw: raw.update(dense_layers={"fc": 1}), "'fc'"),
}


@pytest.mark.parametrize("lie", WEIGHT_MASK_LIES)
def test_each_lie_about_single_weights_is_named_before_anything_is_built(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    monkeypatch.setattr("smart_train.checkpoint.format.SmartNetwork", None)
    raw = dict(torch.load(single, weights_only=True))
    tell, words = WEIGHT_MASK_LIES[lie]
    tell(raw)
    refused(save(raw, tmp_path / "x.pt"), words)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["weight_masks", "dense_layers", "structure"])
@pytest.mark.filterwarnings("ignore:.*quantize.*:DeprecationWarning", "ignore:.*quantized.*:UserWarning")
def test_any_value_in_what_is_said_of_single_weights_is_refused_or_harmless(
    single: Path, tmp_path: Path, key: str
) -> None:
    raw = dict(torch.load(single, weights_only=True))
    for where in places({key: raw[key]}):
        for nasty in NASTY if where else ():
            damaged: Any = copy.deepcopy(raw)
            inside = damaged
            for step in where[:-1]:
                inside = inside[step]
            inside[where[-1]] = NASTY[nasty]()
            with contextlib.suppress(CheckpointError):
                describe(load_checkpoint(save(damaged, tmp_path / "x.pt")))


@pytest.mark.parametrize("path", ["clean", "robust"])
def test_adversarial_samples_may_differ_by_eps_and_no_more(raw: Raw, tmp_path: Path, path: str) -> None:
    near, far = copy.deepcopy(raw), copy.deepcopy(raw)
    images = torch.full_like(raw["samples"]["images"], 100)
    for damaged, by in ((near, 25), (far, 26)):  # eps is 0.1, which are 25.5 levels
        damaged["samples"]["images"] = images
        damaged["samples"]["adversarial"] = dict.fromkeys(raw["paths"], images)
        changed_images = images.clone()
        changed_images[-1, -1, -1, -1] -= by
        damaged["samples"]["adversarial"] = damaged["samples"]["adversarial"] | {path: changed_images}
    load_checkpoint(save(near, tmp_path / "near.pt"))
    refused(save(far, tmp_path / "far.pt"), f"samples of path {path} within eps")


def test_a_tensor_stored_as_the_negative_of_its_bytes_is_refused(raw: Raw, tmp_path: Path) -> None:
    """NumPy does not take one, so it would stop whoever uses the samples."""
    shared = raw["state"]["shared"]
    negative = shared | {"fc.weight": torch._neg_view(shared["fc.weight"])}
    refused(save(changed(raw, "state/shared", negative), tmp_path / "x.pt"), "fc.weight")


def rewritten(source: Path, path: Path, *, pickle_bytes: bytes, name: str = "data.pkl") -> Path:
    """Copy a checkpoint with another pickle, under another name if given."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.namelist():
            ours = entry.endswith("data.pkl")
            add(new, entry.replace("data.pkl", name) if ours else entry, pickle_bytes if ours else old.read(entry))
    return path


def add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add an entry as torch.save does: without the file mode that zipfile gives it, which is refused for itself."""
    info = zipfile.ZipInfo(name)
    archive.writestr(info, content)
    info.external_attr = 0


def pickle_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def test_the_rewritten_file_is_read_when_nothing_was_changed(trained: Path, tmp_path: Path) -> None:
    load_checkpoint(rewritten(trained, tmp_path / "x.pt", pickle_bytes=pickle_of(trained)))


MIB_512 = (2**29).to_bytes(4, "little")

HOSTILE_PICKLES = {
    "a bytearray of any length": b"\x80\x02cbuiltins\nbytearray\nJ" + MIB_512 + b"\x85R.",
    "the same by Python 2's name": b"\x80\x02c__builtin__\nbytearray\nJ" + MIB_512 + b"\x85R.",
    "a text in any codec": b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x08\0\0\0punycode\x86R.",
    "a number of any length": b"\x80\x02\x8a\x09" + b"\x01" * 9 + b".",
    "more values than any checkpoint has": b"\x80\x02" + b"]" * (4 * 2**20) + b".",
}


@pytest.mark.parametrize("name", ["data.pkl", "DATA.PKL"])  # torch finds both
@pytest.mark.parametrize("what", HOSTILE_PICKLES)
def test_what_torch_would_read_without_bounds_is_refused_unread(
    trained: Path, tmp_path: Path, what: str, name: str
) -> None:
    path = rewritten(trained, tmp_path / "x.pt", pickle_bytes=HOSTILE_PICKLES[what], name=name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, "was not run or loaded")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100


def test_two_entries_that_torch_takes_for_one_are_refused(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(trained.read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        add(archive, "archive/DATA.PKL", pickle_of(trained))
    refused(path, "was not run or loaded")


def cut_last_row(state: Raw) -> None:
    state["progress"]["history"].pop()


def wrong_momentum(state: Raw) -> None:
    state["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(2)


def one_mask_less(state: Raw) -> None:
    state["masks"]["clean"].pop()


DAMAGED_STATES: dict[str, Callable[[Raw], object]] = {
    "version as a tensor": lambda state: state.update(format_version=torch.tensor([2, 2])),
    "threads as a tensor": lambda state: state.update(threads=torch.tensor([1, 1])),
    "threads as a fraction": lambda state: state.update(threads=1.0),
    "option as a tensor": lambda state: state["config"].update(seed=torch.tensor([0, 0])),
    "option that clears a terminal": lambda state: state["config"].update({"\x1b[2J": 1}),
    "epoch as a text": lambda state: state["progress"].update(epoch="4"),
    "epoch after the last": lambda state: state["progress"].update(epoch=5),
    "best as a tensor": lambda state: state["progress"].update(best=torch.tensor(0.5)),
    "a row of texts": lambda state: state["progress"]["history"][0].update(epoch="1"),
    "a row missing": cut_last_row,
    "momentum of another shape": wrong_momentum,
    "a mask missing": one_mask_less,
}


@pytest.mark.parametrize("damage", DAMAGED_STATES)
def test_a_damaged_training_state_is_refused_in_one_sentence(trained: Path, tmp_path: Path, damage: str) -> None:
    output = tmp_path / "ckpt.pt"
    output.write_bytes(trained.read_bytes())
    state = dict(torch.load(state_path(trained), weights_only=True))
    DAMAGED_STATES[damage](state)
    torch.save(state, state_path(output))
    with pytest.raises(CheckpointError, match=r"^[^\n]*(damaged|expected )[^\n]*$"):
        Trainer(tiny_config(), image_set(), output=output, resume=True)


def test_a_state_with_options_that_we_lack_is_another_training(trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "ckpt.pt"
    state = dict(torch.load(state_path(trained), weights_only=True))
    state["config"]["later"] = 1
    torch.save(state, state_path(output))
    with pytest.raises(ConfigError, match="another set of options; repeat"):
        Trainer(tiny_config(), image_set(), output=output, resume=True)


def test_a_small_file_that_claims_a_giant_network_takes_no_memory(raw: Raw, tmp_path: Path) -> None:
    arguments = {"width": 4096}
    with torch.device("meta"):
        giant = build_network("resnet34", num_classes=3, in_channels=1, arguments=arguments, generator_seed=0)
    state = {n: torch.zeros([1] * t.dim(), dtype=t.dtype).expand(t.shape) for n, t in giant.state_dict().items()}
    shared = set(raw["state"]["shared"]) | {n for n, t in state.items() if t.dim() > 1 or n.startswith("fc")}
    claimed = copy.deepcopy(raw)
    claimed["architecture"] = {"name": "resnet34", "arguments": arguments}
    own = {n: t for n, t in state.items() if n not in shared}
    claimed["state"] = {
        "shared": {n: t for n, t in state.items() if n in shared},
        "paths": {"clean": own, "robust": own},
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(save(claimed, tmp_path / "giant.pt"), "no larger than the file")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 300, f"{grown:.0f} MiB were taken"


class Runs:
    """A pickle that makes a file when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self.trace), 0o700)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "inside a checkpoint"])
def test_a_pickle_that_runs_code_runs_nothing_and_is_refused(raw: Raw, tmp_path: Path, form: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Runs(trace)))
    else:
        value = raw | {"training": Runs(trace)} if form == "inside a checkpoint" else Runs(trace)
        torch.save(value, path, _use_new_zipfile_serialization=form != "legacy")
    refused(path, "was not run or loaded")
    assert not trace.exists(), "the code ran"


def test_a_checkpoint_in_the_legacy_form_is_refused(raw: Raw, tmp_path: Path) -> None:
    torch.save(raw, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pt", "was not run or loaded")


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_file_is_refused(trained: Path, tmp_path: Path, cut: float) -> None:
    content = trained.read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(cut * len(content))])
    refused(tmp_path / "cut.pt")


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_is_refused_or_changes_nothing(trained: Path, tmp_path: Path, where: float, bit: int) -> None:
    content = bytearray(trained.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    path = tmp_path / "flipped.pt"
    path.write_bytes(content)
    try:
        found = load_checkpoint(path)
    except CheckpointError:
        return
    assert not different(flat(network_state(found.net)), flat(network_state(load_checkpoint(trained).net)))


def test_a_compressed_archive_is_refused_before_it_is_unpacked(trained: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(trained) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, bytes(2**28) if name.endswith("/data/0") else source.read(name))
    assert bomb.stat().st_size < 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(bomb, "is damaged or no ")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100


@pytest.mark.parametrize("what", ["nothing", "a folder", "an empty file", "a zip of other things"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.pt"
    if what == "a folder":
        path.mkdir()
    elif what == "an empty file":
        path.touch()
    elif what == "a zip of other things":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    refused(path, "no checkpoint at" if what == "nothing" else "is damaged or no smart-edge checkpoint")


def test_a_write_that_fails_half_way_leaves_the_old_file_whole(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    path.write_bytes(trained.read_bytes())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # the system refuses more bytes in any file
    try:
        with pytest.raises((OSError, RuntimeError)):
            save_atomically({"much": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == trained.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"]


def test_lists_nested_deeper_than_python_recurses_are_refused(trained: Path, tmp_path: Path) -> None:
    deep_lists = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    refused(rewritten(trained, tmp_path / "deep.pt", pickle_bytes=deep_lists), "got another file")


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    path.with_name(".ckpt.pt.0123456789abcdef.tmp").write_bytes(b"half")
    save_atomically({"a": 1}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"]
    assert torch.load(path, weights_only=True) == {"a": 1}


def test_every_architecture_builds_from_its_name_and_the_seed_alone() -> None:
    for name in ARCHITECTURES:
        state = torch.random.get_rng_state()
        first, second = (
            build_network(name, num_classes=3, in_channels=2, arguments={"width": 2}, generator_seed=4)
            for _ in range(2)
        )
        assert torch.equal(torch.random.get_rng_state(), state), "the global random state moved"
        assert not different(first.state_dict(), second.state_dict())
        buffer = io.BytesIO()
        torch.save(first.state_dict(), buffer)
        assert first(torch.rand(2, 2, 9, 7)).shape == (2, 3)
