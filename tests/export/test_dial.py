"""Mixes and temperatures of an export: fitted on one half, judged on the other; the device computes what torch does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from export.singles import single
from reference.mixing import calibration_error, mix, softmax
from smart_export import ExportError, build_bundle, check_bundle
from smart_export.build import BuildResult
from smart_export.cli import main as smart_export
from smart_export.mixing import WantedMixes
from smart_runtime import Bundle, SmartModel
from smart_runtime.cli import main as smart_run
from smart_train import load_checkpoint
from smart_train.accuracy import to_tensor
from smart_train.calibration import LEAST, MOST, error_of, fit_temperature, temperature_of
from smart_train.checkpoint.samples import halves
from smart_train.mixture import Mixture, mix_name

SHARES = (0.3, 0.5)


@pytest.fixture(scope="module")
def mixed_build(checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    return build_bundle(
        load_checkpoint(checkpoint_file),
        output=tmp_path_factory.mktemp("mixed") / "bundle",
        target="cpu",
        baseline=False,
        mixes=WantedMixes(shares=SHARES, clean=0.05),
    )


def test_a_mix_on_the_device_is_that_of_torch(mixed_build: BuildResult, checkpoint_file: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_file)
    images = to_tensor(checkpoint.samples.images[:32])
    with SmartModel.load(mixed_build.bundle, threads=1) as model:
        assert model.paths[:4] == ("clean", "robust", "mix-30", "mix-50")
        for share in SHARES:
            t = tuple(temperature_of(checkpoint, path).temperature for path in ("clean", "robust"))
            network = Mixture(
                checkpoint.net.path("clean"), checkpoint.net.path("robust"), share=share, temperatures=(t[0], t[1])
            ).eval()
            with torch.no_grad():
                expected = network(images).numpy()
            with model.using(mix_name(share)):
                scores = model(images.numpy())
            np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
            both = model.both(images.numpy()).scores
            by_hand = mix(both["clean"], both["robust"], share=share, temperatures=(t[0], t[1]))
            np.testing.assert_allclose(np.exp(scores), by_hand, atol=1e-5)


def test_what_the_manifest_says(mixed_build: BuildResult, checkpoint_file: Path) -> None:
    manifest = Bundle.open(mixed_build.bundle).manifest
    checkpoint = load_checkpoint(checkpoint_file)
    for name, graph in manifest.paths.items():
        assert graph.calibration is not None
        assert graph.calibration.temperature == temperature_of(checkpoint, name).temperature
        total = len(checkpoint.samples.labels)
        assert graph.calibration.fitted_images + graph.calibration.images == total
    for one in mixed_build.mixes:
        assert one.agreement.holds
        gate = manifest.mixes[one.name].gate
        assert gate is not None
        assert gate["attacked_on"] == "robust"
        assert gate["clean_accuracy"]["drop"] <= 0.01
    assert "mix-99" in manifest.mixes, "5% are right with any share"
    told = CliRunner().invoke(smart_run, ["info", str(mixed_build.bundle)]).stdout
    assert "mix-30: 70% clean and 30% robust; a call runs both" in told
    found = json.loads(CliRunner().invoke(smart_run, ["info", str(mixed_build.bundle), "--json"]).stdout)
    assert found["mixes"]["mix-30"]["share"] == 0.3
    assert found["calibration"]["clean"]["temperature"] == manifest.paths["clean"].temperature


def test_a_check_knows_the_mixes_again(mixed_build: BuildResult, checkpoint_file: Path) -> None:
    found = check_bundle(mixed_build.bundle, source=checkpoint_file).findings
    mixes = [mix.name for mix in mixed_build.mixes]
    assert [finding.check for finding in found if finding.check.startswith("mix-")] == mixes


def test_the_temperature_is_the_best_of_a_fine_grid_and_its_errors_are_those_of_the_other_half(
    checkpoint_file: Path,
) -> None:
    checkpoint = load_checkpoint(checkpoint_file)
    fitting, judging = halves(checkpoint.samples, seed=0)
    for path in ("clean", "robust"):
        model = checkpoint.net.path(path).eval()
        with torch.no_grad():
            ours, others = (model(to_tensor(half.images)).numpy() for half in (fitting, judging))
        found = temperature_of(checkpoint, path)

        def loss(temperature: float, scores: Any = ours) -> float:
            likely = softmax(scores, temperature)[np.arange(len(scores)), fitting.labels.numpy()]
            return float(-np.log(likely).mean())

        grid = [loss(temperature) for temperature in np.geomspace(LEAST, MOST, 500)]
        assert loss(found.temperature) <= min(grid) + 1e-9
        for temperature, error in ((1.0, found.error_before), (found.temperature, found.error_after)):
            assert error == pytest.approx(calibration_error(softmax(others, temperature), judging.labels.numpy()))


@pytest.mark.parametrize(("right", "end"), [(True, LEAST), (False, MOST)])
def test_samples_that_are_all_right_or_all_wrong_stay_within_bounds(right: bool, end: float) -> None:
    scores = np.eye(4, dtype=np.float32)
    labels = np.arange(4) if right else np.roll(np.arange(4), 1)
    assert fit_temperature(scores, labels) == pytest.approx(end, rel=1e-3)


def test_an_error_of_0_and_of_a_half() -> None:
    sure = np.array([[100, 0]] * 4, dtype=np.float32)
    assert error_of(sure, np.zeros(4, dtype=np.int64), temperature=1) == pytest.approx(0)
    assert error_of(sure, np.array([0, 0, 1, 1]), temperature=1) == pytest.approx(0.5)


REFUSED = {
    "too much": (["--mix", "1"], "expected a share in whole percents, 0.01 to 0.99, for a mix, got 1; 0.5 is halfway"),
    "none": (["--mix", "0"], "expected a share in whole percents"),
    "not a number": (["--mix", "nan"], "expected a share in whole percents"),
    "between": (["--mix", "0.505"], "expected a share in whole percents"),
    "twice": (["--mix", "0.5", "--mix", "0.5"], "--mix asks for mix-50 twice; name it once"),
    "too many": (
        [word for share in range(1, 17) for word in ("--mix", f"0.{share:02}")] + ["--mix-clean", "0.9"],
        "a bundle has at most 16 mixes; leave some --mix out",
    ),
    "no accuracy": (["--mix-clean", "0"], "expected a clean accuracy above 0, up to 1, for a mix, got 0; 0.97, say"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_mix_that_cannot_be(how: str, checkpoint_file: Path, tmp_path: Path) -> None:
    flags, sentence = REFUSED[how]
    bundle = tmp_path / "bundle"
    done = CliRunner().invoke(smart_export, [str(checkpoint_file), "--target", "cpu", "-o", str(bundle), *flags])
    assert done.exit_code == 1
    assert sentence in " ".join(done.stderr.split())
    assert not bundle.exists()


def test_no_share_keeps_what_no_path_has(checkpoint_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no mix is right on 1 of the .* clean images that judge, and the path 'cle"):
        build_bundle(checkpoint_file, output=tmp_path / "bundle", target="cpu", mixes=WantedMixes(clean=1.0))


def test_a_checkpoint_with_one_path_has_no_mix(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a mix lies between a path for clean images and one for attacked ones"):
        build_bundle(
            single("standard", width=8, seed=0), output=tmp_path / "b", target="cpu", mixes=WantedMixes(shares=[0.5])
        )


def test_two_networks_mix_too(tmp_path: Path) -> None:
    pair = {"clean": single("standard", width=8, seed=0), "robust": single("robust", width=16, seed=1)}
    place = tmp_path / "bundle"
    build_bundle(pair, output=place, target="cpu", baseline=False, random_images=8, mixes=WantedMixes(shares=[0.5]))
    images = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    with SmartModel.load(place, path="mix-50", threads=1) as model:
        info = model.manifest.mixes["mix-50"]
        both = model.both(images).scores
        wanted = mix(both["clean"], both["robust"], share=0.5, temperatures=info.temperatures)
        np.testing.assert_allclose(np.exp(model(images)), wanted, atol=1e-5)
