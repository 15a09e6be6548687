"""The gate let a graph pass, or refused it, by the luck of 128 images, and never said so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.command import smart_export
from export.conftest import train
from reference.intervals import paired_drop
from smart_export import GateError, build_bundle
from smart_export.verify import PairedAccuracy, PathGate, Verdict, paired_accuracy, require_gate
from smart_runtime.bundle.bundle import Bundle
from smart_train import Checkpoint, load_checkpoint, save_checkpoint
from smart_train.accuracy import Z_95


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(train(tmp_path_factory.mktemp("gate") / "ckpt.pt", seed=0))


def pair(count: int, *, lost: int, gained: int) -> PairedAccuracy:
    before = np.arange(count) >= gained
    after = before.copy()
    after[:gained], after[gained : gained + lost] = True, False
    return paired_accuracy(before, after)


def gate(count: int, *, lost: int, gained: int = 0) -> PathGate:
    return PathGate(pair(count, lost=lost, gained=gained), pair(count, lost=0, gained=0))


@pytest.mark.parametrize(
    ("count", "lost", "gained", "verified", "verdict"),
    [
        (128, 0, 0, False, Verdict.UNDECIDED),  # an int8 graph could still lose 2 points
        (128, 0, 0, True, Verdict.PASSES),  # every score is the path's
        (256, 1, 1, True, Verdict.UNDECIDED),
        (1024, 1, 1, False, Verdict.PASSES),
        (1024, 8, 0, False, Verdict.UNDECIDED),
        (1024, 30, 2, False, Verdict.FAILS),
        (128, 3, 0, False, Verdict.UNDECIDED),  # 2.3 points measured, and the truth may be none
    ],
)
def test_there_are_three_answers(count: int, lost: int, gained: int, verified: bool, verdict: Verdict) -> None:
    assert pair(count, lost=lost, gained=gained).verdict(max_drop=0.01, verified=verified) is verdict


@given(st.integers(20, 300), st.integers(0, 12), st.integers(0, 12), st.sampled_from([0.01, 0.02, 0.05]))
def test_the_number_that_decides_is_the_least_that_does(count: int, lost: int, gained: int, allowed: float) -> None:
    """Against a search through every number, with the interval from its definition on whole pairs."""
    found = pair(count, lost=lost, gained=gained)
    if found.verdict(max_drop=allowed, verified=False) is not Verdict.UNDECIDED:
        return
    needed = found.images_to_decide(max_drop=allowed)
    if needed is None:
        assert found.drop == pytest.approx(allowed)
        return
    assert needed > count
    times = needed // count  # whole multiples have whole numbers of lost and gained images, which can be laid out
    for multiple, decided in ((times, needed == times * count), (times + 1, True)):
        if multiple * count > 20_000:
            return
        right = [True] * (multiple * lost) + [False] * (multiple * gained)
        rest = [True] * (multiple * count - len(right))
        low, high = paired_drop(right + rest, [not one for one in right] + rest, z=Z_95)
        assert (high <= allowed or low > allowed) == decided


def test_too_few_images_are_a_warning_with_the_number_that_would_do() -> None:
    (sentence,) = require_gate(gate(1024, lost=8), name="clean", max_drop=0.01)
    assert sentence.startswith("the clean accuracy of the graph 'clean' may be more than 1 points below")
    needed = pair(1024, lost=8, gained=0).images_to_decide(max_drop=0.01)
    assert f"about {needed:,} images would decide" in sentence
    with pytest.raises(GateError, match="--undecided warn"):
        require_gate(gate(1024, lost=8), name="clean", max_drop=0.01, undecided="refuse")
    assert require_gate(gate(1024, lost=1), name="clean", max_drop=0.01, undecided="refuse") == ()


def test_a_measured_drop_that_is_too_large_is_refused_even_where_it_may_be_chance() -> None:
    with pytest.raises(GateError, match=r"2\.3 points below .* about [0-9,]+ images would decide"):
        require_gate(gate(128, lost=3), name="robust", max_drop=0.01)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_export_from_samples_alone_passes_where_the_graph_is_the_path(
    precision: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    built = build_bundle(
        checkpoint, output=tmp_path / "b", target="cpu", precision=precision, undecided="refuse", baseline=False
    )
    assert [graph.warnings for graph in built.paths.values()] == [(), ()]
    manifest = Bundle.open(tmp_path / "b").manifest
    assert manifest.gate is not None
    assert (manifest.gate["undecided"], manifest.gate["images"]) == ("refuse", 256)
    for path in manifest.paths.values():
        assert path.gate is not None
        assert {figure["verdict"] for figure in path.gate.values()} == {"passes"}


@pytest.mark.slow
def test_int8_on_few_samples_is_written_with_a_warning_or_refused_when_asked(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    few = replace(
        checkpoint.samples,
        images=checkpoint.samples.images[:40],
        labels=torch.zeros(40, dtype=torch.int64),  # nearly nothing is right, so nearly nothing can be lost
        adversarial={path: images[:40] for path, images in checkpoint.samples.adversarial.items()},
    )
    file, bundle = tmp_path / "ckpt.pt", tmp_path / "bundle"
    save_checkpoint(replace(checkpoint, samples=few), file)
    options = (file, "--target", "cpu", "--precision", "int8", "--baseline", "none", "-o", bundle, "--max-drop", "6")
    refused = smart_export(*options, "--undecided", "refuse")
    assert (refused.returncode, refused.stdout, bundle.exists()) == (1, "", False)
    assert "images would decide" in refused.stderr
    done = smart_export(*options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    doubts = [sentence for sentence in found["warnings"] if "images do not decide" in sentence]
    assert doubts
    assert [line.removeprefix("warning: ") for line in done.stderr.splitlines()] == found["warnings"]
    verdicts = [(row["verdict"], row["images_to_decide"]) for path in found["gate"].values() for row in path.values()]
    assert len([verdict for verdict, _ in verdicts if verdict == "undecided"]) == len(doubts)
    assert all((verdict == "undecided") == (more is not None) for verdict, more in verdicts)
    assert found["judged_by"]["engine"].startswith("onnxruntime-cpu ")
    assert found["judged_by"]["undecided"] == "warn"
