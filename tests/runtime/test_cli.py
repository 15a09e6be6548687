from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from runtime.bundles import CLASS_NAMES, HEIGHT, WIDTH, as_float, expected_scores, ours, random_images, write_bundle
from smart_runtime.cli import main

IMAGE = random_images(1, seed=3)[0]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("pictures") / "frame.png"
    Image.fromarray(IMAGE).save(file)
    return str(file)


def smart_run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a process of its own."""
    command = [sys.executable, "-m", "smart_runtime.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def invoke(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("path", ["clean", "robust"])
def test_infer_json(bundle: Path, picture: str, path: str) -> None:
    done = smart_run("infer", str(bundle), picture, picture, "--path", path, "--top", "3", "--json")
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer["path"] == path
    assert [result["picture"] for result in answer["results"]] == [picture] * 2
    scores = expected_scores(path, as_float(IMAGE[None]))[0]
    order = np.argsort(-scores)[:3]
    shares = np.exp(scores) / np.exp(scores).sum()
    for result in answer["results"]:
        assert result["latency_ms"] > 0
        assert [p["index"] for p in result["predictions"]] == order.tolist()
        assert [p["class"] for p in result["predictions"]] == [CLASS_NAMES[i] for i in order]
        np.testing.assert_allclose([p["score"] for p in result["predictions"]], scores[order], atol=1e-6)
        np.testing.assert_allclose([p["probability"] for p in result["predictions"]], shares[order], atol=1e-6)


def test_infer_table(bundle: Path, picture: str) -> None:
    output = invoke("infer", str(bundle), picture, "--top", "99")
    assert "path clean" in output
    assert all(name in output for name in CLASS_NAMES)


def test_names_are_shown_as_they_are(tmp_path: Path, picture: str) -> None:
    def marked_up(document: dict[str, Any]) -> None:
        ours(document)["class_names"] = ["[red]", "[/]", "[bold]x", "a[b]", "[link=x]"]

    output = invoke("infer", str(write_bundle(tmp_path / "b", change=marked_up)), picture, "--top", "5")
    assert all(name in output for name in ("[red]", "[/]", "[bold]x", "a[b]", "[link=x]"))


def test_info_json(bundle: Path) -> None:
    answer = json.loads(smart_run("info", str(bundle), "--json").stdout)
    assert [graph["name"] for graph in answer["graphs"]] == ["dense", "clean", "robust"]
    assert answer["input"] == {"channels": 3, "height": HEIGHT, "width": WIDTH}
    assert answer["class_names"] == CLASS_NAMES
    assert answer["default_path"] == "clean"
    assert answer["masks"]["mode"] == "gradual"
    assert answer["masks"]["overlap"]["groups"][0]["overlap"] == 2 / 6, "of the counts"


def test_info_table(bundle: Path) -> None:
    output = invoke("info", str(bundle))
    for words in ("tiny, fp32, for cpu", "default path clean", "robust", "0.460", "every byte is as exported"):
        assert words in output
    assert "masks gradual (budget uniform): ours" in output
    assert "the masks share 33.3% of the channels that any path keeps (33.3% by chance)" in output


def test_info_checks_every_byte(own_bundle: Path) -> None:
    (own_bundle / "dense/weights.bin").write_bytes(b"other")
    assert "error: expected 'dense/weights.bin' as it was exported" in smart_run("info", str(own_bundle), code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["infer", "{bundle}", "nowhere.png"], 1, "error: no picture at 'nowhere.png'"),
        (["infer", "nowhere", "{picture}"], 1, "error: no bundle directory at 'nowhere'"),
        (["infer", "{bundle}", "{picture}", "--path", "fast"], 1, "error: unknown path 'fast'; the bundle has"),
        (["infer", "{bundle}", "{picture}", "--path", "dense"], 1, "the dense baseline is for smart-bench only"),
        (["infer", "{bundle}", "{bundle}/manifest.json"], 1, "cannot be decoded"),
        (["infer", "{bundle}", "{picture}", "--engine", ""], 1, "unknown engine ''; there are auto, "),
        (["infer", "{bundle}"], 2, "Missing argument"),
        (["infer", "{bundle}", "{picture}", "--top", "0"], 2, "0 is not in the range"),
        (["info", "{picture}"], 1, "no bundle directory at"),
        (["fly"], 2, "No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_arguments_are_one_sentence(bundle: Path, picture: str, arguments: list[str], code: int, said: str) -> None:
    filled = [argument.format(bundle=bundle, picture=picture) for argument in arguments]
    output = invoke(*filled, code=code)
    assert said in output
    assert "Traceback" not in output
    if code == 1:
        assert len(output.strip().splitlines()) == 1


def test_a_bad_input_in_a_real_process(bundle: Path) -> None:
    done = smart_run("infer", str(bundle), "nowhere.png", "--json", code=1)
    answer = json.loads(done.stdout)
    assert answer["results"] == []
    assert [failed["picture"] for failed in answer["failed"]] == ["nowhere.png"]
    assert done.stderr.startswith("error: no picture at")


def test_help_has_an_example() -> None:
    assert "smart-run infer bundle/ picture.png" in invoke("--help")
    assert "smart-run infer bundle/" in invoke("infer", "--help")
    assert "smart-run info bundle/" in invoke("info", "--help")


def test_version() -> None:
    assert invoke("--version").startswith("smart-run, version ")
