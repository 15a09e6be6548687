"""What a target decides about its bundle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smart_devices import Fact, Profile, Target, load_profile, profile_names, resolve_target
from smart_export import BuildResult, ExportError
from smart_export.bundle_manifest import check_structure, workspace_bytes
from smart_export.cli import main as smart_export
from smart_runtime.bundle.bundle import Bundle
from smart_train import Structure
from smart_train.cli import main as smart_train

GIB = 2**30


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(smart_export, [str(argument) for argument in arguments])


def profile(**changes: object) -> Profile:
    return dataclasses.replace(load_profile("rtx-4070"), **changes)  # type: ignore[arg-type]  # a test's own values


def structure(name: str) -> Structure:
    return Structure(name=name, density=0.5 if name == "2:4" else 0.25 if name == "1:4" else 0.5, align=4)


T4 = resolve_target("t4")
UNKNOWN = Target(name="new", profile=profile(sparse_tensor_cores=Fact(value=None, unit=None, source="unverified")))


@pytest.mark.parametrize(
    ("name", "target", "why"),
    [
        ("2:4", T4, "t4 has no sparse tensor cores"),
        ("channel+2:4", T4, "t4 has no sparse tensor cores"),
        ("2:4", UNKNOWN, "new is not known to have sparse tensor cores"),
        ("2:4", resolve_target("cpu"), "cpu has no sparse tensor cores"),
        ("1:4", resolve_target("jetson-orin"), "sparse tensor cores know 2:4 only, not 1:4"),
        ("2:4", resolve_target("jetson-orin"), None),
        ("channel+2:4", resolve_target("jetson-orin"), None),
        ("channel", T4, None),
        ("unstructured", T4, None),  # it gains nowhere, so no device is the wrong one
    ],
)
def test_zeros_that_gain_nothing_are_refused_with_the_reason(name: str, target: Target, why: str | None) -> None:
    if why is None:
        check_structure(structure(name), target=target, allow_slow=False)
        return
    with pytest.raises(ExportError, match=why) as caught:
        check_structure(structure(name), target=target, allow_slow=False)
    assert str(caught.value).startswith(f"{name} does not pay on {target.name}: ")
    assert "--structure channel" in str(caught.value)
    check_structure(structure(name), target=target, allow_slow=True)


def test_training_says_it_first_and_export_needs_the_flag(tmp_path: Path) -> None:
    checkpoint, bundle = tmp_path / "ckpt.pt", tmp_path / "bundle"
    small = ["--epochs", "1", "--model-arg", "width=8", "--eps", "0.1", "--steps", "1", "--train-images", "128"]
    trained = CliRunner().invoke(smart_train, [*small, "--structure", "2:4", "--target", "cpu", "-o", str(checkpoint)])
    assert trained.exit_code == 0, trained.output
    assert "note: cpu has no sparse tensor cores: zeros among weights gain no speed there" in trained.stderr
    assert "--allow-slow-structure" in trained.stderr
    refused = invoke(checkpoint, "--target", "cpu", "-o", bundle)
    assert refused.exit_code == 1
    assert len(refused.stderr.splitlines()) == 1
    assert not bundle.exists()
    done = invoke(checkpoint, "--target", "cpu", "-o", bundle, "--allow-slow-structure", "--baseline", "none")
    assert done.exit_code == 0, done.stderr
    assert "clean: 8 layers in 2:4 without gain (cpu has no sparse tensor cores): blocks.0.conv1" in done.stdout


@pytest.mark.parametrize("name", ["1:4", "unstructured"])
def test_training_for_a_device_with_the_cores_says_what_they_do_not_know(name: str, tmp_path: Path) -> None:
    """Refused for its last option, so that nothing is trained."""
    done = CliRunner().invoke(
        smart_train, ["--structure", name, "--target", "jetson-orin", "--lr", "-1", "-o", str(tmp_path / "c.pt")]
    )
    assert done.exit_code == 1
    words = {"1:4": "sparse tensor cores know 2:4 only, not 1:4", "unstructured": "no engine skips single zeros"}
    assert f"note: {words[name]}" in done.stderr


@pytest.mark.parametrize(
    ("size_gb", "shared", "expected"),
    [
        (4, True, GIB // 2),
        (8, True, GIB),
        (64, True, 4 * GIB),
        (12, False, 3 * GIB),
        (32, False, 4 * GIB),
        (None, True, None),
    ],
)
def test_a_builder_gets_a_share_of_the_memory(size_gb: float | None, shared: bool, expected: int | None) -> None:
    memory = dataclasses.replace(
        load_profile("rtx-4070").memory, size=Fact(value=size_gb, unit="GB", source="test"), shared_with_host=shared
    )
    assert workspace_bytes(profile(memory=memory)) == expected


def test_every_device_with_a_gpu_has_a_limit_well_below_its_memory() -> None:
    for found in map(load_profile, profile_names()):
        limit, size_gb = workspace_bytes(found), found.memory.size.value
        if found.kind == "cpu":
            assert limit is None
        elif size_gb is not None:
            assert limit is not None
            assert 256 * 2**20 <= limit <= size_gb * GIB / 4


def test_the_manifest_names_engines_best_first(built: BuildResult) -> None:
    document = json.loads((built.bundle / "manifest.json").read_text())
    target = document["additional_metadata"]["smart_edge"]["target"]
    assert target == {
        "name": "jetson-orin",
        "profile": "jetson-agx-orin-64gb",
        "kind": "jetson",
        "jetpack": None,
        "engines": [{"name": name} for name in ("tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")],
        "workspace_bytes": 4 * GIB,
    }
    assert Bundle.open(built.bundle).manifest.target.name == "jetson-orin"
