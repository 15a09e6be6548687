"""Engine plans by TensorRT-RTX in a bundle: real builds without a GPU, and what becomes of what it cannot build."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result

from smart_common.console.cli import only_results_on_stdout
from smart_devices import MissingExtraError, resolve_target
from smart_export import BuildResult, ExportError, build_bundle
from smart_export.cli import main as smart_export
from smart_export.report import plan_lines
from smart_export.rtx import (
    build_plans,
    known_capabilities,
    parse_capabilities,
    plan_from_onnx,
    target_note,
    together,
)
from smart_runtime import SmartModel
from smart_runtime.bundle.bundle import CHECKSUMS, Bundle
from smart_runtime.bundle.manifest import InputSpec
from smart_runtime.errors import BundleError
from smart_train import load_checkpoint

pytest.importorskip("tensorrt_rtx", reason="the TensorRT-RTX library (extra tensorrt-rtx) is not installed")
pytestmark = pytest.mark.trt

GRAPHS = ("clean", "robust", "dense")
CAPABILITIES = ("8.6", "8.9", "12.0")
CARD = "desktop-gpu"
DIGITS = InputSpec(name="image", channels=1, height=8, width=8)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(smart_export, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def planned(checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    return build_bundle(
        load_checkpoint(checkpoint_file),
        output=tmp_path_factory.mktemp("planned") / "bundle",
        target=resolve_target(CARD),
        random_images=8,
        rtx=CAPABILITIES,
    )


def ours(bundle: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((bundle / "manifest.json").read_text())["additional_metadata"]["smart_edge"]
    return found


def test_every_graph_has_one_plan_for_all_cards_that_the_manifest_describes(planned: BuildResult) -> None:
    version = sys.modules["tensorrt_rtx"].__version__
    sums = (planned.bundle / CHECKSUMS).read_text()
    assert [plan.graph for plan in planned.plans] == list(GRAPHS)
    for plan in planned.plans:
        file = planned.bundle / plan.file
        assert plan.file == f"engines/{plan.graph}-8.6-8.9-12.0.plan"
        assert f"  {plan.file}\n" in sums
        weights = (planned.bundle / plan.graph / "weights.bin").stat().st_size
        assert weights < file.stat().st_size == plan.bytes
        assert plan.seconds > 0
    assert ours(planned.bundle)["plans"] == [
        {
            "graph": plan.graph,
            "file": plan.file,
            "compute_capabilities": ["8.6", "8.9", "12.0"],
            "tensorrt_rtx": version,
            "batch": {"min": 1, "opt": 8, "max": 64},
            "sparse_weights": False,
            "bytes": plan.bytes,
        }
        for plan in planned.plans
    ]


def test_a_plan_is_the_librarys_own_bytes(planned: BuildResult) -> None:
    import tensorrt_rtx  # noqa: PLC0415  # an engine is imported at use

    header = tensorrt_rtx.Runtime(tensorrt_rtx.Logger()).engine_header_size
    plan = planned.plans[0]
    fresh = plan_from_onnx(planned.bundle / "clean/model.onnx", inputs=DIGITS, capabilities=CAPABILITIES)
    written = (planned.bundle / plan.file).read_bytes()
    assert len(written) == fresh.nbytes  # two builds differ in a few bytes that look like addresses
    assert written[:header] == bytes(fresh[:header])


def test_a_shared_plan_holds_its_weights_once(planned: BuildResult) -> None:
    single = plan_from_onnx(planned.bundle / "dense/model.onnx", inputs=DIGITS, capabilities=["8.6"])
    assert planned.plans[-1].bytes - single.nbytes < 1024


def test_the_runtime_and_onnx_runtime_open_such_a_bundle(planned: BuildResult, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    with SmartModel.load(planned.bundle, path="robust") as model:
        scores = model(images)
    context = onnxruntime.ModelPackageContext(str(planned.bundle))
    options = onnxruntime.ModelPackageOptions(onnxruntime.SessionOptions())
    session = context.select_component("robust", options).create_session(None)
    assert np.allclose(session.run(["scores"], {"image": images})[0], scores, atol=1e-6)
    assert invoke("check", planned.bundle).exit_code == 0
    copy = tmp_path / "bundle"
    shutil.copytree(planned.bundle, copy)
    plan = copy / planned.plans[1].file
    plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"engines/robust-8\.6-8\.9-12\.0\.plan"):
        Bundle.open(copy).verify()


def test_a_graph_with_two_of_four_weights_is_built_to_look_for_them(planned: BuildResult, tmp_path: Path) -> None:
    file = planned.bundle / "robust/model.onnx"
    (plan,) = build_plans("robust", file, two_four=True, folder=tmp_path, inputs=DIGITS, capabilities=["8.9"])
    assert plan.sparse_weights
    assert plan.record["sparse_weights"] is True
    assert (tmp_path / plan.file).stat().st_size == plan.bytes


def test_turing_has_a_plan_of_its_own() -> None:
    found = parse_capabilities("12.0, 8.6,7.5,8.6", target=resolve_target(CARD))
    assert found == ("7.5", "8.6", "12.0")
    assert together(found) == [("7.5",), ("8.6", "12.0")]
    assert together(("8.9",)) == [("8.9",)]
    assert set(CAPABILITIES) < set(known_capabilities())


def test_a_target_that_no_plan_is_for_is_told_so() -> None:
    card = resolve_target(CARD)
    assert target_note(card, CAPABILITIES) is None
    assert target_note(card, ("8.6",)) == f"no plan is for {CARD} itself, whose compute capability is 8.9"


def test_a_half_precision_bundle_for_turing_too_has_two_plans_a_graph(checkpoint_file: Path, tmp_path: Path) -> None:
    built = build_bundle(
        load_checkpoint(checkpoint_file),
        output=tmp_path / "bundle",
        target=resolve_target("t4"),
        precision="fp16",
        baseline=False,
        max_drop=1,  # two epochs on digits: accuracy is not what is looked at
        random_images=8,
        rtx=("7.5", "8.6", "8.9"),
    )
    assert [(plan.graph, plan.compute_capabilities) for plan in built.plans] == [
        (path, group) for path in ("clean", "robust") for group in (("7.5",), ("8.6", "8.9"))
    ]


@pytest.mark.parametrize(
    ("target", "text", "words"),
    [
        (CARD, "nonsense", r"out of 7\.5, .*, got 'nonsense'.*smart-devices"),
        (CARD, "9.0", r"out of 7\.5, .*, got '9\.0'"),
        (CARD, "8.6,", "got ''"),
        (CARD, "8.7", "got 8.7, which is that of NVIDIA Jetson .* supports no Jetson; .* --target, without --rtx"),
        (CARD, "8.9,8.7", "got 8.7"),
        ("jetson-orin", "8.6", "which jetson-orin is not: TensorRT-RTX supports no Jetson; leave out --rtx"),
        ("jetson-orin-nano-4gb", "8.7", "which jetson-orin-nano-4gb is not"),
        ("cpu", "8.6", "which cpu is not: graphs for a CPU are made in other ways; use --target desktop-gpu"),
    ],
)
def test_what_it_does_not_build_for_is_refused(
    checkpoint_file: Path, tmp_path: Path, target: str, text: str, words: str
) -> None:
    done = invoke(checkpoint_file, "--target", target, "--rtx", text, "-o", tmp_path / "bundle")
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(ExportError, match=words) as caught:
        parse_capabilities(text, target=resolve_target(target))
    assert done.stderr == f"error: {caught.value}\n"
    assert list(tmp_path.iterdir()) == []


def test_without_the_library_the_command_that_installs_it_is_named(
    checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # what an import of one that is not installed ends in
    done = invoke(checkpoint_file, "--target", CARD, "--rtx", "8.6", "-o", tmp_path / "bundle")
    assert done.exit_code == 1
    assert "pip install 'smart-edge[tensorrt-rtx]'" in done.stderr
    with pytest.raises(MissingExtraError, match="--rtx needs the TensorRT-RTX library"):
        known_capabilities()
    assert list(tmp_path.iterdir()) == []


def written(folder: Path, text: str, **tensors: np.ndarray) -> Path:
    """Write a graph of an image to scores, given as text, with its tensors."""
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 20]> g (float[N, 1, 8, 8] image) => (float[N, 1, 8, 8] scores) {{{text}}}'
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in tensors.items())
    file = folder / "graph" / "model.onnx"
    file.parent.mkdir()
    onnx.save(model, file)
    return file


def test_operators_that_it_does_not_have_are_named_one_by_one(tmp_path: Path) -> None:
    file = written(tmp_path, "a = Bernoulli(image) b = Det(image) scores = Add(a, b)")
    with pytest.raises(ExportError, match=r"Bernoulli \(node 0\): .* no such operator; Det \(node 1\)") as caught:
        plan_from_onnx(file, inputs=DIGITS, capabilities=["8.6"])
    assert "refuses graph/model.onnx for compute capability 8.6: " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_asymmetric_quantisation_as_for_a_cpu_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "q = QuantizeLinear(image, scale, zero) scores = DequantizeLinear(q, scale, zero)",
        scale=np.array(0.1, np.float32),
        zero=np.array(3, np.uint8),
    )
    with pytest.raises(ExportError, match=r"QuantizeLinear \(node 0\): .*[Nn]on-zero zero point is not supported"):
        plan_from_onnx(file, inputs=DIGITS, capabilities=["8.6"])


def test_what_the_library_prints_keeps_out_of_results(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It has a line for a constant that fp16 rounds, written past its logger and past Python."""
    text = "half = Cast<to=10>(image) least = Clip(half, low) scores = Cast<to=1>(least)"
    file = written(tmp_path, text, low=np.array(0.1, np.float16))
    with only_results_on_stdout():
        plan_from_onnx(file, inputs=DIGITS, capabilities=["8.6"])
        os.write(1, b"native\n")
    os.write(1, b"result\n")
    printed = capfd.readouterr()
    assert printed.out == "result\n"
    assert "native" in printed.err


