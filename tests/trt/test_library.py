"""`Library` drives every dialect; what it touches exists in each real version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx.parser
import pytest

from cuda.stand_in import StandInDriver
from runtime.bundles import CLASSES, expected_scores
from smart_common.errors import MissingExtraError
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.trt.library import Library, Precision, load_library
from smart_runtime.errors import EngineError
from trt.fake_tensorrt import DIALECTS, environment, installed
from trt.library_use import IMAGE, Running, built, configured, name_of

IMAGES = (np.random.default_rng(0).integers(0, 9, (3, *IMAGE)) / 8).astype(np.float32)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_graph_is_built_and_run_in_every_dialect(dialect: str, stand_in: StandInDriver) -> None:
    with installed(dialect):
        library = load_library(name_of(dialect))
        device = Device.shared(0)
        with device.use():
            running = Running(library, device, built(library))
            scores = running.run(IMAGES)
            np.testing.assert_allclose(scores, expected_scores("clean", IMAGES), rtol=1e-6)
            running.close()
    assert not stand_in.leaks()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_profile_of_one_size_leaves_nothing_to_vary(dialect: str, stand_in: StandInDriver) -> None:
    """So says TensorRT-RTX 1.7 of such a plan, in its most verbose messages."""
    with installed(dialect):
        library, device = library_of(dialect), Device.shared(0)
        with device.use():
            running = Running(library, device, built(library, batch=(3, 3, 3)))
            shapes = [tuple(running.engine.get_tensor_shape(name)) for name in ("image", "scores")]
            assert shapes == [(3, *IMAGE), (3, CLASSES)]
            np.testing.assert_allclose(running.run(IMAGES), expected_scores("clean", IMAGES), rtol=1e-6)
            assert not running.context.set_input_shape("image", (2, *IMAGE))
            running.close()


def library_of(dialect: str) -> Library:
    return load_library(name_of(dialect))


@pytest.fixture
def device(stand_in: StandInDriver) -> Iterator[Device]:
    """A device whose context is current."""
    device = Device.shared(0)
    with device.use():
        yield device


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_precision_is_the_graphs_own_or_a_flag(dialect: str, precision: Precision, device: Device) -> None:
    """8.6 alone knows no strongly typed networks; there nothing but the graph's precision is allowed beside fp32."""
    with installed(dialect) as module:
        library = library_of(dialect)
        builder = library.builder(library.logger())
        network, config = library.network(builder), configured(library, builder, precision=precision)
        flags = {name for name in ("FP16", "INT8") if config.get_flag(getattr(module.BuilderFlag, name, None) or NONE)}
        assert flags == ({precision.upper()} - {"FP32"} if dialect == "8.6" else set())
        assert network._strong == (dialect != "8.6")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_graph_of_less_precision_is_built_in_every_dialect(
    dialect: str, precision: Precision, device: Device
) -> None:
    with installed(dialect):
        assert built(library_of(dialect), graph_in(precision), precision=precision)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_8_6_needs_the_flag_and_strong_typing_refuses_it(precision: Precision, device: Device) -> None:
    with installed("8.6"), pytest.raises(AssertionError, match="not configured in the builder"):
        built(library_of("8.6"), graph_in(precision))
    with installed("10.3") as module:
        library = library_of("10.3")
        log = library.logger()
        builder = library.builder(log)
        network, config = library.network(builder), configured(library, builder)
        assert module.OnnxParser(network, log.trt).parse(graph_in(precision))
        config.set_flag(getattr(module.BuilderFlag, precision.upper()))
        assert builder.build_serialized_network(network, config) is None
        assert "strongly typed" in log.last_error


NONE = SimpleNamespace(name="none")


