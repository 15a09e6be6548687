"""What all tests share: one thread, and property tests that are the same on every run."""

from __future__ import annotations

import os

from hypothesis import settings

# Before torch is imported, and for the processes that tests start: networks this small lose more to a second thread
# than it computes, and far more on shared cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import onnxruntime themselves, past the runtime's own switch

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("repeatable")
