"""A bundle of two networks that share nothing: verified, judged, run and switched as any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from export.singles import single
from smart_common.roles import Role
from smart_eval.models import open_bundle, read_source
from smart_export import ExportError, build_bundle
from smart_export.cli import main as smart_export
from smart_export.sources import read_sources
from smart_runtime import Bundle, SmartModel
from smart_runtime.cli import main as smart_run
from smart_train import Checkpoint, ConfigError, load_checkpoint
from smart_train.checkpoint.format import save_checkpoint


@pytest.fixture(scope="module")
def pair() -> dict[str, Checkpoint]:
    return {"clean": single("standard", width=8, seed=0), "robust": single("robust", width=16, seed=1)}


@pytest.fixture(scope="module")
def bundle(pair: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bundle(pair, output=tmp_path_factory.mktemp("pair") / "bundle", target="cpu", random_images=8).bundle


def test_each_path_answers_as_its_own_network(pair: dict[str, Checkpoint], bundle: Path) -> None:
    images = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    with SmartModel.load(bundle) as model:
        assert model.path == "clean"
        for path, own in (("clean", "standard"), ("robust", "robust")):
            model.path = path
            with torch.no_grad():
                expected = pair[path].net.path(own)(torch.from_numpy(images)).numpy()
            np.testing.assert_allclose(model(images), expected, atol=1e-4)


def test_the_manifest_says_that_nothing_is_shared(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    opened.verify()
    manifest = opened.manifest
    assert manifest.shares == "nothing"
    assert tuple(manifest.paths) == ("clean", "robust")
    assert [graph.role for graph in manifest.paths.values()] == [Role.CLEAN, Role.ATTACKED]
    assert manifest.paths["clean"].metrics == {"clean_accuracy": 0.9, "robust_accuracy": 0.1}
    assert manifest.paths["robust"].metrics == {"clean_accuracy": 0.8, "robust_accuracy": 0.2}
    assert manifest.package_name == "resnet8-standard-and-trades"
    assert manifest.training["method"] == "standard-and-trades"
    assert manifest.training["separately"]["clean"]["method"] == "standard"
    assert manifest.paths["robust"].parameters > 2 * manifest.paths["clean"].parameters
    for graph in manifest.paths.values():
        assert graph.gate is not None
        assert graph.gate["clean_accuracy"]["examples"] == 24
    shown = CliRunner().invoke(smart_run, ["info", str(bundle)])
    assert shown.exit_code == 0, shown.output
    assert "the paths are separate networks, which share no weights" in shown.stdout
    assert json.loads(CliRunner().invoke(smart_run, ["info", str(bundle), "--json"]).stdout)["shares"] == "nothing"


def test_neither_of_them_is_the_source_of_both(pair: dict[str, Checkpoint], bundle: Path) -> None:
    for one in pair.values():
        with pytest.raises(ConfigError, match="was made of two checkpoints, and a source is one; leave --source out"):
            open_bundle(bundle, source=read_source(one))


def test_densities_are_of_each_network_and_of_both(pair: dict[str, Checkpoint]) -> None:
    sliced = {**pair, "robust": single("x", width=16, seed=1, density=0.5)}
    torch.manual_seed(0)
    net = sliced["robust"].net
    for number, group in enumerate(net.groups):
        net.set_mask("x", number, torch.arange(group.size) < group.size // 2)
    found = read_sources(sliced).densities
    assert found.kept == {"clean": 1.0, "robust": 0.5}
    assert found.parameters["clean"] == 1
    sizes = {path: sum(p.numel() for p in one.net.parameters()) for path, one in sliced.items()}
    stored = sizes["clean"] + found.parameters["robust"] * sizes["robust"]
    assert found.union == pytest.approx(stored / max(sizes.values()))


def test_the_checkpoints_are_left_as_they_were(pair: dict[str, Checkpoint], bundle: Path) -> None:
    assert bundle.is_dir()
    assert pair["clean"].net.path_names == ("standard",)
    assert set(pair["clean"].samples.adversarial) == {"standard"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_names": ("a", "b", "d")}, "the classes of the two checkpoints differ"),
        ({"input_shape": (1, 8, 9)}, r"the input shapes of the two checkpoints differ, \(1, 8, 8\) and \(1, 8, 9\)"),
        ({"eps": 0.2}, "the eps of the attacked samples of the two checkpoints differ, 0.1 and 0.2"),
    ],
)
def test_networks_that_were_not_trained_for_the_same_are_refused(
    change: dict[str, Any], words: str, pair: dict[str, Checkpoint], tmp_path: Path
) -> None:
    other = single("robust", width=4, seed=1, **change)
    with pytest.raises(ExportError, match=words):
        build_bundle({**pair, "robust": other}, output=tmp_path / "bundle", target="cpu")
    assert not (tmp_path / "bundle").exists()


def test_one_checkpoint_of_several_paths_is_none_of_one(pair: dict[str, Checkpoint], tmp_path: Path) -> None:
    first = Path(__file__).parent.parent / "formats" / "first" / "channel.pt"
    with pytest.raises(ExportError, match="for the path robust has the paths clean, robust; give one of a single path"):
        build_bundle({**pair, "robust": load_checkpoint(first)}, output=tmp_path / "bundle", target="cpu")
    with pytest.raises(ExportError, match="for each of the paths clean, robust, got clean"):
        build_bundle({"clean": first}, output=tmp_path / "bundle", target="cpu")


def test_the_command_makes_it_of_two_files(pair: dict[str, Checkpoint], tmp_path: Path) -> None:
    files = {path: tmp_path / f"{path}-net.pt" for path in pair}
    for path, checkpoint in pair.items():
        save_checkpoint(checkpoint, files[path])
    given = ["--clean", str(files["clean"]), "--robust", str(files["robust"])]
    options = ["--target", "cpu", "--baseline", "none"]
    for wrong in (given[:2], [str(files["clean"]), *given], [*given, "--dense-control", str(files["clean"])], []):
        refused = CliRunner().invoke(smart_export, ["build", *wrong, "--target", "cpu"])
        assert refused.exit_code == 2
        assert "Error" in refused.stderr
    done = CliRunner().invoke(smart_export, [*given, *options, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["checkpoint_digest"] is None
    assert set(found["checkpoint_digests"]) == {"clean", "robust"}
    assert found["union_density"] > 1, "two networks take more than one"
    bundle = tmp_path / "clean-net-robust-net-cpu"
    assert Bundle.open(bundle).manifest.shares == "nothing"
    checked = CliRunner().invoke(smart_export, ["check", str(bundle), *given])
    assert checked.exit_code == 0, checked.output
    for path in pair:
        assert f"{path}: agrees with the source" in checked.stdout
    exchanged = ["--clean", str(files["robust"]), "--robust", str(files["clean"])]
    refused = CliRunner().invoke(smart_export, ["check", str(bundle), *exchanged])
    assert refused.exit_code == 1
    assert "the graph 'clean' " in refused.stderr
    refused = CliRunner().invoke(smart_export, ["check", str(bundle), "--source", str(files["robust"])])
    assert refused.exit_code == 1
    assert "the paths of the bundle" in refused.stderr
    assert CliRunner().invoke(smart_export, ["check", str(bundle), *given[:2]]).exit_code == 2
