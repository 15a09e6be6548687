"""`smart-export` for tests, and the process it is forked from: all is imported, and a first conversion is done.

In a module of its own, which all tests share: pytest imports a test module under another name than other modules do,
so a command in one would be there twice, with a process each.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import onnx
from torch import fx, nn

from forks import Command, run_command, serve
from smart_export.cli import main
from smart_export.graph import onnx_from_module
from smart_runtime.bundle.bundle import write_checksums

smart_export = Command("export.command", name="smart-export")


def pass_clean_off_as_robust(bundle: Path) -> None:
    """Put the clean graph in the robust one's place, with a byte of its own, since a mere copy is refused at once."""
    shutil.rmtree(bundle / "robust")
    shutil.copytree(bundle / "clean", bundle / "robust")
    graph = onnx.load_model(bundle / "robust/model.onnx", load_external_data=False)
    graph.model_version += 1
    (bundle / "robust/model.onnx").write_bytes(graph.SerializeToString())
    write_checksums(bundle)


if __name__ == "__main__":
    onnx_from_module(fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 1, 1)).eval()), input_shape=(1, 2, 2), opset=20)
    serve(partial(run_command, main))