def test_a_refusal_leaves_the_old_bundle_as_it_was(planned: BuildResult, checkpoint_file: Path, tmp_path: Path) -> None:
    """Turing has no float32 matrix product there, so that this one is parsed and then not built."""
    bundle = tmp_path / "bundle"
    shutil.copytree(planned.bundle, bundle)
    before = Bundle.open(bundle).digest
    done = invoke(checkpoint_file, "--target", CARD, "--rtx", "7.5", "-o", bundle, "--force")
    assert done.exit_code == 1
    note, error = done.stderr.splitlines()
    assert note == f"note: no plan is for {CARD} itself, whose compute capability is 8.9"
    assert " refuses clean/model.onnx for compute capability 7.5: " in error
    assert "FP32 GEMM is not supported" in error
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    opened = Bundle.open(bundle)
    opened.verify()
    assert opened.digest == before


@pytest.mark.slow
def test_the_command_replaces_a_bundle_with_its_plans(
    planned: BuildResult,
    checkpoint_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def talking(*arguments: Any, **options: Any) -> memoryview:
        os.write(1, b"WARNING: of a native library\n")
        return plan_from_onnx(*arguments, **options)

    monkeypatch.setattr("smart_export.rtx.plan_from_onnx", talking)
    bundle = tmp_path / "bundle"
    shutil.copytree(planned.bundle, bundle)
    arguments = (checkpoint_file, "--target", CARD, "--baseline", "none", "-o", bundle, "--force")
    done = invoke(*arguments, "--rtx", "8.9", "--json")
    assert done.exit_code == 0, done.stderr
    assert capfd.readouterr().out == ""  # beside the JSON, which goes through Python
    plans = json.loads(done.stdout)["plans"]
    assert [(plan["graph"], plan["compute_capabilities"]) for plan in plans] == [(path, ["8.9"]) for path in GRAPHS[:2]]
    assert all(plan["seconds"] > 0 for plan in plans)
    assert sorted(p.name for p in (bundle / "engines").iterdir()) == ["clean-8.9.plan", "robust-8.9.plan"]
    done = invoke(*arguments)
    assert done.exit_code == 0, done.stderr
    assert "engines/" not in done.stdout
    assert not (bundle / "engines").exists()
    assert ours(bundle)["plans"] == []
    assert all(
        line.startswith(f"engines/{graph}-8.6-8.9-12.0.plan: ")
        for graph, line in zip(GRAPHS, plan_lines(planned.plans), strict=True)
    )


def test_a_weightless_plan_is_small_or_refused_where_there_is_no_gpu(planned: BuildResult) -> None:
    graph = planned.bundle / "dense/model.onnx"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(ExportError, match=r"CHECK\(status == \w+\) failed"):
            plan_from_onnx(graph, inputs=DIGITS, capabilities=["8.6"], weightless=True)
    else:
        plan = plan_from_onnx(graph, inputs=DIGITS, capabilities=["8.6"], weightless=True)
        assert plan.nbytes < planned.plans[-1].bytes - (graph.parent / "weights.bin").stat().st_size // 2
