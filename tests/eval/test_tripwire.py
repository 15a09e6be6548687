"""The tripwire under attack: the attackers' objectives, streams of frames, and `smart-eval --policy tripwire`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from smart_eval import EvalOptions, evaluate
from smart_eval.cli import main as smart_eval
from smart_eval.tripwire.apgd import apgd
from smart_eval.tripwire.pair import KINDS, SCORES, AttackedPair, confidence, soft_llr
from smart_eval.tripwire.streams import _cusum, alarms, auc, false_alarms, roc
from smart_runtime import Bundle
from smart_runtime.tripwire import pair_scores
from smart_runtime.tripwire.operating_point import AT_CLEAN, OperatingPoint
from smart_runtime.tripwire.records import require_tripwire


def logits(frames: int, *, seed: int, spread: float = 3.0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, spread, (frames, 5)).astype(np.float32)


def point() -> OperatingPoint:
    """Return one of frames on which the paths agree, and of others on which they do not."""
    clean, attacked = logits(300, seed=1), logits(300, seed=2)
    return OperatingPoint.fit("kl", clean=(clean, 0.5 * clean), attacked={AT_CLEAN: (attacked, logits(300, seed=3))})


def test_scores_with_gradients_are_those_of_the_runtime() -> None:
    clean, robust = logits(200, seed=4), logits(200, seed=5)
    assert SCORES.keys() == pair_scores.SCORES.keys()
    for name, score in SCORES.items():
        wanted = pair_scores.SCORES[name](clean, robust)
        np.testing.assert_allclose(score(torch.from_numpy(clean), torch.from_numpy(robust)), wanted, atol=2e-5)
    np.testing.assert_allclose(confidence(torch.from_numpy(clean)), pair_scores.confidence(clean), atol=2e-5)


def test_the_soft_ratio_lies_between_the_tables_and_has_gradients_that_lead_down() -> None:
    known = point()
    clean, robust = (torch.from_numpy(logits(200, seed=seed)).requires_grad_() for seed in (6, 7))
    soft = soft_llr(known, clean, robust)
    hard = known.llrs(clean.detach().numpy(), robust.detach().numpy())
    assert np.corrcoef(soft.detach().numpy(), hard)[0, 1] > 0.8
    (gradient,) = torch.autograd.grad(soft.sum(), robust)
    lower = soft_llr(known, clean, robust - 0.01 * gradient)
    assert float((lower < soft).float().mean()) > 0.8


def test_apgd_reaches_the_corner_of_a_linear_objective_and_stays_within_eps() -> None:
    images = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    found = apgd(
        lambda x: (x * weights).sum(dim=(1, 2, 3)),
        images,
        eps=0.1,
        steps=20,
        generator=torch.Generator().manual_seed(2),
    )
    corner = (images + 0.1 * weights.sign()).clamp(0, 1)
    torch.testing.assert_close(found, corner)


class Linear(nn.Module):
    """Scores of 3 classes of images of 1x2x2."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) * 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return them."""
        return (images - 0.5).flatten(1) @ self.weight


@pytest.mark.parametrize("kind", KINDS)
def test_every_attacker_stays_within_eps_and_is_the_same_again(kind: str) -> None:
    images = torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    pair = AttackedPair(Linear(1), Linear(2), eps=0.2, steps=6, seed=5)
    labels = pair.clean(images).argmax(dim=1)
    samples = torch.rand(64, 1, 2, 2, generator=torch.Generator().manual_seed(4))
    known = OperatingPoint.fit("kl", clean=pair.arrays(samples), attacked={AT_CLEAN: pair.arrays(1 - samples)})
    found = pair.attacked(kind, images, labels, point=known)
    assert float((found - images).abs().max()) <= 0.2 + 1e-6
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert torch.equal(found, pair.attacked(kind, images, labels, point=known))


def test_an_adaptive_attacker_is_quieter_than_a_silent_one_and_errs_no_less() -> None:
    images = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(6))
    pair = AttackedPair(Linear(1), Linear(2), eps=0.3, steps=10, seed=5)
    labels = pair.clean(images).argmax(dim=1)
    attacked = pair.attacked("aimed-at-clean", images, labels, point=point())
    known = OperatingPoint.fit("kl", clean=pair.arrays(images), attacked={AT_CLEAN: pair.arrays(attacked)})
    silent, adaptive = (
        pair.arrays(pair.attacked(kind, images, labels, point=known)) for kind in ("silent", "adaptive")
    )
    wrong_silent, wrong = (one[0].argmax(axis=1) != labels.numpy() for one in (silent, adaptive))
    assert (wrong | ~wrong_silent).all()
    both = wrong & wrong_silent
    assert (known.llrs(*adaptive)[both] <= known.llrs(*silent)[both]).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1), st.lists(st.integers(-3, 3), min_size=1))
