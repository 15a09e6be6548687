"""`smart-export` for tests, and the process it is forked from: all is imported, and a first conversion is done.

In a module of its own, which all tests share: pytest imports a test module under another name than other modules do,
so a command in one would be there twice, with a process each.
"""

from __future__ import annotations

from functools import partial

from torch import fx, nn

from forks import Command, run_command, serve
from smart_export.cli import main
from smart_export.graph import onnx_from_module

smart_export = Command("export.command", name="smart-export")

if __name__ == "__main__":
    onnx_from_module(fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 1, 1)).eval()), input_shape=(1, 2, 2), opset=20)
    serve(partial(run_command, main))
