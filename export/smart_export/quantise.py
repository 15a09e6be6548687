"""From a float32 graph to int8: Q/DQ nodes around what is quantised, ranges from calibration images.

`onnxruntime.quantization` does the work; NVIDIA's ModelOpt was tried on the same networks, see docs/precision.md.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnx_ir as ir

from smart_common.errors import shortened
from smart_devices import Target
from smart_export.errors import ExportError
from smart_export.graph import INPUT, strip_
from smart_export.verify import Images
from smart_runtime.engines.onnxruntime import import_onnxruntime

RecipeName: TypeAlias = Literal["tensorrt", "cpu"]
"""Which tensors of a graph become int8, and how; weights are symmetric int8 per output channel in both.

tensorrt: what convolutions and linear layers read, and nothing else; activations are int8 around 0, and biases float32.
TensorRT takes no others. It fuses a convolution with the addition and ReLU behind it as long as no Q/DQ stands between
them: so Q/DQ stands before weighted layers only, as ModelOpt has it too. (TensorRT's documentation, Working with
Quantized Types, Q/DQ layer-placement recommendations.)

cpu: every operator that has a kernel for it, outputs too; activations are uint8 with a zero point of their own, and
biases int32. ONNX Runtime's kernels for x86 multiply uint8 by int8, take the ReLU in where it is the range's lower end,
and need a quantised output to be chosen at all. 3.2 times as fast here as with the other recipe.
"""

Method: TypeAlias = Literal["minmax", "percentile", "entropy"]

CALIBRATION_METHOD: Method = "entropy"
"""Ranges that keep the most of a tensor's histogram: it changed the fewest classes of three, see docs/precision.md."""

_METHODS: Mapping[Method, str] = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}  # the library's
_CHUNK_IMAGES = 32  # calibrated on at a time: every tensor of theirs is held at once
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def recipe_for(target: Target) -> RecipeName:
    """Return the recipe of the engine that ``target`` is best run with."""
    return "cpu" if target.profile.kind == "cpu" else "tensorrt"


def quantised(model: ir.Model, images: Images, *, recipe: RecipeName, method: Method = CALIBRATION_METHOD) -> ir.Model:
    """Return the float32 graph ``model`` in int8; ``model`` is not changed.

    Weights that are zero stay exactly zero, since their zero point is 0.

    Args:
        model: one input ``image``, one output ``scores``; opset 13 or newer, the first with scales per channel.
        images: float32 (N, C, H, W) in [0, 1] to calibrate on, N at least 1.
        recipe: what to quantise.
        method: how ranges follow from what is seen; exports use the default, benchmarks the others too.

    Raises:
        ExportError: if the library cannot do it.
        OSError: if temporary files cannot be written.
    """
    import_onnxruntime()
    from onnxruntime import quantization  # noqa: PLC0415  # loads sympy and more, and int8 only needs it

    proto = ir.to_proto(model)
    # It says that shapes are inferred and the graph is optimised, as folding did: without it a warning is printed.
    proto.metadata_props.add(key="onnx.quant.pre_process", value="smart-edge")
    options: dict[str, Any] = {"CalibStridedMinMax": 1}  # a chunk's tensors at a time, not those of all
    symmetric = recipe == "tensorrt"
    if symmetric:
        options |= {
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(_WEIGHTED),
        }
    with tempfile.TemporaryDirectory(prefix="smart-export-int8-") as folder, _quiet():
        output = Path(folder, "int8.onnx")
        try:
            quantization.quantize_static(
                proto,
                output,
                _Chunks(images),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_WEIGHTED) if symmetric else None,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod[_METHODS[method]],
                extra_options=options,
            )
        except OSError:
            raise
        except Exception as error:  # of ONNX, NumPy, ONNX Runtime or the library's own: it has no class for it
            raise ExportError(
                f"onnxruntime.quantization cannot bring the graph to int8 ({type(error).__name__}: "
                f"{shortened(str(error))}); export it in fp16 or fp32"
            ) from error
        result = ir.load(output)
        ir.external_data.load_to_model(result)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    strip_(result)
    _leave_scores_whole_(result)
    return result


class _Chunks:
    """Images in chunks, as the library asks for them (its CalibrationDataReader)."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._starts = range(0, len(images), _CHUNK_IMAGES)
        self._waiting = iter(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._waiting = iter(self._starts[start_index:end_index])

    def get_next(self) -> dict[str, Images] | None:
        start = next(self._waiting, None)
        return None if start is None else {INPUT: self._images[start : start + _CHUNK_IMAGES]}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library: it prints, and speaks through the root logger, which it would set up for the process."""
    root, silent = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.addHandler(silent)
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
        root.removeHandler(silent)


def _leave_scores_whole_(model: ir.Model) -> None:
    """Take away the Q/DQ pair before the output, in place: 256 steps are coarse for scores, and cut off large ones.

    On images unlike those that were calibrated on, as clean ones are for a robust path, the cut was the largest error.
    """
    (output,) = model.graph.outputs
    last = output.producer()
    if last is None or last.op_type != "DequantizeLinear":
        return
    first = last.inputs[0].producer() if last.inputs[0] is not None else None
    if first is None or first.op_type != "QuantizeLinear" or first.inputs[0] is None:
        return
    scores = first.inputs[0]
    name, scores.shape, scores.type = output.name, output.shape, output.type
    model.graph.outputs[0] = scores
    model.graph.remove(last, safe=True)
    model.graph.remove(first, safe=True)
    output.name = None
    scores.name = name
    for key in [key for key, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[key]