def test_the_area_under_the_curve_counts_pairs(attacked: list[int], clean: list[int]) -> None:
    above = [(a > c) + 0.5 * (a == c) for a in attacked for c in clean]
    found = auc(np.array(attacked, float), np.array(clean, float))
    assert found == pytest.approx(sum(above) / len(above))
    curve = roc(np.array(attacked, float), np.array(clean, float))
    assert curve[0].tolist() == [0, 0]
    assert curve[-1].tolist() == [1, 1]
    assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(found)


def test_streams_take_as_long_as_a_sum_by_hand() -> None:
    found = alarms(np.array([-1.0]), np.array([2.0]), share=1.0, threshold=9.0, every=1, seed=0, streams=5)
    assert found.frames.tolist() == [5] * 5  # 2, 4, 6, 8, 10
    never = alarms(np.array([-1.0]), np.array([2.0]), share=0.0, threshold=9.0, every=1, seed=0, streams=5)
    assert never.median is None
    assert never.late is None
    tenth = alarms(np.array([-1.0]), np.array([2.0]), share=1.0, threshold=9.0, every=10, seed=0)
    assert tenth.median == pytest.approx(50, rel=0.25)
    assert false_alarms(np.array([1.0]), frames=1000, threshold=10.0, every=1, seed=0) == 100


def test_streams_agree_with_the_runtimes_run_lengths() -> None:
    known = point()
    clean = known.llrs(clean := logits(4000, seed=8), 0.5 * clean)
    attacked = known.llrs(logits(4000, seed=9), logits(4000, seed=10))
    threshold = known.threshold(5000)
    found = alarms(clean, attacked, share=0.5, threshold=threshold, every=1, seed=1, streams=2001)
    assert found.frames.mean() == pytest.approx(known.frames_to_alarm(threshold, AT_CLEAN, share=0.5), rel=0.25)


def test_the_command_says_what_an_attacker_who_knows_it_achieves(checkpoint_file: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        smart_eval,
        [
            *(str(checkpoint_file), "--attack", "clean", "--policy", "tripwire", "--examples", "8", "--json"),
            *("--report", str(tmp_path / "page.html")),
        ],
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["models"][0]["tripwire"]
    assert found["policy"] == "tripwire"
    assert found["attacked"].keys() == set(KINDS)
    for kind in found["attacked"].values():
        assert kind["auc"].keys() == {*SCORES, "log-likelihood ratio"}
        assert kind["frames_to_alarm"].keys() == {"10", "30"}
    assert "who knows the tripwire" in found["sentence"]
    assert "robust path alone" in found["sentence"]
    page = (tmp_path / "page.html").read_text()
    assert found["sentence"] in page
    assert "Does the pair notice an attack?" in page
    assert "wrong and unseen" in page


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 5), st.lists(st.floats(-4, 4), min_size=1, max_size=30))
def test_a_block_of_the_sum_is_the_sum_step_by_step(before: float, added: list[float]) -> None:
    total, wanted = before, []
    for one in added:
        total = max(0.0, total + one)
        wanted.append(total)
    np.testing.assert_allclose(_cusum(np.array([[before]]), np.array([added]))[0], wanted, atol=1e-12)


def test_a_bundle_is_measured_by_the_operating_points_that_it_serves_by(bundle: Path, checkpoint_file: Path) -> None:
    options = EvalOptions(attack="clean", policy="tripwire", examples=2, threats=False)
    found = evaluate(bundle, source=checkpoint_file, options=options).tripwire
    assert found is not None
    record = require_tripwire(Bundle.open(bundle).manifest)
    assert dict(found.points) == dict(record.points)
    assert found.point == record.point(None)
    assert found.record()["operating_points"] == "the bundle's"


def test_what_has_no_pair_or_no_gradients_is_refused(bundle: Path) -> None:
    done = CliRunner().invoke(smart_eval, [str(bundle), "--attack", "square", "--policy", "tripwire"])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: --policy attacks paths with gradients")
    assert done.stderr.endswith("give the checkpoint it was exported from as --source\n")
