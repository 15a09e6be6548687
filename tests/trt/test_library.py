"""`Library` drives every dialect; what it touches exists in each real version."""

from __future__ import annotations

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from runtime.bundles import expected_scores
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.trt.library import load_library
from trt.fake_tensorrt import DIALECTS, installed
from trt.library_use import IMAGE, Running, built, name_of


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_graph_is_built_and_run_in_every_dialect(dialect: str, stand_in: StandInDriver) -> None:
    images = (np.random.default_rng(0).integers(0, 9, (3, *IMAGE)) / 8).astype(np.float32)
    with installed(dialect):
        library = load_library(name_of(dialect))
        device = Device.shared(0)
        with device.use():
            running = Running(library, device, built(library))
            scores = running.run(images)
            np.testing.assert_allclose(scores, expected_scores("clean", images), rtol=1e-6)
            running.close()
        device.release()
    assert not stand_in.leaks()
