"""A mix is attacked as the mixture that it is, in a checkpoint and in a bundle."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from reference.mixing import calibration_error, softmax
from smart_eval import EvalOptions, evaluate
from smart_eval.cli import main as smart_eval
from smart_export import build_bundle
from smart_export.mixing import WantedMixes
from smart_train import ConfigError, load_checkpoint
from smart_train.accuracy import to_tensor
from smart_train.mixture import Mixture

OPTIONS = EvalOptions(attack="pgd3x1", eps=0.2, examples=20, checks=False, mix=(0.25, 0.5))


def test_the_gradient_of_a_mixture_is_that_of_its_probabilities(checkpoint_file: Path) -> None:
    """By central differences, in float64; and it goes through both networks."""
    checkpoint = load_checkpoint(checkpoint_file)
    paths = [checkpoint.net.path(path).double().eval() for path in ("clean", "robust")]
    network = Mixture(*paths, share=0.4, temperatures=(0.7, 1.6))
    images = to_tensor(checkpoint.samples.images[:1]).double().requires_grad_()
    label = int(checkpoint.samples.labels[0])
    (gradient,) = torch.autograd.grad(network(images)[0, label], images)

    def log_probability(step: torch.Tensor) -> float:
        with torch.no_grad():
            first, second = (path(images.detach() + step).numpy() for path in paths)
        return float(np.log((0.6 * softmax(first, 0.7) + 0.4 * softmax(second, 1.6))[0, label]))

    direction = gradient / gradient.norm()
    slope = (log_probability(1e-5 * direction) - log_probability(-1e-5 * direction)) / 2e-5
    assert slope == pytest.approx(float(gradient.norm()), rel=1e-4)
    for alone in paths:
        (own,) = torch.autograd.grad(torch.log_softmax(alone(images), dim=1)[0, label], images)
        assert not torch.allclose(own / own.norm(), direction, atol=1e-3)


def test_a_checkpoint_with_mixes(trained: Path, data: str) -> None:
    found = evaluate(trained, data=data, options=OPTIONS)
    assert list(found.right) == ["clean", "robust", "mix-25", "mix-50"]
    document = found.document()
    assert document["mixes"]["mix-25"]["share"] == 0.25
    assert set(document["threats"]["transfer"]["paths"]["mix-50"]) == set(found.right)
    costs = document["cost"]["paths"]
    assert costs["mix-50"]["macs"] == costs["clean"]["macs"] + costs["robust"]["macs"]
    plain = evaluate(trained, data=data, options=EvalOptions(attack="pgd3x1", eps=0.2, examples=20, checks=False))
    for path in plain.right:
        assert all(np.array_equal(plain.right[path][name], found.right[path][name]) for name in plain.right[path])


def test_at_eps_0_the_attack_takes_nothing_and_at_1_all(trained: Path, data: str) -> None:
    for eps in (0.0, 1.0):
        options = EvalOptions(attack="pgd10x1", eps=eps, examples=20, checks=False, threats=False, mix=(0.5,))
        found = evaluate(trained, data=data, options=options)
        wanted = found.accuracy("mix-50", "clean").value if eps == 0 else 0
        assert found.accuracy("mix-50", "pgd10x1").value == wanted


def test_a_bundle_with_mixes(checkpoint_file: Path, tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    build_bundle(
        checkpoint_file, output=place, target="cpu", baseline=False, mixes=WantedMixes(shares=[0.5]), random_images=8
    )
    options = EvalOptions(attack="pgd3x1", examples=20)
    graphs = evaluate(place, options=options, source=checkpoint_file)
    masked = evaluate(checkpoint_file, options=EvalOptions(attack="pgd3x1", examples=20, checks=False, mix=(0.5,)))
    assert list(graphs.right) == ["clean", "robust", "mix-50"]
    assert graphs.replay is not None
    assert list(graphs.replay) == ["clean", "robust"]
    assert graphs.mixes == masked.mixes
    assert np.array_equal(graphs.right["mix-50"]["clean"], masked.right["mix-50"]["clean"])
    blind = evaluate(place, options=EvalOptions(attack="clean", examples=20))
    assert np.array_equal(blind.right["mix-50"]["clean"], graphs.right["mix-50"]["clean"])


def test_calibration_on_the_test_images(checkpoint_file: Path) -> None:
    found = evaluate(checkpoint_file, options=EvalOptions(attack="clean", examples=50, mix=(0.5,)))
    checkpoint = load_checkpoint(checkpoint_file)
    from smart_train.data.load import load_data  # noqa: PLC0415

    test = load_data("digits").test
    assert found.indices is not None
    images = to_tensor(torch.from_numpy(test.images[found.indices]))
    assert found.calibration is not None
    for path in ("clean", "robust"):
        with torch.no_grad():
            scores = checkpoint.net.path(path).eval()(images).numpy()
        one = found.calibration[path]
        for temperature, key in ((1.0, "error_before"), (one["temperature"], "error_after")):
            assert one[key] == pytest.approx(
                calibration_error(softmax(scores, temperature), test.labels[found.indices]), abs=1e-6
            )
        assert sum(each["images"] for each in one["bins"]) == 50
    assert found.calibration["mix-50"]["error_before"] == found.calibration["mix-50"]["error_after"]


def test_the_command_its_page_and_its_csv(trained: Path, data: str, tmp_path: Path) -> None:
    page, rows = tmp_path / "page.html", tmp_path / "rows.csv"
    flags = ["--attack", "pgd2x1", "--eps", "0.1", "--examples", "20", "--no-checks", "--mix", "0.5", "--mix", "0.1"]
    done = CliRunner().invoke(
        smart_eval, [str(trained), "--data", data, *flags, "--report", str(page), "--csv", str(rows)]
    )
    assert done.exit_code == 0, done.output
    assert "mix-50" in done.stdout
    assert "expected calibration error" in done.stdout
    html = page.read_text()
    for section in ('id="dial"', 'id="calibration"'):
        assert section in html
    with rows.open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["clean", "robust", "mix-50", "mix-10"]


REFUSED: list[tuple[Any, str]] = [
    ((0.5, 0.5), "--mix asks for mix-50 twice"),
    ((2.0,), "expected a share in whole percents"),
]


@pytest.mark.parametrize(("mix", "sentence"), REFUSED)
def test_mixes_that_cannot_be(trained: Path, data: str, mix: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        evaluate(trained, data=data, options=EvalOptions(attack="clean", mix=mix))


def test_a_bundle_takes_no_share(bundle: Path) -> None:
    done = CliRunner().invoke(smart_eval, [str(bundle), "--mix", "0.5"])
    assert done.exit_code == 2
    assert "--mix is of checkpoints; a bundle has the mixes that smart-export --mix gave it." in done.stderr
    with pytest.raises(ConfigError, match="mix is of checkpoints; a bundle has the mixes that it was exported with"):
        evaluate(bundle, options=EvalOptions(attack="clean", mix=(0.5,)))


def test_a_saved_result_without_the_mix_or_the_tripwire(trained: Path, data: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    flags = [str(trained), "--data", data, "--attack", "clean", "--examples", "20", "--json"]
    saved.write_text(CliRunner().invoke(smart_eval, flags).stdout)
    json.loads(saved.read_text())
    done = CliRunner().invoke(smart_eval, [*flags, str(saved), "--mix", "0.5"])
    assert done.exit_code == 1
    assert "has no mix-50; leave that file out to measure what is missing" in " ".join(done.stderr.split())
    done = CliRunner().invoke(smart_eval, [*flags, str(saved), "--policy", "tripwire"])
    assert done.exit_code == 1
    assert "has no tripwire; leave that file out to measure what is missing" in " ".join(done.stderr.split())
