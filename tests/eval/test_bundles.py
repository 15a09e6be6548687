"""smart-eval on bundles: real graphs of a real export, against plain NumPy and against the runtime itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from runtime.bundles import as_float, expected_scores, random_images, write_bundle
from smart_devices import resolve_target
from smart_eval.attacks.autoattack import AutoAttackParts
from smart_eval.bundles import BundlePaths, recorded_eps
from smart_eval.cli import main as smart_eval
from smart_eval.measure import Run, chunk_seed, measure
from smart_eval.models import OpenModel, open_bundle
from smart_export import build_bundle
from smart_export.signing import write_key_pair
from smart_runtime import Bundle, BundleError, SmartModel
from smart_train import Attack, ConfigError, load_checkpoint
from smart_train.accuracy import to_tensor
from smart_train.data.images import Split
from smart_train.data.load import load_data
from smart_train.masking.attack_mode import attack_mode

SOME = ("--examples", "20", "--json")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(smart_eval, [str(argument) for argument in arguments])


def answer(*arguments: object) -> dict[str, Any]:
    done = run(*arguments, *SOME)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def refused(*arguments: object, status: int = 1) -> str:
    done = run(*arguments, *SOME)
    assert done.exit_code == status
    assert done.stdout == ""
    return done.stderr


@pytest.fixture(scope="module")
def int8(checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bundle(
        load_checkpoint(checkpoint_file),
        output=tmp_path_factory.mktemp("int8") / "bundle",
        target=resolve_target("cpu"),
        precision="int8",
        baseline=False,
        max_drop=1,
    ).bundle


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[OpenModel]:
    with open_bundle(write_bundle(tmp_path / "bundle")) as opened:
        yield opened


def test_a_graph_gives_torch_what_it_computes(tiny: OpenModel) -> None:
    images = random_images(40)
    for path in ("clean", "robust"):
        scores = tiny.net.path(path)(to_tensor(torch.from_numpy(images)))
        np.testing.assert_allclose(scores.numpy(), expected_scores(path, as_float(images)), atol=1e-6)  # float32 means


def test_a_graph_has_no_gradient_to_give(tiny: OpenModel) -> None:
    with pytest.raises(ConfigError, match="scores only"):
        tiny.net.path("clean")(torch.rand(1, 3, 6, 4, requires_grad=True))


def test_square_breaks_a_graph_by_its_scores_alone(tiny: OpenModel) -> None:
    images = random_images(16)
    labels = expected_scores("robust", as_float(images)).argmax(axis=1)
    split = Split(images, labels)

    def left(eps: float) -> np.ndarray:
        attacks = tiny.attacks([AutoAttackParts("square", eps)])
        found = measure(tiny.net, split, attacks=attacks, run=Run(about=tiny.about))["robust"]
        assert found["clean"].all()
        return found["square"]

    assert left(0.0).all()
    assert left(1.0).sum() < len(labels) / 2, "a new image altogether"


def test_without_a_source_square_is_what_is_asked_for(bundle: Path, checkpoint_file: Path) -> None:
    both = answer(bundle, checkpoint_file, "--eps", 0.3, "--chunk", 8, "--attack", "clean")["models"]
    assert [one["kind"] for one in both] == ["bundle", "checkpoint"]
    assert both[0]["paths"] == both[1]["paths"], "the same network in fp32"
    found = answer(bundle, "--eps", 0.3)
    (model,) = found["models"]
    assert [attack["name"] for attack in model["attacks"]] == ["square"]
    assert (model["kind"], model["precision"], model["engine"]) == ("bundle", "fp32", "onnxruntime-cpu")
    assert model["digest"] == Bundle.open(bundle).digest
    assert "Black-box" in model["threat_model"]
    assert found["bundle"] == str(bundle)
    assert "checkpoint" not in found


@pytest.mark.parametrize("attack", ["pgd", "clean,autoattack", "square,apgd-ce"])
def test_what_needs_gradients_is_refused_without_a_source(attack: str, bundle: Path) -> None:
    words = refused(bundle, "--attack", attack)
    assert "needs gradients, which the graphs of the bundle" in words
    assert "--source" in words
    assert words.count("\n") == 1


def test_attacks_on_the_source_are_tried_on_the_graph(int8: Path, checkpoint_file: Path) -> None:
    model = answer(int8, "--source", checkpoint_file, "--attack", "pgd3x1", "--eps", 0.1, "--chunk", 20)["models"][0]
    assert model["attacks"][0]["made_on"] == "source"
    assert "Transfer" in model["threat_model"]
    assert model["precision"] == "int8"
    test, chosen = load_data("digits").test, model["example_indices"]
    images, labels = to_tensor(torch.from_numpy(test.images[chosen])), torch.from_numpy(test.labels[chosen])
    net = load_checkpoint(checkpoint_file).net
    with SmartModel.load(int8) as deployed:
        for path, row in model["paths"].items():
            deployed.path = path
            right = deployed(images.numpy()).argmax(axis=1) == labels.numpy()
            assert row["clean_accuracy"] == right.mean()
            attack = Attack(eps=0.1, steps=3)
            generator = torch.Generator().manual_seed(chunk_seed(0, "pgd3x1", 0))
            with attack_mode(net.path(path)):
                made = attack.run(net.path(path), images[right], labels[right], generator=generator)
            after = deployed(made.numpy()).argmax(axis=1) == labels[right].numpy()
            assert row["attacks"]["pgd3x1"]["correct"] == after.sum()


def test_images_made_on_one_path_of_the_source_are_tried_on_every_graph(int8: Path, checkpoint_file: Path) -> None:
    model = answer(int8, "--source", checkpoint_file, "--attack", "pgd3x1", "--eps", 0.1, "--chunk", 20)["models"][0]
    threats = model["threats"]
    assert threats["attack"]["made_on"] == "source"
    test, chosen = load_data("digits").test, model["example_indices"]
    images, labels = to_tensor(torch.from_numpy(test.images[chosen])), torch.from_numpy(test.labels[chosen])
    net = load_checkpoint(checkpoint_file).net
    with SmartModel.load(int8) as deployed:

        def right(path: str, batch: Tensor) -> np.ndarray:
            deployed.path = path
            found: np.ndarray = deployed(batch.numpy()).argmax(axis=1) == labels.numpy()
            return found

        before = {path: right(path, images) for path in model["paths"]}
        wanted = np.logical_or.reduce([*before.values()])
        for source in model["paths"]:
            made, generator = images.clone(), torch.Generator().manual_seed(chunk_seed(0, "pgd3x1", 0))
            with attack_mode(net.path(source)):
                made[wanted] = Attack(eps=0.1, steps=3).run(
                    net.path(source), images[wanted], labels[wanted], generator=generator
                )
            for victim, figures in threats["transfer"]["paths"].items():
                assert figures[source]["correct"] == (before[victim] & right(victim, made)).sum()
    assert "threats" not in answer(int8, "--attack", "square", "--eps", 0.1)["models"][0]


def test_square_attacks_the_graph_itself_also_beside_a_source(int8: Path, checkpoint_file: Path) -> None:
    alone = answer(int8, "--attack", "square", "--eps", 0.3, "--chunk", 20)["models"][0]
    options = ("--source", checkpoint_file, "--attack", "pgd2x1,square", "--no-threats")
    beside = answer(int8, *options, "--eps", 0.3, "--chunk", 20)["models"][0]
    assert ["made_on" in attack for attack in beside["attacks"]] == [True, False]
    for path, row in alone["paths"].items():
        assert beside["paths"][path]["attacks"]["square"] == row["attacks"]["square"]


def test_the_samples_of_the_source_are_replayed(int8: Path, checkpoint_file: Path) -> None:
    model = answer(int8, "--source", checkpoint_file, "--attack", "clean")["models"][0]
    samples = load_checkpoint(checkpoint_file).samples
    with SmartModel.load(int8) as deployed:
        for path, found in model["replay"].items():
            deployed.path = path
            right = deployed(samples.images.numpy()).argmax(axis=1) == samples.labels.numpy()
            assert found["graph"]["clean"]["correct"] == right.sum()
            right &= deployed(samples.adversarial[path].numpy()).argmax(axis=1) == samples.labels.numpy()
            assert found["graph"]["adversarial"]["correct"] == right.sum()
            assert 0 < found["max_rel_diff"] < 1
            assert found["same_class"] > 0.8


def test_a_table_for_people_says_who_attacks(int8: Path, checkpoint_file: Path) -> None:
    done = run(checkpoint_file, int8, "--source", checkpoint_file, "--attack", "pgd1x1", "--examples", "9")
    assert done.exit_code == 0, done.output
    for words in ("2 models", "pgd1x1", "same class", "(int8)"):
        assert words in done.stdout
    assert "White-box" in done.stderr
    assert "Transfer from the source" in done.stderr


def test_the_source_of_another_bundle_is_refused(
    bundle: Path, other_checkpoint_file: Path, checkpoint_file: Path
) -> None:
    assert "the checkpoint that the bundle was exported from" in refused(bundle, "--source", other_checkpoint_file)
    assert "no MODEL is one" in refused(checkpoint_file, "--source", checkpoint_file, status=2)


def test_a_bundle_of_other_classes_is_not_of_the_source(tmp_path: Path, checkpoint_file: Path) -> None:
    assert "the input shape of the bundle, (3, 6, 4)" in refused(
        write_bundle(tmp_path / "bundle"), "--source", checkpoint_file
    )


def test_every_byte_of_a_bundle_is_checked_and_its_signature_if_asked(bundle: Path, tmp_path: Path) -> None:
    changed = tmp_path / "bundle"
    shutil.copytree(bundle, changed)
    weights = changed / "robust/weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert "robust/weights.bin" in refused(changed)
    with pytest.raises(BundleError):
        BundlePaths(Bundle.open(changed), source=None)
    key = write_key_pair(tmp_path / "release").public
    assert "no signature in SHA256SUMS.sig" in refused(bundle, "--trust", key)


def test_a_page_is_not_written_into_a_bundle(bundle: Path) -> None:
    assert "would replace or change" in refused(bundle, "--attack", "clean", "--report", bundle / "report.html")
    Bundle.open(bundle).verify()


def test_a_run_on_a_bundle_goes_on(bundle: Path, checkpoint_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    options = [bundle, "--source", checkpoint_file, "--attack", "pgd2x1", "--chunk", 8, "-o", output]
    first = answer(*options)
    lines = output.read_text().splitlines(keepends=True)
    assert len(lines) == (2 * 2 + 3 * 2) * 3, "of 3 chunks: paths, clean and pgd2x1; 3 sources of threats, paths"
    output.write_text("".join(lines[:17]))
    assert answer(*options, "--resume") == first
    assert sorted(output.read_text().splitlines(keepends=True)) == sorted(lines)


@pytest.mark.parametrize(
    ("gate", "training", "eps"),
    [
        ({"eps": 0.3}, {"attack": {"eps": 0.1}}, 0.3),
        (None, {"attack": {"eps": 0.1}}, 0.1),
        ({"eps": True}, {"attack": {"eps": 1}}, 1.0),
        ({"eps": float("nan")}, {"attack": "pgd"}, None),
        ({"eps": 8}, {"attack": {"eps": "0.1"}}, None),
        (None, {}, None),
    ],
)
def test_eps_is_what_the_manifest_records(
    gate: Mapping[str, Any] | None, training: Mapping[str, Any], eps: float | None, tiny: OpenModel
) -> None:
    given_ = Bundle.open(tiny.model).manifest
    assert recorded_eps(replace(given_, gate=gate, training=training)) == eps
    opened = replace(tiny, recorded_eps=eps)
    if eps is None:
        with pytest.raises(ConfigError, match=r"no eps is recorded in .*; give --eps"):
            _ = opened.eps
    else:
        assert opened.eps == eps


@pytest.mark.slow
def test_the_documentation_s_python_runs(checkpoint_file: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/evaluation.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for long, short in (("pgd50x5", "pgd2x1"), ("autoattack", "apgd-ce")):
        assert long in code
        code = code.replace(long, short)
    shutil.copy(checkpoint_file, tmp_path / "ckpt.pt")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.match(r"\{'clean': [^,]*, 'robust': [^,]*\}\n\[", done.stdout)
