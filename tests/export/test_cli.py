"""``smart-export`` as a user runs it: real processes, JSON on standard output, one sentence on failure."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from export.command import pass_clean_off_as_robust, smart_export
from smart_runtime.bundle.bundle import write_checksums


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_build_is_the_default_command_and_prints_json(checkpoint_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "net.pt"
    shutil.copy(checkpoint_file, copy)
    done = smart_export(copy, "--target", "cpu", "--data", "digits", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bundle"] == str(tmp_path / "net-cpu")
    assert (found["target"], found["precision"], found["baseline"]["name"]) == ("cpu", "fp32", "dense")
    wanted = {"file", "parameters", "macs", "bytes", "density", "max_rel_diff", "argmax_agreement"}
    for path in ("clean", "robust"):
        assert wanted <= found["paths"][path].keys()
        assert found["paths"][path]["max_rel_diff"] <= 1e-4
        assert found["paths"][path]["argmax_agreement"] == 1.0
        assert found["paths"][path]["verified_on"] == 2 * 360 + 256 + 2 * 256, "digits, noise, samples"
    assert "exists already; use --force to replace a bundle" in refused(smart_export(copy, "--target", "cpu"))
    again = smart_export(copy, "--target", "cpu", "--baseline", "none", "--force")
    assert again.returncode == 0, again.stderr
    assert "robust" in again.stdout
    assert not (tmp_path / "net-cpu/dense").exists()


def test_options_may_stand_before_the_file(checkpoint_file: Path, tmp_path: Path) -> None:
    done = smart_export("--target", "cpu", "--baseline", "none", "-o", tmp_path / "b", checkpoint_file)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "arguments", "module", "extra"),
    [
        ("smart_train", ["-o", "ckpt.pt", "--data", "digits"], "torch", "train"),
        ("smart_eval", ["ckpt.pt"], "torch", "train"),
        ("smart_export", ["ckpt.pt", "--target", "cpu"], "onnx", "export"),
    ],
)
def test_a_command_without_its_extra_names_the_pip_command(
    command: str, arguments: list[str], module: str, extra: str, tmp_path: Path
) -> None:
    (tmp_path / "ckpt.pt").touch()
    code = f"import sys; sys.modules[{module!r}] = None; from smart_common.console.entry import {command}; {command}()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: the Python module {module} is not installed")
    assert "pip install" in done.stderr
    assert extra in done.stderr
    assert "Traceback" not in done.stderr


def test_help_has_an_example() -> None:
    for command in ([], ["build"], ["check"], ["info"]):
        done = smart_export(*command, "--help")
        assert done.returncode == 0
        assert "Example" in done.stdout
        assert "smart-export" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.pt", "--target", "cpu"], "missing.pt"),
        (["CKPT", "--target", "toaster"], "toaster"),
        (["CKPT", "--target", "cpu", "--data", "npz:none.npz"], "none.npz"),
        (["CKPT", "--target", "cpu", "--default-path", "dense"], "clean, robust"),
        (["check", "nowhere"], "nowhere"),
        (["info", "."], "smart-run info"),
    ],
)
def test_bad_input_gives_one_sentence(
    arguments: list[str], words: str, checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(checkpoint_file, tmp_path / "ckpt.pt")
    given = ["ckpt.pt" if a == "CKPT" else a for a in arguments]
    assert words in refused(smart_export(*given))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt.pt"]


class _Trap:
    def __init__(self, proof: Path) -> None:
        self._command = f"touch '{proof}'"

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self._command,)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_checkpoint_that_would_run_code_runs_nothing(form: str, tmp_path: Path) -> None:
    proof, file = tmp_path / "ran", tmp_path / "trap.pt"
    if form == "pickle":
        file.write_bytes(pickle.dumps({"format": "smart-edge checkpoint", "trap": _Trap(proof)}))
    else:
        torch.save({"format": "smart-edge checkpoint", "trap": _Trap(proof)}, file)
        assert zipfile.is_zipfile(file)
    for command in (["build", "--target", "cpu"], ["info"]):
        assert "was not run" in refused(smart_export(*command, file))
    assert not proof.exists()


def test_check_passes_a_sound_bundle(bundle: Path, checkpoint_file: Path) -> None:
    done = smart_export("check", bundle, "--source", checkpoint_file, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is True
    assert found["paths"].keys() == {"clean", "robust", "dense"}
    plain = smart_export("check", bundle)
    assert plain.returncode == 0
    assert "onnx.checker full check passes" in plain.stdout


def test_check_refuses_a_changed_byte(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    weights = bytearray((copy / "robust/weights.bin").read_bytes())
    weights[100] ^= 1
    (copy / "robust/weights.bin").write_bytes(weights)
    assert "robust/weights.bin" in refused(smart_export("check", copy))


def test_check_tells_a_clean_graph_that_poses_as_robust(bundle: Path, checkpoint_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    pass_clean_off_as_robust(copy)  # an unsigned bundle can always be summed again; only the source knows better
    assert smart_export("check", copy).returncode == 0
    assert "'robust'" in refused(smart_export("check", copy, "--source", checkpoint_file))


def test_check_tells_another_training_of_the_same_network(bundle: Path, other_checkpoint_file: Path) -> None:
    assert "masked path" in refused(smart_export("check", bundle, "--source", other_checkpoint_file))


def test_check_refuses_a_graph_that_is_no_onnx(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    (copy / "clean/model.onnx").write_bytes(b"not a graph")
    write_checksums(copy)
    refused(smart_export("check", copy))


def test_info_describes_a_checkpoint(checkpoint_file: Path) -> None:
    done = smart_export("info", checkpoint_file, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["architecture"] == "resnet8"
    assert found["arguments"] == {"width": 8}
    assert found["paths"]["robust"]["density"] == 0.5
    assert found["training"]["data"]["kind"] == "digits"
    digest = hashlib.sha256(checkpoint_file.read_bytes()).hexdigest()
    text = smart_export("info", checkpoint_file)
    assert "resnet8 (width 8), images 1 x 8 x 8, 10 classes" in text.stdout
    assert hashlib.sha256(checkpoint_file.read_bytes()).hexdigest() == digest  # describing changes nothing
