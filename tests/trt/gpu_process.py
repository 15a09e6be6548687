"""A process that has a GPU and TensorRT, both stand-ins, and runs a script in which `SmartModel.load` means TensorRT.

python -m trt.gpu_process SCRIPT ARGUMENTS...   # in the environment of `trt.fake_tensorrt.environment`
"""

from __future__ import annotations

import sys

from runtime.each_engine import GPU, serving_by_default
from smart_devices import gpu_engines
from trt.machine import available

if __name__ == "__main__":
    setattr(gpu_engines, "tensorrt", available(GPU))  # noqa: B010  # which would miss the files of NVIDIA's driver
    script = sys.argv[1]
    sys.argv[:2] = ["-c"]
    with serving_by_default(GPU):
        exec(script, {"__name__": "__main__"})  # noqa: S102  # of a test