def graph_in(precision: str) -> bytes:
    """A graph of one product in fp16, or of one quantised input."""
    ones = ", ".join(["1"] * 360)
    body = {
        "fp16": f"""<float16[72, 5] w = {{{ones}}}> {{
            flat = Flatten(image) half = Cast<to = 10>(flat) product = MatMul(half, w) scores = Cast<to = 1>(product)
        }}""",
        "int8": f"""<float s = {{0.5}}, int8 z = {{0}}, float[72, 5] w = {{{ones}}}> {{
            flat = Flatten(image) small = QuantizeLinear(flat, s, z) back = DequantizeLinear(small, s, z)
            scores = MatMul(back, w)
        }}""",
    }[precision]
    head = '<ir_version: 10, opset_import: ["" : 20]> g (float[N, 3, 6, 4] image) => (float[N, 5] scores) '
    return bytes(onnx.parser.parse_model(head + body).SerializeToString())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_asked_of_a_build_is_set(dialect: str, device: Device) -> None:
    with installed(dialect) as module:
        library = library_of(dialect)
        builder = library.builder(library.logger())
        config = configured(library, builder, workspace_bytes=1 << 21, level=5, sparse_weights=True)
        assert config.get_memory_pool_limit(module.MemoryPoolType.WORKSPACE) == 1 << 21
        assert (config.builder_optimization_level, config.profiling_verbosity.name) == (5, "DETAILED")
        assert config.get_flag(module.BuilderFlag.SPARSE_WEIGHTS)
        assert not config.get_flag(module.BuilderFlag.TF32)
        other = configured(library, builder, workspace_bytes=None, tf32=True)
        assert other.get_memory_pool_limit(module.MemoryPoolType.WORKSPACE) == 1 << 40
        assert other.get_flag(module.BuilderFlag.TF32)
        assert not other.get_flag(module.BuilderFlag.SPARSE_WEIGHTS)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_capabilities_are_tensorrt_rtx_alone(dialect: str, device: Device) -> None:
    with installed(dialect):
        library = library_of(dialect)
        builder = library.builder(library.logger())
        if library.name == "tensorrt":
            assert not library.capabilities()
            with pytest.raises(EngineError, match="leave out the compute capabilities"):
                configured(library, builder, capabilities=("8.6",))
            return
        assert list(library.capabilities())[:4] == ["7.5", "8.0", "8.6", "8.9"]
        config = configured(library, builder, capabilities=("8.9", "12.0"))
        assert [config.get_compute_capability(n).name for n in range(2)] == ["SM89", "SM120"]
        assert configured(library, builder).get_compute_capability(0).name == "CURRENT"
        with pytest.raises(EngineError, match=r"capability '9\.0'; choose among 7\.5, 8\.0, 8\.6"):
            configured(library, builder, capabilities=("8.6", "9.0"))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_timings_are_kept_for_the_device_and_version_that_took_them(
    dialect: str, device: Device, stand_in: StandInDriver
) -> None:
    with installed(dialect):
        library = library_of(dialect)
        builder = library.builder(library.logger())

        def cache_of(saved: bytes) -> Any:
            return library.use_timing_cache(builder.create_builder_config(), saved)

        cache = cache_of(b"")
        if library.name == "tensorrt-rtx":
            assert cache is None
            return
        cache._entries["layer"] = 1.0
        saved = bytes(memoryview(cache.serialize()))
        assert cache_of(saved)._entries == {"layer": 1.0}
        assert not cache_of(saved[:-3])._entries
        stand_in.device(multiprocessors=4)
        assert not cache_of(saved)._entries
        config = builder.create_builder_config()
        library.use_timing_cache(config, saved)
        assert config.get_timing_cache() is not None


@pytest.mark.parametrize("dialect", DIALECTS)
def test_phases_are_told_where_the_library_tells_them(dialect: str, device: Device) -> None:
    with installed(dialect):
        library = library_of(dialect)
        config = library.builder(library.logger()).create_builder_config()
        assert (library.watch(config, started=print, finished=print) is None) == (dialect == "8.6")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_kernels_are_kept_where_they_are_compiled_on_the_device(dialect: str, device: Device) -> None:
    with installed(dialect):
        library = library_of(dialect)
        running = Running(library, device, built(library))
        cache: Any = library.kernel_cache(running.engine)
        assert (cache is not None) == (library.name == "tensorrt-rtx")
        if cache is not None:
            running.context = running.new_context(cache)
            running.run(IMAGES)
            saved = bytes(memoryview(cache.serialize()))
            again: Any = library.kernel_cache(running.engine, saved)
            assert again._kernels == cache._kernels != []
            other: Any = library.kernel_cache(running.engine, b"other" + saved)
            assert other._kernels == []
        running.close()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_inspector_says_which_layers_have_a_sparse_tactic(dialect: str, device: Device) -> None:
    with installed(dialect) as module:
        library = library_of(dialect)
        lines: list[tuple[str, str]] = []
        log = library.logger(lambda *line: lines.append(line))
        running = Running(library, device, built(library, two_four_graph(), log, sparse_weights=True))
        told = running.engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
        tactics = [layer["TacticName"] for layer in json.loads(told)["Layers"]]
        assert len(tactics) == running.engine.num_layers == 3
        assert sum("sparse" in tactic for tactic in tactics) == 1
        chosen = [text for severity, text in lines if severity == "INFO" and "(Sparsity) Chose 1 layer(s)" in text]
        assert len(chosen) == (library.name == "tensorrt")
        running.close()


def two_four_graph() -> bytes:
    """Two products with 2:4 weights along their inputs, of which the stand-in chooses a sparse tactic for one."""
    rows = ", ".join("1, 1, 1, 1, 1" if row % 4 < 2 else "0, 0, 0, 0, 0" for row in range(72))
    square = ", ".join(["1, 1, 1, 1", "1, 1, 1, 1", "0, 0, 0, 0", "0, 0, 0, 0"])
    head = '<ir_version: 10, opset_import: ["" : 20]> g (float[N, 3, 6, 4] image) => (float[N, 5] scores) '
    body = f"""<float[4, 4] v = {{{square}}}, float[72, 5] w = {{{rows}}}>
        {{ mixed = MatMul(image, v) flat = Flatten(mixed) scores = MatMul(flat, w) }}"""
    return bytes(onnx.parser.parse_model(head + body).SerializeToString())


