"""What all tests share: one thread, and property tests that are the same on every run."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import settings

# Before torch is imported, and for the processes that tests start: networks this small lose more to a second thread
# than it computes, and far more on shared cores.
os.environ["OMP_NUM_THREADS"] = "1"
# torch 2.13's oneDNN corrupts the heap when it trains convolutions of a few channels on one thread of a processor with
# AVX2 and no AVX-512 (AMD EPYC 7003): "corrupted size vs. prev_size", in the code of any earlier day too.
if "avx512f" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import onnxruntime themselves, past the runtime's own switch
# Nobody's own cache of data sets is read or written. A worker of pytest-xdist has one inside of that of the process
# that started it, which removes them all: a worker may end without a word.
_outer = os.environ["XDG_CACHE_HOME"] if "PYTEST_XDIST_WORKER" in os.environ else None
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="smart-edge-tests-", dir=_outer)
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# A shell ignores Ctrl-C for what it starts in the background, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    with suppress(ValueError):  # in a thread
        signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("repeatable")


def pytest_runtest_teardown() -> None:
    """Have torch parse the sources of its 557 ONNX functions once a process: each export would do it anew."""
    module = sys.modules.get("onnxscript._framework_apis.torch_2_5")  # there once something was exported
    if module is not None and not hasattr(module.get_torchlib_ops, "cache_info"):
        module.get_torchlib_ops = functools.cache(module.get_torchlib_ops)  # type: ignore[attr-defined]
