"""The checks for hidden gradients: what they flag, what they leave alone, and what a report says of it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor, nn

from smart_eval import checks as subject
from smart_eval import examination
from smart_eval.attacks.autoattack import AutoAttackParts
from smart_eval.attacks.pgd import Pgd
from smart_eval.checks import above, judge, summary
from smart_eval.cli import main as smart_eval
from smart_eval.examination import Examined, eps_curve, examine, examine_network
from smart_eval.measure import Run, measure
from smart_train import Attack, load_checkpoint
from smart_train.accuracy import classified_rightly, to_tensor
from smart_train.checkpoint.format import save_checkpoint
from smart_train.data.images import Split
from smart_train.data.load import load_data
from train.networks import image_set

EPS = 0.15
IMAGES = 200


def network(*, attack: str | None, eps: float = EPS, epochs: int = 6, seed: int = 0) -> nn.Module:
    """Four convolutions trained on digits: plainly, on PGD, or on single steps without a random start."""
    data = load_data("digits").train
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        widths = ((1, 16, 1), (16, 32, 2), (32, 32, 1))
        layers = [
            layer
            for given, out, stride in widths
            for layer in (nn.Conv2d(given, out, 3, stride, padding=1), nn.BatchNorm2d(out), nn.ReLU())
        ]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    images, labels = to_tensor(torch.from_numpy(data.images)), torch.from_numpy(data.labels)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(labels), generator=generator), 64):
            x, y = images[batch], labels[batch]
            if attack == "pgd":
                model.eval()
                x = Attack(eps=eps, steps=4).run(model, x, y, generator=generator)
            elif attack == "fgsm":
                x = x.requires_grad_()
                (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
                x = (x.detach() + eps * gradient.sign()).clamp(0, 1)
            model.train()
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return network(attack=None, epochs=4)


@pytest.fixture(scope="module")
def robust() -> nn.Module:
    return network(attack="pgd")


def examined(model: Callable[[Tensor], Tensor], *, eps: float = EPS, images: int = IMAGES) -> Examined:
    """What the checks look at after PGD-20 on the first images of digits."""
    test = load_data("digits").test
    split = Split(test.images[:images], test.labels[:images])
    x, y = to_tensor(torch.from_numpy(split.images)), torch.from_numpy(split.labels)
    attack = Pgd(Attack(eps=eps, steps=20))
    clean = classified_rightly(model, x, y).numpy()
    broken = ~classified_rightly(model, attack(model, x, y, seed=0), y).numpy()
    right = {"clean": clean, attack.name: clean & ~broken}
    return examine(model, split, right=right, attacks=[attack], path="", eps=eps, run=Run())


def failed(found: Examined) -> set[str]:
    return {check.name for check in judge("robust", found) if check.passed is False}


@pytest.fixture(scope="module")
def plain_examined(plain: nn.Module) -> Examined:
    return examined(plain)


@pytest.fixture(scope="module")
def robust_examined(robust: nn.Module) -> Examined:
    return examined(robust)


# Slow where the other kind of network meets the same checks: the nearer to an honest failure the longer they look.
@pytest.mark.parametrize(
    ("kind", "eps"),
    [
        pytest.param("plain", 0.05, marks=pytest.mark.slow),
        ("plain", EPS),
        ("plain", 0.3),
        ("robust", 0.05),
        ("robust", EPS),
        pytest.param("robust", 0.3, marks=pytest.mark.slow),
    ],
)
def test_honest_networks_pass(kind: str, eps: float, request: pytest.FixtureRequest) -> None:
    if eps == EPS:
        found = request.getfixturevalue(f"{kind}_examined")
    else:
        found = examined(request.getfixturevalue(kind), eps=eps)
    checks = judge("robust", found)
    assert [check.name for check in checks if check.passed is False] == [], checks
    few_break = kind == "robust" and eps == 0.05
    assert [check.name for check in checks if check.passed is None] == ["one-step"] * few_break, checks


def test_a_quantised_input_is_flagged(plain: nn.Module) -> None:
    found = failed(examined(lambda images: plain(torch.round(images * 15) / 15)))
    assert found == {"zero-gradients", "square", "no-bound"}


def test_a_saturated_softmax_is_flagged(plain: nn.Module) -> None:
    found = failed(examined(lambda images: 1e4 * plain(images)))
    assert found >= {"zero-gradients", "no-bound"}


def test_probabilities_instead_of_logits_are_flagged(plain: nn.Module) -> None:
    assert "logits" in failed(examined(lambda images: plain(images).softmax(dim=1), images=50))


def test_a_random_layer_is_flagged(plain: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    found = failed(examined(lambda images: plain(images + 0.2 * torch.randn(images.shape, generator=generator))))
    assert found >= {"same-scores", "no-bound"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "name"),
    [
        # The softmax is nearly saturated: little of its gradient is left. At 30 times the two losses are only 5 points
        # apart on some processors, whose rounding trains another network: on the threshold.
        (lambda scores: 60 * scores, "other-loss"),
        (lambda scores: 5 * torch.tanh(2 * scores), "other-loss"),
        (lambda scores: torch.where(scores.amax(dim=1, keepdim=True) > 4, torch.nan, scores), "finite-scores"),
        (lambda scores: 1e38 * scores, "finite-scores"),
    ],
)
def test_scores_that_lead_attacks_astray_are_flagged(
    change: Callable[[Tensor], Tensor], name: str, robust: nn.Module
) -> None:
    assert name in failed(examined(lambda images: change(robust(images)), images=360))


def test_no_number_is_no_answer() -> None:
    scores = torch.tensor([[0.0, 1.0], [0.0, torch.nan], [torch.nan, 1.0], [0.0, torch.inf]])
    right = classified_rightly(lambda _: scores, torch.zeros(4, 1, 1, 1), torch.ones(4, dtype=torch.int64))
    assert right.tolist() == [True, False, False, True]


def test_scores_that_hang_on_the_images_beside_are_flagged(plain: nn.Module) -> None:
    assert "same-scores" in failed(
        examined(lambda images: plain(images) * (1 + images.mean()) - 5 * images.mean(), images=50)
    )


def test_training_on_single_steps_that_overfits_is_flagged() -> None:
    found = examined(network(attack="fgsm", eps=0.6, epochs=16), eps=0.6)
    (check,) = (check for check in judge("robust", found) if check.name == "one-step")
    assert check.passed is False, check
    assert "catastrophic overfitting" in check.sentence


@given(count=st.integers(0, 40), rest=st.integers(0, 400), share=st.sampled_from([0.002, 0.01, 0.05, 0.5]))
def test_above_is_the_binomial_test(count: int, rest: int, share: float) -> None:
    total = count + rest
    if total == 0:
        assert not above(0, 0, share)
        return
    unlikely = binomtest(count, total, share, alternative="greater").pvalue < 0.01
    assert above(count, total, share) == (unlikely and count > share * total)


@pytest.mark.parametrize(("total", "most"), [(20, 1), (360, 3), (1000, 6), (10_000, 31)])
def test_so_many_images_may_be_squares_own(total: int, most: int) -> None:
    assert not above(most, total, subject.MOST_FOR_SQUARE)
    assert above(most + 1, total, subject.MOST_FOR_SQUARE)


def test_without_eps_there_is_nothing_to_judge_but_the_network(plain: nn.Module) -> None:
    found = examined(plain, eps=0)
    passed = {check.name: check.passed for check in judge("clean", found)}
    assert [name for name, value in passed.items() if value] == [
        "robust-below-clean",
        "finite-scores",
        "same-scores",
        "logits",
        "zero-gradients",
    ]
    assert set(passed.values()) == {True, None}
    assert eps_curve({"clean": found}) is None


def test_an_accuracy_above_the_clean_one_is_flagged(plain: nn.Module) -> None:
    found = examined(plain, eps=0)
    impossible = {"clean": found.right["clean"], "pgd20x1": np.ones(IMAGES, dtype=bool)}
    assert failed(dataclasses.replace(found, right=impossible)) == {"robust-below-clean"}


def test_more_steps_or_a_larger_eps_that_help_are_flagged(plain_examined: Examined) -> None:
    found = plain_examined
    under = found.under_attack
    assert under is not None
    nothing, everything = np.zeros(IMAGES, dtype=bool), np.ones(IMAGES, dtype=bool)
    assert failed(dataclasses.replace(found, under_attack=dataclasses.replace(under, few=nothing))) == {"more-steps"}
    many = {radius: everything if radius == 2 * EPS else right for radius, right in under.many.items()}
    assert failed(dataclasses.replace(found, under_attack=dataclasses.replace(under, many=many))) == {"larger-eps"}
    noisy = dataclasses.replace(under, noise=nothing, many={**under.many, EPS: under.few | found.right["clean"]})
    assert failed(dataclasses.replace(found, under_attack=noisy)) >= {"noise"}
    hopeless = dataclasses.replace(under, noise=nothing, many={**under.many, EPS: nothing})
    (check,) = (
        check for check in judge("", dataclasses.replace(found, under_attack=hopeless)) if check.name == "noise"
    )
    assert check.passed is None, "where attacks leave nothing, nothing can be too high"


def first(count: int, *, of: int = IMAGES) -> np.ndarray:
    """So many of the images."""
    return np.arange(of) < count


def test_thresholds_are_where_the_documentation_says(robust_examined: Examined) -> None:
    found = robust_examined
    under = found.under_attack
    assert under is not None
    clean = {**found.right, "clean": first(IMAGES)}

    def fails(name: str, changes: dict[str, Any], **others: Any) -> bool:
        changed = dataclasses.replace(found, under_attack=dataclasses.replace(under, **changes), **others)
        return name in failed(changed)

    for count, expected in ((2, False), (3, True)):  # 1 %
        assert fails("zero-gradients", {}, has_gradient=~first(count)) is expected
    for count, expected in ((18, False), (19, True)):  # 5 %, and what comes up by chance once in a hundred draws
        assert fails("noise", {"noise": ~first(count)}, right=clean) is expected
        many = {**under.many, EPS: first(IMAGES)}
        assert fails("other-loss", {"many": many, "other_loss": ~first(count)}) is expected
        none = {"many": many, "one_step": first(IMAGES), "shorter_steps": ~first(count)}
        assert fails("one-step", none, right=clean) is expected
        square = {"by_square": first(count), "square_alone": ~first(IMAGES)}
        assert fails("square", square, right=clean | {"pgd20x1": first(IMAGES)}) is expected
        assert not fails("square", square, right=clean | {"autoattack": ~first(count)}), (
            "it is among what was asked for"
        )
    for count, expected in ((2, False), (3, True)):
        assert fails("square", {"square_alone": first(count)}) is expected
    for count, expected in ((6, False), (7, True)):
        assert fails("no-bound", {"many": {**under.many, 1.0: first(count)}}) is expected


def test_what_any_attack_by_gradients_broke_is_not_left_for_square(plain: nn.Module) -> None:
    test = load_data("digits").test
    split, all_, none = Split(test.images[:40], test.labels[:40]), first(40, of=40), first(0, of=40)
    common: dict[str, Any] = {"path": "", "eps": EPS, "run": Run()}
    pgd, square = Pgd(Attack(eps=EPS, steps=1)), AutoAttackParts("square", EPS, queries=7)
    found = examine(plain, split, right={"clean": all_, pgd.name: none}, attacks=[pgd], **common).under_attack
    assert found is not None
    assert found.square_tried == 0
    left = examine(plain, split, right={"clean": all_, "square": all_}, attacks=[square], **common).under_attack
    asked = examine(plain, split, right={"clean": all_, "square": none}, attacks=[square], **common).under_attack
    assert left is not None
    assert asked is not None
    assert (left.square_queries, asked.square_queries) == (7, 7), "what was asked for is taken"
    assert left.by_square.sum() == 0
    assert asked.by_square.sum() == asked.square_tried == left.square_tried > 0


def test_steps_that_are_too_short_are_not_held_against_the_network(plain_examined: Examined) -> None:
    found = plain_examined
    short = Pgd(Attack(eps=EPS, steps=50, step_size=1e-6))
    changed = dataclasses.replace(found, attacks=[short], right={**found.right, short.name: found.right["clean"]})
    assert "more-steps" not in failed(changed)


def test_without_pyautoattack_square_is_not_judged(plain: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    (check,) = (check for check in judge("clean", examined(plain, images=40)) if check.name == "square")
    assert check.passed is None
    assert "smart-edge[eval]" in check.sentence
    assert any("not judged, square" in line for line in summary([check], model="m"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(smart_eval, arguments)


def test_a_suspect_result_is_whole_and_has_a_status_of_its_own(trained: Path, data: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained)
    with torch.no_grad():
        for name, parameter in checkpoint.net.named_parameters():
            if name.endswith(("fc.weight", "fc.bias")):
                parameter.mul_(1e6)  # the softmax saturates, so no gradient is left
    saturated = tmp_path / "saturated.pt"
    save_checkpoint(checkpoint, saturated)
    options = ["--data", data, "--attack", "pgd3x1", "--no-threats", "--json"]
    done = run(str(saturated), str(trained), *options)
    assert done.exit_code == 3, done.output
    suspect, honest = json.loads(done.stdout)["models"]
    assert suspect["suspect"] is True
    assert honest["suspect"] is False
    assert {(check["path"], check["name"]) for check in suspect["checks"] if check["passed"] is False} >= {
        ("clean", "zero-gradients"),
        ("robust", "zero-gradients"),
    }
    assert all(set(check) == {"name", "path", "passed", "figures", "sentence"} for check in suspect["checks"])
    assert "SUSPECT" in done.stderr
    assert "zero-gradients" in done.stderr
    curve = honest["eps_curve"]
    assert curve["eps"] == [0.0, 0.025, 0.05, 0.1, 0.2, 0.4]
    for path, row in curve["paths"].items():
        assert row["accuracy"][0] == honest["paths"][path]["clean_accuracy"]
        assert len(row["interval"]) == len(curve["eps"])
    without = run(str(saturated), *options, "--no-checks")
    assert without.exit_code == 0, without.output
    assert not {"checks", "suspect", "eps_curve"} & set(json.loads(without.stdout)["models"][0])


@pytest.mark.slow
def test_of_many_images_some_are_looked_at(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "MOST_IMAGES", 10)
    net, split, attack = load_checkpoint(trained).net, image_set().test, Pgd(Attack(eps=0.1, steps=2))
    run, counted = Run(chunk=8), list[int]()
    right = measure(net, split, attacks=[attack], run=run)
    noting = replace(run, done=lambda _, __, count: counted.append(count))
    found = examine_network(net, split, right=right, attacks=[attack], eps=0.1, run=noting)
    assert all(len(each.same_scores) == len(each.right["clean"]) == 10 for each in found.values())
    assert sum(counted) == 2 * examination.work(len(split), eps=0.1)
    chosen = examination.which_images(len(split), seed=0)
    assert len(set(chosen)) == 10
    for path, each in found.items():
        assert np.array_equal(each.right["clean"], right[path]["clean"][chosen])
