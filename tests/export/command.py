"""The process that `smart-export` is forked from in tests: all is imported, and a first conversion is done."""

from __future__ import annotations

from functools import partial

from torch import fx, nn

from forks import run_command, serve
from smart_export.cli import main
from smart_export.graph import onnx_from_module

if __name__ == "__main__":
    onnx_from_module(fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 1, 1)).eval()), input_shape=(1, 2, 2), opset=20)
    serve(partial(run_command, main))