@pytest.mark.parametrize("dialect", ["8.6", "10.3", "rtx-1.4"])
def test_a_parse_error_names_what_the_version_tells(dialect: str, device: Device) -> None:
    with installed(dialect) as module:
        library = library_of(dialect)
        log = library.logger()
        parser = module.OnnxParser(library.network(library.builder(log)), log.trt)
        head = '<ir_version: 10, opset_import: ["" : 20]> g (float[N, 3, 6, 4] image) => (float[N, 5] scores) '
        graph = onnx.parser.parse_model(head + "{ scores = Nope(image) }").SerializeToString()
        assert not parser.parse(graph)
        where = "node 0" if dialect == "8.6" else "Nope (node 0)"
        assert library.parse_errors(parser) == [f"{where}: it has no such operator"]


def test_a_log_keeps_the_newest_errors_and_warnings(device: Device) -> None:
    with installed("10.3") as module:
        lines: list[tuple[str, str]] = []
        log = library_of("10.3").logger(lambda *line: lines.append(line))
        assert log.first_error == log.last_error == "it gave no reason"
        for number in range(25):
            log.trt.log(module.ILogger.ERROR, f"error {number}")
            log.trt.log(module.ILogger.WARNING, f"warning\n{number}")
            log.trt.log(module.ILogger.INFO, "kept nowhere")
        log.trt.log(module.ILogger.INTERNAL_ERROR, "line\none")
        assert log.errors == [*(f"error {number}" for number in range(6, 25)), "line\none"]
        assert len(log.warnings) == 20
        assert (log.first_error, log.last_error) == ("error 6", "line one")
        assert len(lines) == 76
        assert lines[0] == ("ERROR", "error 0")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_library_that_cannot_start_is_an_error_of_ours(dialect: str, device: Device, stand_in: StandInDriver) -> None:
    with installed(dialect):
        library = library_of(dialect)
        stand_in.stick(700)
        with pytest.raises(EngineError, match="cannot start on this device"):
            library.runtime(library.logger())
        stand_in.stick(0)


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"TensorRT cannot be imported: .*smart-devices doctor"):
        load_library("tensorrt")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    with pytest.raises(MissingExtraError, match=r"libnvinfer\.so\.10: cannot open"):
        load_library("tensorrt")


def test_a_module_of_that_name_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(MissingExtraError, match="not TensorRT's"):
        load_library("tensorrt")


def test_a_library_older_than_8_6_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with installed("8.6") as module:
        del module.IBuilderConfig.builder_optimization_level
        monkeypatch.setattr(module, "__version__", "8.5.3")
        with pytest.raises(MissingExtraError, match=r"TensorRT 8\.5\.3 is too old; install 8\.6"):
            load_library("tensorrt")


_CHILD = """
import numpy as np
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.trt.library import load_library
from trt.fake_tensorrt import UNDEFINED
from trt.library_use import IMAGE, Running, built
library, device = load_library({name!r}), Device.shared(0)
with device.use():
    running = Running(library, device, built(library))
    print(library.title, running.run(np.zeros((1, *IMAGE), np.float32)).shape)
    running.close()
assert not UNDEFINED
"""


@pytest.mark.parametrize("dialect", ["10.16", "rtx-1.4"])
def test_a_child_process_imports_the_stand_in(dialect: str, stand_in: StandInDriver) -> None:
    base = environment(dialect, stand_in.environment())
    base["PYTHONPATH"] = os.pathsep.join([base["PYTHONPATH"], *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", _CHILD.format(name=name_of(dialect))],
        env=base, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    title = {"10.16": "TensorRT 10.16.1.11", "rtx-1.4": "TensorRT-RTX 1.4.0.76"}[dialect]
    assert (done.stdout, done.stderr) == (f"{title} (1, 5)\n", "")


def test_a_log_hears_its_own_thread_and_those_of_nobody(device: Device) -> None:
    with installed("10.3") as module:
        library = library_of("10.3")
        here, elsewhere = library.logger(), []

        def say(*, with_log: bool) -> None:
            log = library.logger() if with_log else None
            here.trt.log(module.ILogger.ERROR, f"with a log: {with_log}")
            elsewhere.append([] if log is None else log.errors)

        for with_log in (True, False):
            thread = threading.Thread(target=say, kwargs={"with_log": with_log})
            thread.start()
            thread.join()
        assert elsewhere == [["with a log: True"], []]
        assert here.errors == ["with a log: False"]
