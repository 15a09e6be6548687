"""Whatever call of the driver fails, a TensorRT that stands in leaks nothing and says so in the library's ways."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from runtime.bundles import expected_scores
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.cuda.driver import CudaError
from smart_runtime.engines.trt.library import load_library
from smart_runtime.errors import EngineError
from trt.fake_tensorrt import UNDEFINED, installed
from trt.library_use import IMAGE, Running, built, name_of

IMAGES = (np.random.default_rng(3).integers(0, 9, (2, *IMAGE)) / 8).astype(np.float32)
EXPECTED = expected_scores("clean", IMAGES)


def load_run_close(dialect: str, plan: bytes) -> bool:
    """Go through an engine's life; whether it came to scores, or a step of it gave nothing, as the library's do."""
    library = load_library(name_of(dialect))
    device = Device.shared(0)
    with device.use():
        try:
            running = Running(library, device, plan)
        except AssertionError:
            return False
        try:
            scores = running.run(IMAGES)
        except AssertionError:
            return False
        finally:
            with suppress(CudaError):
                running.stream.synchronize()
            running.close()
        np.testing.assert_allclose(scores, EXPECTED, rtol=1e-6)
        return True


@pytest.mark.parametrize("code", [1, 2, 700], ids=["invalid value", "out of memory", "illegal address"])
@pytest.mark.parametrize("dialect", ["8.6", "10.3", "rtx-1.7"])
def test_a_failure_at_each_call_in_turn(dialect: str, code: int, stand_in: StandInDriver) -> None:
    with installed(dialect):
        device = Device.shared(0)
        with device.use():
            plan = built(load_library(name_of(dialect)))
        before = stand_in.calls()
        assert load_run_close(dialect, plan)
        calls = stand_in.calls() - before
        assert calls > 25
        failed = 0
        for after in range(calls):
            stand_in.fail(after, code)
            try:
                failed += not load_run_close(dialect, plan)
            except EngineError:
                failed += 1
            stand_in.fail(-1, 0)
            assert not stand_in.leaks(), f"call {after} of {calls}"
            assert not UNDEFINED, f"call {after} of {calls}"
        assert failed > calls // 3
