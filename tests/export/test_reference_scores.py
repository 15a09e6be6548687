"""A bundle says what its graphs answered at export, so that a device can prove by it what was built there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from export.test_roles import checkpoint_file as write_checkpoint
from smart_common.roles import Role
from smart_export import BuildResult, VerificationError, build_bundle, check_bundle
from smart_runtime.bundle.bundle import Bundle, write_checksums
from smart_runtime.engines import REFERENCE_ENGINE, create_engine
from smart_runtime.reference import INPUTS, SCORES, compare, npy_bytes, stored_scores
from smart_train import Checkpoint
from smart_train.accuracy import to_tensor


def test_a_bundle_says_what_each_graph_answered(built: BuildResult, checkpoint: Checkpoint) -> None:
    bundle = Bundle.open(built.bundle)
    reference = bundle.manifest.reference
    assert reference is not None
    assert {reference.inputs, *reference.scores.values()} < set(bundle.sums)
    assert reference.inputs == INPUTS
    assert reference.scores == {name: f"{name}/{SCORES}" for name in ("clean", "robust", "dense")}
    for name in ("clean", "robust"):
        stored = stored_scores(bundle, name)
        assert stored is not None
        assert stored.images.shape == (64, 1, 8, 8)
        with torch.no_grad():
            expected = checkpoint.net.path(name)(torch.from_numpy(stored.images.copy())).numpy()
        assert np.abs(stored.scores - expected).max() / max(1, np.abs(expected).max()) <= 1e-4


def test_the_images_are_samples_attacked_ones_and_noise_in_turn(built: BuildResult, checkpoint: Checkpoint) -> None:
    stored = stored_scores(Bundle.open(built.bundle), "clean")
    assert stored is not None
    samples = checkpoint.samples
    kinds = [samples.images, samples.adversarial["clean"], samples.adversarial["robust"]]
    for kind, images in enumerate(kinds):
        np.testing.assert_array_equal(stored.images[kind::4], to_tensor(images[:16]).numpy())
    noise = stored.images[3::4]
    assert noise.shape == (16, 1, 8, 8)
    assert len(np.unique(noise)) > 1000, "noise has values that no picture of 8 bits has"


def test_the_manifest_says_what_answered_and_how_far_others_may_be_off(built: BuildResult) -> None:
    document = json.loads((built.bundle / "manifest.json").read_text())
    record = document["additional_metadata"]["smart_edge"]["reference"]
    assert record["engine"].startswith("onnxruntime-cpu ")
    assert (record["images"], record["tolerance"]) == (64, 1e-3)


def test_a_check_compares_with_them(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    opened = Bundle.open(tmp_path / "b")
    said = {finding.check: finding.detail for finding in check_bundle(opened).findings}
    assert said["robust: reference scores"].startswith("as at export on 64 images, difference ")
    stored = stored_scores(opened, "robust")
    assert stored is not None
    (tmp_path / "b/robust" / SCORES).write_bytes(npy_bytes(stored.scores * np.float32(1.01)))
    write_checksums(tmp_path / "b")
    with pytest.raises(VerificationError, match=r"'robust' does not answer as at export within 0\.001 .* is 0\.009"):
        check_bundle(tmp_path / "b")


def test_int8_graphs_have_them_too(checkpoint: Checkpoint, tmp_path: Path) -> None:
    built = build_bundle(
        checkpoint, output=tmp_path / "b", target="jetson-orin", precision="int8", max_drop=1.0, baseline=False
    )
    bundle = Bundle.open(built.bundle)
    stored = stored_scores(bundle, "robust")
    assert stored is not None
    engine = create_engine(
        REFERENCE_ENGINE, bundle.graph_bytes("robust"), inputs=bundle.manifest.input, outputs=bundle.manifest.output
    )
    assert compare(engine, stored).max_rel_diff <= 1e-6, "the very engine that answered"
    engine.close()
    assert "robust: reference scores" in {finding.check for finding in check_bundle(bundle).findings}


def test_paths_may_have_names_like_the_files(tmp_path: Path) -> None:
    roles = {"reference": Role.CLEAN, "reference-inputs": Role.ATTACKED, "inputs": Role.BOTH}
    built = build_bundle(
        str(write_checkpoint(tmp_path, roles)), output=tmp_path / "b", target="cpu", max_drop=1, baseline=False
    )
    bundle = Bundle.open(built.bundle)
    bundle.verify()
    for path in roles:
        stored = stored_scores(bundle, path)
        assert stored is not None
        assert stored.images.shape == (64, 1, 8, 8)
