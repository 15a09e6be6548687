"""What all tests share: one thread, and property tests that are the same on every run."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

from hypothesis import settings

# Before torch is imported, and for the processes that tests start: networks this small lose more to a second thread
# than it computes, and far more on shared cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import onnxruntime themselves, past the runtime's own switch
# Nobody's own cache of data sets is read or written. A worker of pytest-xdist has one inside of that of the process
# that started it, which removes them all: a worker may end without a word.
_outer = os.environ["XDG_CACHE_HOME"] if "PYTEST_XDIST_WORKER" in os.environ else None
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="smart-edge-tests-", dir=_outer)
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("repeatable")
